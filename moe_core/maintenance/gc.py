"""Housekeeping of a store: what nothing points at any more leaves; shards in too many fragments are written again.

A Lance tag keeps the version that a posts artifact reads; a version goes when no Lance tag is left on it. Everything
here may be killed at any point and started again.
"""

import os
import socket
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_core.engine.context import Context
from moe_core.engine.planner import Blocked
from moe_core.errors import LockHeld
from moe_core.serving import publication
from moe_core.serving.publication import MANIFEST
from moe_core.stages.data.rows import DATA_SETS, gone_shards
from moe_core.stages.gate.current_partition import current_of
from moe_core.store.artifact import Artifact
from moe_core.store.files import dead_files, dead_parts, remove_atomically
from moe_core.store.locks import exclusive, not_open


@dataclass
class Tidied:
    """What was freed, or would be."""

    versions: int = 0  # of the Lance data sets
    files: int = 0
    bytes: int = 0
    rewritten: list[str] = field(default_factory=list)  # shards in fewer fragments now
    removed: list[str] = field(default_factory=list)  # folders and files, under the root
    sizes: list[int] = field(default_factory=list)  # bytes of each
    open: list[str] = field(default_factory=list)  # mixtures that would be removed, if no process had them open

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


def tidy(context: Context, dry_run: bool = False, superseded: bool = False) -> Tidied:
    """Cleans up. `superseded`: also artifacts of single posts that the study as it is now would not read, but for
    embeddings of the published mixture and the one before.

    Raises LockHeld while an artifact is being made.
    """
    with exclusive(context.store.in_use, wait=False):
        return _free(context, dry_run, leftovers(context.root), _superseded(context) if superseded else [])


def collect(context: Context, keep: int = 1, dry_run: bool = True) -> Tidied:
    """Takes away versions that nothing needs, and what else `tidy` frees.

    Kept are: what the study names now; what is published, what was before it, and their embeddings; mixtures that a
    process has open; the `keep` newest versions of each asset partition of the study; and whatever one of these was
    made from, down to the posts. Where it is not known yet what the study names, all versions stay.

    Raises LockHeld while an artifact is being made, and ValueError for a damaged manifest or published.json: what it
    points at cannot be told.
    """
    if keep < 0:
        raise ValueError(f"--keep {keep}: wanted 0 or more")
    with exclusive(context.store.in_use, wait=False), ExitStack() as removing:
        gone = [*leftovers(context.root), *_given_up(context)]
        old, in_use = _unneeded(context, keep, removing)
        done = _free(context, dry_run, gone, old)
        done.open = in_use
        return done


def _free(context: Context, dry_run: bool, gone: Iterable[Path], old: list[Artifact]) -> Tidied:
    """Files and folders, and artifacts with the rows that only they name. For those who hold the store alone."""
    from moe_core.tables import clean, lance_tags, rewrite, scattered

    done = Tidied()
    gone = list(gone)
    for path in [*gone, *(artifact.path for artifact in old)]:
        done.sizes.append(size_of(path))
        done.removed.append(str(path.relative_to(context.root)))
    done.bytes = sum(done.sizes)
    if not dry_run:
        for path in gone:
            remove_atomically(path)
        for artifact in old:
            context.store.remove(artifact)
    keep = _pins_of_artifacts(context, without=old)
    read = current_lance_tags(context)
    for path in (context.root / name for name in DATA_SETS):
        there = lance_tags(path)
        lost = [lance_tag for lance_tag in there if lance_tag.startswith("posts.") and lance_tag not in keep]
        for shard in scattered(path):
            done.rewritten.append(f"{path.name} {shard}")
            if not dry_run:
                rewrite(path, shard)
        places = [(shard, lance_tag) for shard, lance_tag in read if lance_tag in there]
        freed = clean(path, dry_run, [*places, *gone_shards(context, path)], lost)
        done.versions += freed.versions
        done.files += freed.files
        done.bytes += freed.bytes
    return done


def tidy_where_cheap(context: Context) -> Tidied | None:
    """What `hardmoe run` does by itself after posts changed; None when others are at work, who will do it later."""
    try:
        return tidy(context)
    except LockHeld:
        return None


def current_lance_tags(context: Context) -> list[tuple[str, str]]:
    """(shard, Lance tag) of the posts that the study reads, made or not."""
    from moe_core.tables import lance_tag_of

    return [(shard.key, lance_tag_of(shard.key, context.version("posts", shard.key))) for shard in context.shards]


def _pins_of_artifacts(context: Context, without: list[Artifact]) -> set[str]:
    from moe_core.tables import lance_tag_of

    gone = {artifact.path for artifact in without}
    return {
        lance_tag_of(artifact.key, artifact.version)
        for artifact in context.store.everything("posts")
        if artifact.key is not None and artifact.path not in gone
    }


