"""Takedown: posts leave every store, old versions and files included, and do not come back.

The order is the safety. The list of takedowns is written first, so that a takedown that is killed later is finished
by the next one. Then go logs, while the tables still tell which ids are a user's; then the rows, by writing their
shards again; then tags and versions that still hold them; then artifacts of single posts. At the end all that is
left is searched for what names the posts. Networks that saw them stay, are named, and are stale.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from moe_core.data.takedowns import Takedowns
from moe_core.data.traces import Traces
from moe_core.engine.context import Context
from moe_core.errors import HardmoeError, LockHeld
from moe_core.maintenance.exposure import networks_that_saw
from moe_core.maintenance.gc import current_rows
from moe_core.maintenance.mentions import may_mention, mentions
from moe_core.stages.graph import GRAPH
from moe_core.store.artifact import Artifact
from moe_core.store.leftovers import Leftover, left_at
from moe_core.store.protocols import ArtifactStore
from moe_core.tables.cleaning import clean, fence, release, search
from moe_core.tables.lance_tags import lance_tag_of, lance_tags
from moe_core.tables.location import Table, tables_of
from moe_core.tables.shards import gather, rewrite, shards_in


@dataclass
class Takedown:
    """What was found and done, or would be."""

    posts: int = 0  # accepted and rejected ones
    shards: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)  # ids and users that no store holds; recorded all the same
    saw: list[str] = field(default_factory=list)  # networks made from the posts, "expert:e003 <version>"
    removed: list[str] = field(default_factory=list)  # artifacts and files, relative to the root, or to the bucket
    bytes: int = 0
    left: list[str] = field(default_factory=list)  # files that still name an id or a user: not ours to change
    not_searched: list[str] = field(default_factory=list)  # ids and users that cannot be told from other text in files
    texts: set[str] = field(default_factory=set, repr=False)  # that no file may name any more

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "texts"}


@dataclass
class _Found:
    """What a survey of all versions found."""

    rows: list[dict[str, Any]] = field(default_factory=list)  # shard, id, user, accepted
    files: dict[Table, dict[str, str]] = field(default_factory=dict)  # table -> data file with such rows -> its shard
    artifacts: list[Artifact] = field(default_factory=list)  # of single posts, with such ones


def forget(context: Context, ids: Iterable[str] = (), users: Iterable[str] = (), dry_run: bool = False) -> Takedown:
    """Takes down posts by id and by user; without either, finishes what was begun.

    Raises LockHeld, with the list written and nothing removed, while an artifact is built.
    """
    named = list(dict.fromkeys(ids)), list(dict.fromkeys(users))
    done = Takedown()
    if dry_run:
        takedowns = Takedowns.load(context.store.documents).adding("id", named[0]).adding("user", named[1])
        found = _survey(context.store, takedowns, named, done)
        done.removed = [artifact.base for artifact in found.artifacts]
        return done
    takedowns = Takedowns.record(context.store.documents, *named)  # first: from here on, every run finishes it
    try:
        with context.store.deleting(wait=False):
            for table in tables_of(context.store):
                fence(table)
            for left in context.store.leftovers(GRAPH, every_process=True):
                _remove(left, done)
            context.store.remove_locks(GRAPH)
            found = _survey(context.store, takedowns, named, done)
            takedowns.save(context.store.documents)
            done.texts = {*named[0], *named[1], *(row["id"] for row in found.rows if row["id"])}
            traces = Traces(done.texts)
            clear_logs(context.store, traces, done)
            clear_tables(context, takedowns, found, done)
            for artifact in found.artifacts:
                _remove_artifact(context.store, artifact, done)
            done.not_searched = sorted(traces.short)
            done.left = mentions(context, traces)
            takedowns.finished().save(context.store.documents)
            return done
    except LockHeld as held:
        _survey(context.store, takedowns, named, done)
        takedowns.save(context.store.documents)
        raise LockHeld(
            "an artifact of the study is being built: the takedown is recorded and nothing is removed yet; "
            "stop the run, or wait for its end, then run `hardmoe forget --apply` (it needs no file to finish)",
            held.path,
        ) from None


def _survey(store: ArtifactStore, takedowns: Takedowns, named: tuple[list[str], list[str]], done: Takedown) -> _Found:
    """Finds what was taken down in every store; records in `takedowns` and `done` what is found."""
    found, marked_ids = _Found(), set[str]()
    for row, table, file in _rows(store, takedowns):
        found.rows.append(row | {"accepted": table == tables_of(store).posts})
        found.files.setdefault(table, {})[file] = row["shard"]
    saw = networks_that_saw(store, {(row["shard"], row["id"]) for row in found.rows if row["accepted"]})
    done.saw = [network.label for network in saw]
    for row in found.rows:
        of_user = row["user"] and takedowns.holds(None, row["user"])
        if row["id"]:  # of a user's posts too: other artifacts know them by their ids alone
            takedowns.note("id", row["id"], [row["shard"]], done.saw)
        if of_user:
            takedowns.note("user", row["user"], [row["shard"]], done.saw)
    anything = bool(found.rows) or any(e.shards and not e.done for e in takedowns.entries.values())
    for artifact, ids in _artifacts(store):
        mine = {i for i in ids if takedowns.holds(i)} if ids is not None else set()
        marked_ids |= mine
        if mine or (ids is None and anything):
            found.artifacts.append(artifact)
    done.posts = len({(row["shard"], row["id"]) for row in found.rows})
    done.shards = sorted({row["shard"] for row in found.rows})
    done.unknown = [i for i in named[0] if i not in marked_ids and not takedowns.shards_of("id", i)]
    done.unknown += [user for user in named[1] if not takedowns.shards_of("user", user)]
    return found


def _rows(store: ArtifactStore, takedowns: Takedowns) -> Iterator[tuple[dict[str, Any], Table, str]]:
    """(shard, id and user of a row that was taken down; its table; its data file), in any version."""
    for table in tables_of(store):
        for file, shard, batch in search(table, ["id", "user"]):
            for row in batch.filter(pa.array(_marks(takedowns, batch))).to_pylist():
                yield {"user": None} | row | {"shard": shard}, table, file


def _marks(takedowns: Takedowns, batch: pa.RecordBatch) -> np.ndarray:
    """(B,) bool: rows that were taken down."""
    ids = batch["id"].to_pylist()
    users = batch["user"].to_pylist() if "user" in batch.schema.names else [None] * len(ids)
    return np.fromiter((takedowns.holds(i, user) for i, user in zip(ids, users, strict=True)), bool, len(ids))


def _artifacts(store: ArtifactStore) -> Iterator[tuple[Artifact, Iterable[str] | None]]:
    """All artifacts that hold something of single posts, with the ids of these; None where nobody can tell."""
    for name, stage in GRAPH.items():
        if stage.post_ids is not None:
            for artifact in store.everything(name):
                yield artifact, None if stage.post_ids == "unknown" else stage.post_ids(artifact)


def clear_tables(context: Context, takedowns: Takedowns, found: _Found, done: Takedown) -> None:
    """Rows, then tags of versions that held them, then versions and files; then artifacts that lost their tag."""
    current = _current(context, takedowns)
    for table in tables_of(context.store):
        files = found.files.get(table, {})
        for shard in sorted(set(files.values()) & set(shards_in(table))):
            rewrite(table, shard, keep=lambda batch: ~_marks(takedowns, batch))
        if files:
            tags = lance_tags(table)
            gather(table, [(shard, tag) for shard, tag in current if tag in tags])  # else they go as old rows do
            release(table, set(files))
        done.bytes += clean(table).bytes
    tagged = set.intersection(*(set(lance_tags(table)) for table in tables_of(context.store)))
    for artifact in context.store.everything("posts"):
        assert artifact.key is not None
        # one that was built before a takedown in its shard stays as a record: it is stale for good
        wanted_again = artifact.inputs.get("takedowns", "") == takedowns.hash_of(artifact.key)
        if lance_tag_of(artifact.key, artifact.version) not in tagged and wanted_again:
            _remove_artifact(context.store, artifact, done)


def _current(context: Context, takedowns: Takedowns) -> list[tuple[str, str]]:
    """(shard, tag) of the posts that the study reads next; none where its source is gone: takedowns do without."""
    try:
        rows = current_rows(context)
    except (HardmoeError, OSError):
        return []
    return [(key, tag) for key, tag in rows if takedowns.hash_of(key) == context.takedowns.hash_of(key)]


def _remove(left: Leftover, done: Takedown) -> None:
    done.bytes += left.size
    done.removed.append(left.name)
    left.remove()


def _remove_artifact(store: ArtifactStore, artifact: Artifact, done: Takedown) -> None:
    if artifact.base not in done.removed:
        done.bytes += artifact.place.size(artifact.base)
        done.removed.append(artifact.base)
        store.remove(artifact)


def clear_logs(store: ArtifactStore, traces: Traces, done: Takedown) -> None:
    """Removes our logs and caches that name the texts; all logs where a text is too short to be searched for."""
    layout = store.layout
    logs = [path for folder in (layout.logs, layout.progress_folder) for path in folder.rglob("*")]
    for path in (layout.content_hashes, *logs):
        if path.is_file() and (may_mention(path, traces) or (traces.short and path != layout.content_hashes)):
            _remove(left_at(layout, path), done)
    caches = [path for path in layout.source_cache.rglob("*") if path.is_file()]  # built again from the source
    if any(may_mention(path, traces) for path in caches):
        _remove(left_at(layout, layout.source_cache), done)
