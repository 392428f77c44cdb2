"""Sweep: removes artifacts, files and rows that nothing refers to any more. Knows versions and names, no graph.

May be killed at any point and started again. Callers hold the store alone.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from moe_core.stages.data.rows import gone_shards
from moe_core.store.artifact import Artifact
from moe_core.store.leftovers import Leftover
from moe_core.store.protocols import ArtifactStore
from moe_core.tables.cleaning import clean
from moe_core.tables.lance_tags import lance_tag_of, lance_tags
from moe_core.tables.location import tables_of
from moe_core.tables.shards import rewrite, scattered


@dataclass
class Freed:
    """What was freed, or would be."""

    versions: int = 0  # of the tables
    files: int = 0  # of the tables
    bytes: int = 0
    rewritten: list[str] = field(default_factory=list)  # shards that are in fewer fragments now
    removed: list[str] = field(default_factory=list)  # relative to the root, or to the bucket
    sizes: list[int] = field(default_factory=list)  # bytes of each
    open: list[str] = field(default_factory=list)  # mixtures that are kept only because a process has them open

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


def sweep(
    store: ArtifactStore,
    left: Iterable[Leftover],
    artifacts: Iterable[Artifact],
    current: Iterable[tuple[str, str]],
    shards: Collection[str],
    dry_run: bool = False,
) -> Freed:
    """Removes leftovers, then artifacts with the rows that only they refer to.

    `current` are the rows (shard, tag) that are read next: they stay in the latest version of the tables, and so do no
    rows of other shards than `shards`.
    """
    freed, removed = Freed(), list(artifacts)
    for one in [*(left := list(left)), *(Leftover(artifact.place, artifact.base) for artifact in removed)]:
        freed.sizes.append(one.size)
        freed.removed.append(one.name)
    freed.bytes = sum(freed.sizes)
    if not dry_run:
        for one in left:
            one.remove()
        for artifact in removed:
            store.remove(artifact)
    tags, current = _tags_of_posts(store, {artifact.base for artifact in removed}), list(current)
    for table in tables_of(store):
        there = lance_tags(table)
        for shard in scattered(table):  # they are written again in whole fragments
            freed.rewritten.append(f"{table.name} {shard}")
            if not dry_run:
                rewrite(table, shard)
        places: list[tuple[str, str | None]] = [(shard, tag) for shard, tag in current if tag in there]
        places += [(shard, None) for shard in gone_shards(table, shards)]
        lost = [tag for tag in there if tag.startswith("posts.") and tag not in tags]
        cleaned = clean(table, dry_run, places, lost)
        freed.versions += cleaned.versions
        freed.files += cleaned.files
        freed.bytes += cleaned.bytes
    return freed


def _tags_of_posts(store: ArtifactStore, removed: set[str]) -> set[str]:
    """Tags of rows that an artifact in the store refers to, but for `removed` ones."""
    return {
        lance_tag_of(artifact.key, artifact.version)
        for artifact in store.everything("posts")
        if artifact.key is not None and artifact.base not in removed
    }
