"""Rows of one shard, or by their number in a version."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from moe_core.tables.location import Table
from moe_core.tables.memory import passed_on
from moe_core.tables.versions import at, fragments


def read_rows(table: Table, version: int | str, shard: str, columns: list[str]) -> pa.Table:
    """Rows of a shard at a version (number or Lance tag), in the order of the source; only its fragments are read."""
    data, pieces = at(table, version)
    of_shard = fragments(data, pieces, shard)
    if not of_shard:
        return pa.schema([data.schema.field(name) for name in columns]).empty_table()
    scanner = data.scanner(columns=columns, fragments=of_shard, scan_in_order=True)
    return table.ask(scanner.to_table)


def scan_rows(table: Table, version: int | str, shard: str, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
    """The rows of a shard at a version, in their order, at most `rows` at a time; nothing else is in memory."""
    data, pieces = at(table, version)
    of_shard = fragments(data, pieces, shard)
    if of_shard:
        with table.streaming():
            scanner = data.scanner(columns=columns, fragments=of_shard, batch_size=rows, scan_in_order=True)
            yield from scanner.to_batches()


def count_rows(table: Table, version: int | str, shard: str) -> int:
    """Number of rows of a shard at a version (number or Lance tag)."""
    return sum(piece.rows for piece in at(table, version)[1].get(shard, ()))


def take_rows(table: Table, version: int, rows_B: np.ndarray, columns: list[str]) -> pa.Table:
    """Rows of a version by their number (as `locate` gives it), in the order asked for."""
    data, _ = at(table, version)
    taken: pa.Table = table.ask(lambda: data.take(rows_B, columns=columns))
    passed_on(taken.nbytes)
    return taken


def find_row(table: Table, tag: str | None, shard: str, position: int, columns: list[str]) -> dict[str, Any] | None:
    """The row of a shard at a position of the source, at a Lance tag or in the latest version; None where there is
    none."""
    data, pieces = at(table, tag or int(table.open().version))
    of_shard = fragments(data, pieces, shard)
    if not of_shard:
        return None
    scanner = data.scanner(columns=columns, filter=f"position = {position:d}", limit=1, fragments=of_shard)
    rows: list[dict[str, Any]] = table.ask(scanner.to_table).to_pylist()
    return rows[0] if rows else None
