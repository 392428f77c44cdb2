"""Rows of the tables that all shards share: accepted posts, and rejected ones."""

from collections.abc import Collection, Iterable

from moe_core.tables.location import Table, Tables
from moe_core.tables.reading import count_rows
from moe_core.tables.shards import gather, shards_in


def remove_gone_shards(tables: Iterable[Table], shards: Collection[str]) -> None:
    """Removes rows of other shards than `shards`, those of the source, from the latest version of each table.

    Their artifacts stay and keep the rows in older versions: a source that is only away for an hour costs nothing.
    """
    for table in tables:
        if gone := gone_shards(table, shards):
            gather(table, [(shard, None) for shard in gone])


def gone_shards(table: Table, shards: Collection[str]) -> list[str]:
    """Shards of a table that are none of `shards`."""
    return sorted(set(shards_in(table)) - set(shards))


def stored_counts(tables: Tables, shard: str, posts_version: int | str, rejects_version: int | str) -> tuple[int, int]:
    """(posts, rejects) of a shard that really are in the tables at these versions."""
    return count_rows(tables.posts, posts_version, shard), count_rows(tables.rejects, rejects_version, shard)
