"""Buffers of Arrow: copied out of longer ones, and given back to the system."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

TRIM_BYTES = 16 << 20
MAPPED_FROM = 4 << 20  # bytes of a block; 1 << 20 saves no more, for twice the page faults
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
MOST = 32 << 20  # bytes that glibc's own threshold comes to, on 64 bits
_malloc_trim, _mallopt = (getattr(ctypes.CDLL(None), name, None) for name in ("malloc_trim", "mallopt"))  # of glibc
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


@contextmanager
def large_blocks_given_back() -> Iterator[None]:
    """Meanwhile blocks of MAPPED_FROM bytes and more go back to the system as soon as they are freed.

    Else glibc soon keeps freed blocks of up to MOST bytes in the arena of the thread that took them, and `malloc_trim`
    leaves the end of each arena but the first: of what lance reads ahead, memory grows with the rows of a shard. This
    costs page faults, so it is for a stage that passes over all the posts. Afterwards the thresholds are those that
    glibc itself comes to as a process goes on.
    """
    if _mallopt is None or _malloc_trim is None:
        yield
        return
    _mallopt(M_MMAP_THRESHOLD, MAPPED_FROM)
    _mallopt(M_TRIM_THRESHOLD, 2 * MAPPED_FROM)
    _malloc_trim(0)
    try:
        yield
    finally:
        _mallopt(M_MMAP_THRESHOLD, MOST)
        _mallopt(M_TRIM_THRESHOLD, 2 * MOST)


def copied(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same rows in buffers of their own, every offset from zero: columns may be windows into longer ones.

    A list of strings whose rows in the window are all empty keeps offsets that begin behind the end of its values:
    Lance refuses such a column, and Arrow's IPC writes one (https://github.com/apache/arrow/issues/51406).
    """
    return pa.RecordBatch.from_arrays([pa.concat_arrays([column]) for column in batch.columns], schema=batch.schema)
