"""Rows of one shard, or by their number in a version."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from moe_core.tables.memory import passed_on
from moe_core.tables.versions import at, fragments


def read_rows(path: Path, version: int | str, shard: str, columns: list[str]) -> pa.Table:
    """Rows of a shard at a version (number or Lance tag), in the order of the source; only its fragments are read."""
    table, pieces = at(path, version)
    of_shard = fragments(table, pieces, shard)
    if not of_shard:
        return pa.schema([table.schema.field(name) for name in columns]).empty_table()
    return table.scanner(columns=columns, fragments=of_shard, scan_in_order=True).to_table()


def scan_rows(path: Path, version: int | str, shard: str, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
    """The rows of a shard at a version, in their order, at most `rows` at a time; nothing else is in memory."""
    table, pieces = at(path, version)
    of_shard = fragments(table, pieces, shard)
    if of_shard:
        scanner = table.scanner(columns=columns, fragments=of_shard, batch_size=rows, scan_in_order=True)
        yield from scanner.to_batches()


def count_rows(path: Path, version: int | str, shard: str) -> int:
    """Number of rows of a shard at a version (number or Lance tag)."""
    return sum(piece.rows for piece in at(path, version)[1].get(shard, ()))


def take_rows(path: Path, version: int, rows_B: np.ndarray, columns: list[str]) -> pa.Table:
    """Rows of a version by their number (as `locate` gives it), in the order asked for."""
    table, _ = at(path, version)
    taken: pa.Table = table.take(rows_B, columns=columns)
    passed_on(taken.nbytes)
    return taken