def _superseded(context: Context) -> list[Artifact]:
    """Artifacts of stages that hold single posts that the study as it is now does not name."""
    from moe_core.stages.graph import GRAPH

    found, served = [], _served(context)
    needed = _followed(context)
    for name, stage in GRAPH.items():
        if stage.post_ids is None:
            continue
        keys = _keys(context, name)
        for artifact in context.store.everything(name):
            now = context.planner.spec(name, artifact.key) if artifact.key in keys else None
            # what is blocked may be current: nobody can say yet
            current = now is not None and (isinstance(now, Blocked) or now.version == artifact.version)
            if not current and artifact.inputs.get("mixture") not in served and artifact.version not in needed:
                found.append(artifact)
    return found


def _followed(context: Context) -> set[str]:
    """What the next partition follows, and the splits that the kept trunk was made from."""
    current = current_of(context.planner.state)
    return {context.frozen.version("splits")} | ({current.version} if current else set())


def _served(context: Context) -> set[str]:
    """Mixtures that are published, or were before. Raises ValueError for a damaged published.json."""
    book = publication.load(context.root)
    return {book.published, book.previous} - {publication.NOTHING}


def _unneeded(context: Context, keep: int, removing: ExitStack) -> tuple[list[Artifact], list[str]]:
    """(artifacts that nothing which is kept was made from, each before what it was made from; mixtures that are kept
    only because a process has them open). The others cannot be opened until the end of `removing`."""
    from moe_core.maintenance.lineage import Lineage
    from moe_core.stages.graph import GRAPH

    lineage = Lineage(context.store)
    versions: dict[tuple[str, str | None], list[Artifact]] = {}
    for version in lineage.places:
        artifact = lineage.artifact(version)
        versions.setdefault((artifact.asset, artifact.key), []).append(artifact)
    served = _served(context)
    roots = served | _followed(context)
    for (name, key), artifacts in versions.items():
        newest = sorted(artifacts, key=lambda a: a.made_at, reverse=True)
        if key in _keys(context, name):
            roots |= {artifact.version for artifact in newest[:keep]}
            now = _version_now(context, name, key)
            roots |= {artifact.version for artifact in artifacts} if now is None else {now}
        if name == "embeddings":
            roots |= {artifact.version for artifact in artifacts if artifact.inputs.get("mixture") in served}
    in_use = [
        mixture.version
        for mixture in versions.get(("mixture", None), ())
        if mixture.version not in roots and not not_open(mixture.path / MANIFEST, removing)
    ]
    kept = {one for root in [*roots, *in_use] if root in lineage.places for one in lineage.above(root)}
    order = list(GRAPH)
    gone = [lineage.artifact(version) for version in lineage.places if version not in kept]
    return sorted(gone, key=lambda a: (order.index(a.asset), a.made_at), reverse=True), in_use


def _version_now(context: Context, name: str, key: str | None) -> str | None:
    """What the study names now; None where another must be made to know it."""
    spec = context.planner.spec(name, key)
    return None if isinstance(spec, Blocked) else spec.version


def _keys(context: Context, name: str) -> Collection[str | None]:
    """Partition keys that the study has of a stage now."""
    return context.planner.keys(name) if name in context.planner.graph else ()


def _given_up(context: Context) -> Iterator[Path]:
    """Checkpoints of artifacts that the study as it is now does not make."""
    from moe_core.stages.graph import GRAPH

    for folder in _artifact_folders(context.root):
        name, *rest = folder.relative_to(context.root).parts
        key = rest[0] if rest else None
        if (key is None) != (GRAPH[name].keys is None):
            continue
        known = key in _keys(context, name)
        now = _version_now(context, name, key) if known else ""
        for path in folder.glob(".work-*") if now is not None else ():
            version = path.name.removeprefix(".work-")
            if version != now and not (folder / version / "artifact.json").exists():  # else it is a leftover
                yield path


def leftovers(root: Path, living: bool = False) -> Iterator[Path]:
    """Unfinished artifacts, checkpoints of what is complete, and locks: for those who hold the store alone, so that
    nothing is being made. Unfinished ones of every host, since each container has a name of its own; `living`: also of
    processes of this machine that run, which may have the number of one that is gone.
    """
    for folder in _artifact_folders(root):
        mine = set() if living else set(folder.glob(f".part-{socket.gethostname()}-*")) - set(dead_parts(folder))
        yield from (path for path in folder.glob(".part-*") if path not in mine)
        for path in folder.glob(".work-*"):
            if (folder / path.name.removeprefix(".work-") / "artifact.json").exists():
                yield path
        yield from folder.glob(".lock-*")
    for folder in (root, root / ".progress"):
        yield from dead_files(folder)


def _artifact_folders(root: Path) -> Iterator[Path]:
    """<root>/<asset> and <root>/<asset>/<key>."""
    from moe_core.stages.graph import GRAPH

    for name in GRAPH:
        asset = root / name
        if asset.is_dir():
            yield asset
            yield from (path for path in sorted(asset.iterdir()) if path.is_dir() and not path.name.startswith("."))


def size_of(path: Path) -> int:
    """Bytes of a file, or of all the files in a folder; of what is removed meanwhile, nothing."""
    files = [path] if path.is_file() else [Path(folder) / name for folder, _, names in os.walk(path) for name in names]
    size = 0
    for file in files:
        with suppress(FileNotFoundError):
            size += file.lstat().st_size
    return size
