"""Rows of one shard, or by their number in a version."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from moe_core.tables.memory import passed_on
from moe_core.tables.versions import at, fragments


def read_rows(path: Path, version: int | str, shard: str, columns: list[str]) -> pa.Table:
    """The rows of a shard at a version (number or pin), in their order in the source; only its fragments are read."""
    table, pieces = at(path, version)
    mine = fragments(table, pieces, shard)
    if not mine:
        return pa.schema([table.schema.field(name) for name in columns]).empty_table()
    return table.scanner(columns=columns, fragments=mine, scan_in_order=True).to_table()


def scan_rows(path: Path, version: int | str, shard: str, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
    """The rows of a shard at a version, in their order, at most `rows` at a time; nothing else is in memory."""
    table, pieces = at(path, version)
    mine = fragments(table, pieces, shard)
    if mine:
        scanner = table.scanner(columns=columns, fragments=mine, batch_size=rows, scan_in_order=True)
        yield from scanner.to_batches()


def read_positions(path: Path, version: int | str, shard: str, positions: list[int], columns: list[str]) -> pa.Table:
    """Some rows of a shard at a version, by rising position."""
    table, pieces = at(path, version)
    said = f"position IN ({', '.join(map(str, positions))})"
    mine = fragments(table, pieces, shard)
    return table.scanner(columns=columns, filter=said, fragments=mine, scan_in_order=True).to_table()


def count_rows(path: Path, version: int | str, shard: str) -> int:
    """How many rows of a shard there are at a version (number or pin)."""
    return sum(piece.rows for piece in at(path, version)[1].get(shard, ()))


def take_rows(path: Path, version: int, rows_B: np.ndarray, columns: list[str]) -> pa.Table:
    """Rows of a version by their number (of `locate`), in the order asked for."""
    table, _ = at(path, version)
    taken: pa.Table = table.take(rows_B, columns=columns)
    passed_on(taken.nbytes)
    return taken
