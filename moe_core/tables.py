"""Lance data sets: posts that are replaced a shard at a time, and vectors written once. The home of lance.

A reader names the version it means; a writer commits once, at the end, so a killed one leaves nothing visible.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from moe_core.store import exclusive

ROWS, BYTES = 65_536, 1 << 30  # of a fragment, at most: lance holds narrow columns of an unfinished one in memory
INDEX_FROM = 5_000  # rows below which a flat scan answers at once and an index would only cost


def replace_rows(path: Path, schema: pa.Schema, shard: str, batches: Iterable[pa.RecordBatch]) -> int:
    """Puts rows in the place of all rows of `shard`, in one commit; returns the version that holds them.

    Rows are written before the lock is taken, so shards are written in parallel and only their commits queue.
    """
    import lance
    from lance.fragment import write_fragments

    failures: list[Exception] = []  # lance passes what a batch raises on as text in an error of its own

    def noting() -> Iterator[pa.RecordBatch]:
        try:
            yield from batches
        except Exception as error:
            failures.append(error)
            raise

    reader = pa.RecordBatchReader.from_batches(schema, noting())
    with exclusive(path.with_name(f".{path.name}.lock")):
        if not path.exists():
            lance.write_dataset(schema.empty_table(), str(path), mode="create", data_storage_version="stable")
    try:
        new = write_fragments(reader, str(path), schema=schema, max_rows_per_file=ROWS, max_bytes_per_file=BYTES)
    except OSError as error:
        raise failures[0] if failures else error from None
    with exclusive(path.with_name(f".{path.name}.lock")):
        table = lance.dataset(str(path))
        old = table.scanner(columns=[], filter=_is(shard), with_row_address=True).to_table()["_rowaddr"].to_numpy()
        removed, kept = [], []
        for number in np.unique(old >> np.uint64(32)):
            fragment = table.get_fragment(int(number))
            assert fragment is not None  # its rows were just read
            rest: Any = fragment.delete(_is(shard))  # None when nothing of it is left
            if rest is None:
                removed.append(int(number))
            else:
                kept.append(rest.metadata)
        change = lance.LanceOperation.Update(
            removed_fragment_ids=removed, updated_fragments=kept, new_fragments=list(new)
        )
        return lance.LanceDataset.commit(str(path), change, read_version=table.version).version


def read_rows(path: Path, version: int, shard: str, columns: list[str]) -> pa.Table:
    """The rows of a shard at a version, in their order in the source."""
    wanted = [*columns, "position"] if "position" not in columns else columns
    rows = _at(path, version).to_table(columns=wanted, filter=_is(shard)).sort_by("position")
    return rows.select(columns)


def count_rows(path: Path, version: int, shard: str) -> int:
    """How many rows of a shard there are at a version."""
    return int(_at(path, version).count_rows(filter=_is(shard)))


def _at(path: Path, version: int) -> Any:
    import lance

    try:
        return lance.dataset(str(path), version=version)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} has no version {version} (was it cleaned up?): ingest again; {error}") from None


def write_vectors(path: Path, columns: dict[str, pa.Array], name: str, vectors_ND: np.ndarray, index: bool) -> None:
    """A new data set of `columns` and one float32 vector a row; with a cosine index where rows are many."""
    import lance

    width = vectors_ND.shape[1]
    flat = pa.array(np.ascontiguousarray(vectors_ND, np.float32).reshape(-1))
    table = pa.table(columns | {name: pa.FixedSizeListArray.from_arrays(flat, width)})
    data = lance.write_dataset(table, str(path), mode="create", data_storage_version="stable")
    if index and len(table) >= INDEX_FROM:
        data.create_index(name, "IVF_FLAT", metric="cosine", num_partitions=max(1, round(len(table) ** 0.5 / 4)))


def read_vectors(path: Path, name: str) -> np.ndarray:
    """(N, D) float32 in the order they were written."""
    import lance

    column = lance.dataset(str(path)).to_table(columns=[name])[name].combine_chunks()
    width = column.type.list_size
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)


def rows_of(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Batches of a data set that was written once."""
    import lance

    return lance.dataset(str(path)).to_batches(columns=columns)


def _is(shard: str) -> str:
    assert "'" not in shard
    return f"shard = '{shard}'"
