"""The assignment of posts to experts in a partition: a Parquet file for each shard, in the folder `assignment`.

Columns shard, id, split, expert, random, trained and new_since_fit of all the posts of the shard, in the one order.
trained: a network that is kept was trained on the post; new_since_fit: it came since the gate was fitted. Partitions
that were built before have all shards in one file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_core.store.artifact import Artifact

if TYPE_CHECKING:
    import polars as pl

ONE_FILE = "assignment.parquet"
ROWS = 65_536  # read at once


def file_of(shard: str) -> str:
    return f"assignment/{shard}.parquet"


def files_of(artifact: Artifact) -> list[Path]:
    """All of its files, their bytes checked."""
    names = sorted(name for name in artifact.files if name == ONE_FILE or name.startswith("assignment/"))
    return [artifact.file(name) for name in names]


def read_shard(artifact: Artifact, shard: str, columns: Sequence[str]) -> pl.DataFrame:
    """Columns of the posts of one shard."""
    import polars as pl

    if ONE_FILE in artifact.files:
        rows = pl.scan_parquet(artifact.file(ONE_FILE), glob=False)
        return rows.filter(pl.col("shard") == shard).select(columns).collect()
    return pl.read_parquet(artifact.file(file_of(shard)), columns=list(columns), glob=False)


def batches(artifact: Artifact, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Columns of all its posts, some at a time, shard by shard."""
    import polars as pl
    import pyarrow.parquet as pq

    for path in files_of(artifact):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS, columns=list(columns)):
                yield pl.DataFrame(batch).select(columns)
