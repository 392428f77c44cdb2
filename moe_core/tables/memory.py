"""Buffers of Arrow: copied out of longer ones, and given back to the system."""

import ctypes

import pyarrow as pa

TRIM_BYTES = 16 << 20
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
_bytes_passed = 0


def passed_on(size: int) -> None:
    """Gives memory back to the system from time to time; `size` is the bytes that were just handed on.

    Each of lance's threads allocates from an arena of its own, and glibc keeps what is freed there: without this,
    memory grows with the rows that were read until all arenas are full (benchmarks/memory.py).
    """
    global _bytes_passed
    _bytes_passed += size
    if _bytes_passed >= TRIM_BYTES:
        _bytes_passed = 0
        if _malloc_trim is not None:
            _malloc_trim(0)


def copied(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same rows in buffers of their own, every offset from zero: columns may be windows into longer ones.

    A list of strings whose rows in the window are all empty keeps offsets that begin behind the end of its values:
    Lance refuses such a column, and Arrow's IPC writes one (https://github.com/apache/arrow/issues/51406).
    """
    return pa.RecordBatch.from_arrays([pa.concat_arrays([column]) for column in batch.columns], schema=batch.schema)
