"""Takedown: posts leave every store, old versions and files included, and do not come back.

The order is the safety: the list of the forgotten is on the disk first, so whatever is killed afterwards, running it
again finishes; then logs, while the tables still tell which ids are a user's; then posts.lance and rejects.lance, whose
shards are written again without them; then tags and versions that still hold them; then artifacts of single posts. At
the end all that is left is searched for what names them. Networks that saw them stay, are named, and are stale.
"""

from __future__ import annotations

import glob
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_core.data.takedowns import Takedowns
from moe_core.data.traces import LOCKED_SECONDS, Traces, is_sqlite
from moe_core.engine.context import Context
from moe_core.errors import HardmoeError, LockHeld
from moe_core.maintenance.gc import current_lance_tags, leftovers, size_of
from moe_core.stages.data.rows import DATA_SETS
from moe_core.stages.gate import membership
from moe_core.store.artifact import Artifact
from moe_core.store.files import remove_atomically
from moe_core.store.locks import exclusive

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

HELD_OUT = ("validation", "test", "dropped")


@dataclass
class Takedown:
    """What was found and done, or would be."""

    posts: int = 0  # accepted and rejected ones
    shards: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)  # ids and users that no store holds; remembered all the same
    saw: list[str] = field(default_factory=list)  # networks made from the posts, "expert:e003 <version>"
    removed: list[str] = field(default_factory=list)  # artifacts and files, under the root
    bytes: int = 0
    left: list[str] = field(default_factory=list)  # files that still say an id or a user: not ours to change
    not_searched: list[str] = field(default_factory=list)  # ids and users that cannot be told from other text in files
    texts: set[str] = field(default_factory=set, repr=False)  # that nothing may say any more

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "texts"}


