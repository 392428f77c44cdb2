"""Lance data sets: posts that are replaced a shard at a time, and vectors written once. The home of lance.

A reader names the version it means; a writer commits once, at the end, so a killed one leaves nothing visible.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from moe_core.store import exclusive

PART = 16_384  # vectors read at once
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
        new = write_fragments(reader, str(path), schema=schema)
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
    import lance

    try:
        table = lance.dataset(str(path), version=version)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} has no version {version} (was it cleaned up?): ingest again; {error}") from None
    wanted = [*columns, "position"] if "position" not in columns else columns
    rows = table.to_table(columns=wanted, filter=_is(shard)).sort_by("position")
    return rows.select(columns)


def locate(path: Path, version: int, shard: str) -> np.ndarray:
    """(N,) int64: the row of each of the shard's posts in that version, in their order in the source."""
    positions, shards = _layout(path, version)
    rows = np.flatnonzero(shards == shard)
    return rows[np.argsort(positions[rows], kind="stable")]


def take_rows(path: Path, version: int, rows_B: np.ndarray, columns: list[str]) -> pa.Table:
    """Rows of a version by their number, in the order asked for."""
    return _opened(path, version).take(rows_B, columns=columns)


@lru_cache(maxsize=4)
def _layout(path: Path, version: int) -> tuple[np.ndarray, np.ndarray]:
    table = _opened(path, version).to_table(columns=["position", "shard"])
    return table["position"].to_numpy(), table["shard"].to_numpy()


@lru_cache(maxsize=16)
def _opened(path: Path, version: int) -> Any:
    import lance

    return lance.dataset(str(path), version=version)


def write_vectors(path: Path, name: str, parts: Iterable[tuple[dict[str, pa.Array], np.ndarray]], index: bool) -> int:
    """A new data set of some columns and one float32 vector a row, part by part; returns the number of rows.

    With `index`, a cosine index for search where rows are many. Raises ValueError where there is no part.
    """
    import lance

    stream = (_with_vectors(columns, name, vectors_BD) for columns, vectors_BD in parts)
    first = next(stream, None)
    if first is None:
        raise ValueError(f"no rows for {path}: wanted at least one")
    reader = pa.RecordBatchReader.from_batches(first.schema, chain([first], stream))
    data = lance.write_dataset(reader, str(path), mode="create", data_storage_version="stable")
    rows = data.count_rows()
    if index and rows >= INDEX_FROM:
        data.create_index(name, "IVF_FLAT", metric="cosine", num_partitions=max(1, round(rows**0.5 / 4)))
    return rows


def _with_vectors(columns: dict[str, pa.Array], name: str, vectors_BD: np.ndarray) -> pa.RecordBatch:
    flat = pa.array(np.ascontiguousarray(vectors_BD, np.float32).reshape(-1))
    return pa.record_batch(columns | {name: pa.FixedSizeListArray.from_arrays(flat, vectors_BD.shape[1])})


def vectors_in(path: Path, name: str) -> Iterator[np.ndarray]:
    """(B, D) float32, part by part in the order they were written."""
    import lance

    for batch in lance.dataset(str(path)).to_batches(columns=[name], batch_size=PART):
        column = batch[name]
        yield column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)


def _is(shard: str) -> str:
    assert "'" not in shard
    return f"shard = '{shard}'"
