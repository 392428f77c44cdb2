"""Users' Lance tables, as a source."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import lance
import pyarrow as pa

from moe_core.errors import BadSource
from moe_core.tables.paths import open_path
from moe_core.text import one_line


@dataclass(frozen=True)
class TableInfo:
    """Schema, rows and version of a user's Lance table."""

    schema: pa.Schema
    rows: int
    version: int


def table_info(uri: str) -> TableInfo:
    """Raises BadSource where there is no readable table."""
    try:
        with _path_of(uri) as path:
            table = lance.dataset(path)
            return TableInfo(table.schema, table.count_rows(), table.version)
    except (ValueError, OSError) as error:
        raise BadSource(
            f"{uri} is not a readable Lance table: {one_line(error)}; damaged, or still being copied?"
        ) from None


def scan_table(uri: str, columns: list[str], rows: int, size: int) -> Iterator[pa.RecordBatch]:
    """Batches in the order of the table, of at most `rows` rows and `size` bytes on average. BadSource for damage."""
    try:
        with _path_of(uri) as path:
            table = lance.dataset(path)
            total = sum(f.file_size_bytes or 0 for part in table.get_fragments() for f in part.metadata.files)
            # rows are what bounds lance's memory: it decodes some batches ahead, and only then cuts them to bytes
            fitting = size * table.count_rows() // max(1, 4 * total)
            yield from table.scanner(
                columns=columns,
                batch_size=max(1, min(rows, fitting)),
                batch_size_bytes=size // 4,
                batch_readahead=1,
                fragment_readahead=1,
                io_buffer_size=size // 2,
                blob_handling="all_binary",  # else a column of blobs is their places, not their bytes
            ).to_batches()
    except (ValueError, OSError) as error:
        raise BadSource(f"{uri} is damaged: {one_line(error)}; copy it again, or take it away") from None


def _path_of(uri: str) -> AbstractContextManager[str]:
    return nullcontext(uri) if "://" in uri else open_path(Path(uri))
