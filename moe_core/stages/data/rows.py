"""Rows of the tables that several stages share: posts.lance, and rejects.lance for what was not accepted."""

from __future__ import annotations

from pathlib import Path

from moe_core.engine.context import Context
from moe_core.tables import gather, shards_in

DATA_SETS = ("posts.lance", "rejects.lance")


def remove_gone_shards(context: Context) -> list[str]:
    """Removes rows of shards that are no longer in the source from the latest version.

    Their artifacts stay, and keep the rows until `gc`: a source that was only away for an hour costs nothing.
    """
    gone: set[str] = set()
    for path in (context.root / name for name in DATA_SETS):
        places = gone_shards(context, path)
        if places:
            gather(path, places)
            gone |= {shard for shard, _ in places}
    return sorted(gone)


def gone_shards(context: Context, path: Path) -> list[tuple[str, None]]:
    """(shard, no version) of a table's shards that are no longer in the source."""
    return [(shard, None) for shard in sorted(set(shards_in(path)) - {shard.key for shard in context.shards})]