@dataclass
class _Found:
    """Of a survey over all versions: rows (shard, id, user, accepted), and what holds them."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, dict[str, str]] = field(default_factory=dict)  # data set -> data file -> shard
    artifacts: list[Artifact] = field(default_factory=list)


def forget(context: Context, ids: Iterable[str] = (), users: Iterable[str] = (), dry_run: bool = False) -> Takedown:
    """Takes down posts by id and by user; without either, finishes what was begun.

    Raises LockHeld, with the list written and nothing removed, while an artifact is being made.
    """
    asked = list(dict.fromkeys(ids)), list(dict.fromkeys(users))
    done = Takedown()
    if dry_run:
        book = Takedowns.load(context.root).adding("id", asked[0]).adding("user", asked[1])
        found = _survey(context, book, asked, done)
        done.removed = [str(a.path.relative_to(context.root)) for a in found.artifacts]
        return done
    book = Takedowns.record(context.root, *asked)  # on the disk first: whatever happens now, it is not forgotten
    try:
        with exclusive(context.store.in_use, wait=False):
            found = _survey(context, book, asked, done)
            book.save(context.root)
            done.texts = _texts(asked, found)
            traces = Traces(done.texts)
            _clear_logs(context, traces, done)
            _clear_tables(context, book, found, done)
            for path in (*(a.path for a in found.artifacts), *leftovers(context.root, living=True)):
                if path.exists():
                    _remove(context, path, done)
            done.not_searched = sorted(traces.short)
            done.left = _left(context, traces)
            book.finished().save(context.root)
            return done
    except LockHeld:
        _survey(context, book, asked, done)
        book.save(context.root)
        raise LockHeld(
            "an artifact of the study is being made: the takedown is written down and nothing is removed yet; "
            "stop the run, or wait for its end, then run `hardmoe forget --apply` (it needs no file to finish)"
        ) from None


def _survey(context: Context, book: Takedowns, asked: tuple[list[str], list[str]], done: Takedown) -> _Found:
    """Finds the forgotten in every store, and notes in `book` and `done` what is found."""
    from moe_core.tables import search

    found = _Found()
    for name in DATA_SETS:
        for file, shard, batch in search(context.root / name, ["id", "user"]):
            marked = _marked(book, batch)
            if len(marked):
                found.files.setdefault(name, {})[file] = shard
            for row in marked.to_pylist():
                found.rows.append(row | {"shard": shard, "accepted": name == "posts.lance"})
    done.saw = _networks(context, _trained_on(context, {(r["shard"], r["id"]) for r in found.rows if r["accepted"]}))
    for row in found.rows:
        of_user = row["user"] and book.holds(None, row["user"])
        if row["id"]:  # of a user's posts too: other artifacts know them by their ids alone
            book.note("id", row["id"], [row["shard"]], done.saw)
        if of_user:
            book.note("user", row["user"], [row["shard"]], done.saw)
    elsewhere: set[str] = set()
    anything = bool(found.rows) or any(e.shards and not e.done for e in book.entries.values())
    for artifact in _artifacts(context):
        held = _held(artifact)
        mine = {i for i in held if book.holds(i)} if held is not None else set()
        elsewhere |= mine
        if mine or (held is None and anything):
            found.artifacts.append(artifact)
    done.posts = len({(row["shard"], row["id"]) for row in found.rows})
    done.shards = sorted({row["shard"] for row in found.rows})
    done.unknown = [i for i in asked[0] if i not in elsewhere and not book.shards_of("id", i)]
    done.unknown += [user for user in asked[1] if not book.shards_of("user", user)]
    return found


def _marks(book: Takedowns, batch: pa.RecordBatch) -> np.ndarray:
    """(B,) bool: rows of the forgotten."""
    import numpy as np

    ids = batch["id"].to_pylist()
    users = batch["user"].to_pylist() if "user" in batch.schema.names else [None] * len(ids)
    return np.fromiter((book.holds(i, user) for i, user in zip(ids, users, strict=True)), bool, len(ids))


def _marked(book: Takedowns, batch: pa.RecordBatch) -> pa.RecordBatch:
    import pyarrow as pa

    marked = batch.filter(pa.array(_marks(book, batch)))
    return marked if "user" in batch.schema.names else marked.append_column("user", pa.nulls(len(marked), pa.string()))


def _artifacts(context: Context) -> Iterator[Artifact]:
    """All that say something of single posts."""
    from moe_core.stages.graph import GRAPH

    for name, stage in GRAPH.items():
        if stage.post_ids is not None:
            yield from context.store.everything(name)


def _held(artifact: Artifact) -> Iterable[str] | None:
    """Ids of the posts in an artifact; None where it cannot tell."""
    from moe_core.stages.graph import GRAPH

    post_ids = GRAPH[artifact.asset].post_ids
    assert post_ids is not None
    return None if post_ids == "unknown" else post_ids(artifact)


def _trained_on(context: Context, posts: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Posts (shard, id) but for those that every splits artifact here holds out; in doubt, one was trained on."""
    import polars as pl

    wanted = pl.DataFrame(sorted(posts), schema={"shard": pl.String, "id": pl.String}, orient="row")
    held, trained = set[tuple[str, str]](), set[tuple[str, str]]()
    for artifact in context.store.everything("splits"):
        rows = pl.read_parquet(artifact.file("splits.parquet"), glob=False).join(wanted, on=["shard", "id"], how="semi")
        for shard, post_id, split in rows.select("shard", "id", "split").iter_rows():
            (held if split in HELD_OUT else trained).add((shard, post_id))
    return posts - (held - trained)


