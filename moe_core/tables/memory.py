"""Gives back memory that the threads of lance would keep."""

import ctypes

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
