"""Rows of the tables that all shards share: accepted posts, and rejected ones."""

from collections.abc import Collection, Iterable
from pathlib import Path

from moe_core.store.layout import Layout
from moe_core.tables.reading import count_rows
from moe_core.tables.shards import gather, shards_in


def remove_gone_shards(tables: Iterable[Path], shards: Collection[str]) -> None:
    """Removes rows of other shards than `shards`, those of the source, from the latest version of each table.

    Their artifacts stay and keep the rows in older versions: a source that is only away for an hour costs nothing.
    """
    for table in tables:
        if gone := gone_shards(table, shards):
            gather(table, [(shard, None) for shard in gone])


def gone_shards(table: Path, shards: Collection[str]) -> list[str]:
    """Shards of a table that are none of `shards`."""
    return sorted(set(shards_in(table)) - set(shards))


def stored_counts(root: Path, shard: str, posts_version: int | str, rejects_version: int | str) -> tuple[int, int]:
    """(posts, rejects) of a shard that really are in the tables at these versions."""
    layout = Layout(root)
    return (
        count_rows(layout.posts_table, posts_version, shard),
        count_rows(layout.rejects_table, rejects_version, shard),
    )