def _networks(context: Context, training: set[tuple[str, str]]) -> list[str]:
    """Networks on the disk that were made from training posts (shard, id); in doubt, one did.

    An expert names its members' digest, and so does the partition whose assignment lists them. Of the trunks, all are
    taken to have seen the posts; a decoder or mixture did when a network that it was made from did.
    """
    import polars as pl

    if not training:
        return []
    store = context.store
    known: set[str] = set()
    mine: set[str] = set()
    posts = pl.DataFrame(sorted(training), schema={"shard": pl.String, "id": pl.String}, orient="row")
    for partition in store.everything("partition"):
        rows = pl.read_parquet(partition.file("assignment.parquet"), glob=False).join(
            posts, on=["shard", "id"], how="semi"
        )
        trained = "trained.parquet" in partition.files
        kept = (
            pl.read_parquet(partition.file("trained.parquet"), glob=False).join(posts, on="id", how="semi")
            if trained
            else None
        )
        for column, name in (("expert", "members"), ("random", "random_members")):
            members = partition.metadata[name]
            known |= set(members.values())
            if kept is None:
                keys = list(members)
                mine |= {members[keys[k]] for k in rows[column].unique().to_list()}
            else:
                mine |= {members[key] for key in kept.filter(pl.col("of") == column)["key"].unique().to_list()}
    saw = {a.version: a for name in ("trunk", "dense_same_cost") for a in store.everything(name)}
    for name in ("joint_experts", "random_joint_experts"):  # of all its experts' posts, through the decoder
        for a in store.everything(name):
            shards = {digest for key, digest in a.inputs.items() if key != "trunk"}
            if shards & mine or shards - known:
                saw[a.version] = a
    for name in ("expert", "random_expert", "separate_expert"):
        for a in store.everything(name):
            of_generation = a.inputs.get("joint_experts") or a.inputs.get("random_joint_experts")
            if a.inputs["members"] in mine or a.inputs["members"] not in known or of_generation in saw:
                saw[a.version] = a
        for _ in range(membership.LINEAGE):  # one that went on from weights that saw them did, too
            saw |= {a.version: a for a in store.everything(name) if a.inputs.get("from") in saw}
    for name in ("trunk_same_budget", "shared_decoder", "random_decoder", "mixture"):
        saw |= {a.version: a for a in store.everything(name) if set(a.inputs.values()) & set(saw)}
    return [network_name(a.asset, a.key, a.version) for a in saw.values()]


def network_name(asset: str, key: str | None, version: str) -> str:
    """As it is listed and remembered."""
    return f"{asset if key is None else f'{asset}:{key}'} {version}"


def _clear_tables(context: Context, book: Takedowns, found: _Found, done: Takedown) -> None:
    """Rows, then the Lance tags of versions that held them, then versions and files; then artifacts without a tag."""
    from moe_core.tables import clean, gather, lance_tag_of, lance_tags, release, rewrite, shards_in

    current = _current(context, book)
    for name in DATA_SETS:
        path = context.root / name
        bad = found.files.get(name, {})
        for shard in sorted(set(bad.values()) & set(shards_in(path))):
            rewrite(path, shard, keep=lambda batch: ~_marks(book, batch))
        if bad:
            there = lance_tags(path)
            gather(path, [(shard, tag) for shard, tag in current if tag in there])  # else they would go as old rows do
            release(path, set(bad))
        done.bytes += clean(path).bytes
    tagged = set.intersection(*(set(lance_tags(context.root / name)) for name in DATA_SETS))
    for artifact in context.store.everything("posts"):
        assert artifact.key is not None
        # one that was made before posts of its shard were forgotten stays as a record: it is stale for good
        wanted_again = artifact.inputs.get("forgotten", "") == book.hash_of(artifact.key)
        if lance_tag_of(artifact.key, artifact.version) not in tagged and wanted_again:
            _remove(context, artifact.path, done)


def _current(context: Context, book: Takedowns) -> list[tuple[str, str]]:
    """(shard, tag) of posts that the study goes on to read; none where its source is gone: takedowns do without."""
    try:
        read = current_lance_tags(context)
    except (HardmoeError, OSError):
        return []
    return [(key, lance_tag) for key, lance_tag in read if book.hash_of(key) == context.takedowns.hash_of(key)]


def _remove(context: Context, path: Any, done: Takedown) -> None:
    done.bytes += size_of(path)
    done.removed.append(str(path.relative_to(context.root)))
    remove_atomically(path)


def _texts(asked: tuple[list[str], list[str]], found: _Found) -> set[str]:
    """What names the forgotten in a text: what was asked for, and the ids of users' posts."""
    return {*asked[0], *asked[1], *(row["id"] for row in found.rows if row["id"])}


def _clear_logs(context: Context, traces: Traces, done: Takedown) -> None:
    """Removes our logs and caches that name the forgotten. Logs go all where an id is too short to be looked for."""
    sources, digests = context.root / ".sources", context.root / ".digests.json"
    logs = [path for name in ("logs", ".progress") for path in (context.root / name).rglob("*")]
    for path in (digests, *logs):
        if path.is_file() and (_may_say(path, traces) or (traces.short and path != digests)):
            _remove(context, path, done)
    caches = [path for path in sources.rglob("*") if path.is_file()]  # made again from the source where it is wanted
    if any(_may_say(path, traces) for path in caches):
        _remove(context, sources, done)


