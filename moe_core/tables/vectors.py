"""Data sets of one vector a row, written once."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from moe_core.tables.memory import copied
from moe_core.tables.paths import open_path

PART = 16_384  # rows read at once


def write_vectors(
    path: Path,
    columns: dict[str, pa.DataType],
    name: str,
    width: int,
    parts: Iterable[tuple[dict[str, pa.Array], np.ndarray]],
) -> int:
    """Writes a data set of some columns and one float32 vector a row, part by part; returns the number of rows."""
    import lance

    schema = pa.schema([*columns.items(), (name, pa.list_(pa.float32(), width))])
    stream = (copied(_with_vectors(rest, name, vectors_BD).cast(schema)) for rest, vectors_BD in parts)
    reader = pa.RecordBatchReader.from_batches(schema, stream)
    with open_path(path) as openable:
        data = lance.write_dataset(reader, openable, mode="create", data_storage_version="stable")
        return int(data.count_rows())


def _with_vectors(columns: dict[str, pa.Array], name: str, vectors_BD: np.ndarray) -> pa.RecordBatch:
    flat = pa.array(np.ascontiguousarray(vectors_BD, np.float32).reshape(-1))
    return pa.record_batch(columns | {name: pa.FixedSizeListArray.from_arrays(flat, vectors_BD.shape[1])})


def vectors_in(path: Path, name: str) -> Iterator[np.ndarray]:
    """(B, D) float32, part by part in the order they were written."""
    for column in column_in(path, name):
        yield column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)


def ids_in(path: Path) -> Iterator[str]:
    """The column `id` of a data set that was written once."""
    for column in column_in(path, "id"):
        yield from column.to_pylist()


def column_in(path: Path, name: str) -> Iterator[pa.Array]:
    """A column of a data set that was written once, part by part."""
    import lance

    with open_path(path) as openable:
        for batch in lance.dataset(openable).to_batches(columns=[name], batch_size=PART):
            yield batch[name]


def vectors_at(path: Path, name: str, rows_M: np.ndarray) -> np.ndarray:
    """(M, D) float32: vectors of some rows, in the order asked for; nothing else is read."""
    import lance

    with open_path(path) as openable:
        column = lance.dataset(openable).take(rows_M, columns=[name])[name].combine_chunks()
    vectors_MD: np.ndarray = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
    return vectors_MD