def _may_say(cache: Path, traces: Traces) -> bool:
    try:
        return traces.occur_in(cache) or (
            is_sqlite(cache) and any(True for _ in traces.rows_with_ids(cache, exactly=True))
        )
    except sqlite3.Error:
        return True


def _left(context: Context, traces: Traces) -> list[str]:
    """What still names the forgotten: all files under the root and of Dagster but for those that are known to hold
    none: rows of posts and complete artifacts, which were searched by their ids, weights, and the source's own files.
    """
    if not traces:
        return []
    own = context.root / "dagster"
    home = Path(os.environ.get("DAGSTER_HOME") or own)
    found = [*traces_in(own, traces), *(traces_in(home, traces) if home.resolve() != own.resolve() else ())]
    found += [name for path in _searched(context) for name in _named(path, traces)]
    root = f"{context.root}{os.sep}"
    return [name.removeprefix(root) for name in dict.fromkeys(found)]


def traces_in(place: Path, traces: Traces) -> list[str]:
    """Files of Dagster's, in a folder or a database, that name the forgotten. What databases deleted is overwritten
    first."""
    paths = place.rglob("*") if place.is_dir() else place.parent.glob(f"{glob.escape(place.name)}*")
    files = [path for path in sorted(paths) if path.is_file()]
    for path in files:
        if path.suffix in (".db", ".sqlite") and is_sqlite(path):
            _compact(path, traces)
    return [name for path in files for name in _named(path, traces)]


def _named(path: Path, traces: Traces) -> list[str]:
    """The path, where the file names the forgotten; with the runs, where it is a database of Dagster's."""
    try:
        if not traces.occur_in(path):
            return []
        rows = list(traces.rows_with_ids(path)) if is_sqlite(path) else []
    except FileNotFoundError:  # a log of a database that was open
        return []
    except sqlite3.Error as error:
        return [f"{path} (cannot be searched: {error})"]
    runs = {str(value) for _, row in rows if (value := _text(row.get("run_id") or row.get("last_run_id")))}
    return [f"{path} (runs {', '.join(sorted(runs))})" if runs else str(path)]


def _text(cell: object) -> str:
    return cell.decode("utf-8", "replace") if isinstance(cell, bytes) else ""


def _compact(path: Path, traces: Traces) -> None:
    """Rewrites a database where deleted rows may still lie in it. One that others use now stays as it is."""
    log = path.with_name(f"{path.name}-wal")
    with suppress(sqlite3.Error, OSError), closing(sqlite3.connect(path, timeout=LOCKED_SECONDS)) as database:
        database.isolation_level = None
        (free,) = database.execute("PRAGMA freelist_count").fetchone()
        if free or traces.occur_in(path) or (log.exists() and log.stat().st_size):
            database.execute("PRAGMA secure_delete = ON")
            database.execute("VACUUM")
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _searched(context: Context) -> Iterator[Path]:
    """Files under the root that nobody has looked into yet."""
    source = context.study.source
    theirs = [Path(text).resolve() for text in (source.uri, source.images, source.table) if text]
    complete = {a.path for name in _saying_nothing() for a in context.store.everything(name)}
    for name, folders, files in os.walk(context.root):
        folder = Path(name)
        folders[:] = [
            name
            for name in sorted(folders)
            if (folder / name) not in complete
            and (folder / name).resolve() not in theirs
            and not (folder == context.root and name == "dagster")
            and not (folder.suffix == ".lance" and name == "data")
        ]
        for name in sorted(files):
            path = folder / name
            if path.is_file() and path.suffix != ".safetensors" and path.resolve() not in theirs:
                yield path


def _saying_nothing() -> list[str]:
    """Stages whose artifacts say nothing of single posts: their hashtags are not looked into, which may be names."""
    from moe_core.stages.graph import GRAPH

    return [name for name, stage in GRAPH.items() if stage.post_ids is None]
