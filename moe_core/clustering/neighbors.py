"""Near codes by FAISS's multi-index hashing: exact, in time that grows with the number of pairs.

A code is cut into blocks. Codes that differ in at most 2 x blocks - 1 bits differ in at most one bit in some block, so
looking up each block as it is and with each of its bits flipped finds them all (Norouzi, Punjani, Fleet, CVPR 2012).
"""

from collections.abc import Iterator

import numpy as np

from moe_core.clustering.faiss_build import import_faiss

WIDEST_BLOCK = 32  # bits: already more buckets than there are codes
FIRST_CHUNK, LARGEST_CHUNK = 1024, 1 << 16  # codes looked up at once
FOUND_AT_ONCE = 1 << 22  # neighbors held at once, as far as the last chunk tells


def near_pairs(codes_MB: np.ndarray, radius: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every pair (i, j), i < j, of rows of uint8 that differ in at most `radius` bits, some at a time.

    Rows should differ: n equal ones are n^2 / 2 pairs. Raises ValueError for a radius that leaves blocks of no bits.
    """
    width = codes_MB.shape[1] * 8
    blocks = max(2, radius // 2 + 1)
    if radius < 0 or blocks * 2 > width:
        raise ValueError(f"radius {radius} of codes of {width} bits: wanted 0 to {width // 2 - 1}")
    codes_MB = np.ascontiguousarray(codes_MB)
    index = import_faiss().IndexBinaryMultiHash(width, blocks, min(WIDEST_BLOCK, width // blocks))
    index.nflip = 1
    index.add(codes_MB)
    first, chunk = 0, FIRST_CHUNK
    while first < len(codes_MB):
        last = min(first + chunk, len(codes_MB))
        limits, _, j_P = index.range_search(codes_MB[first:last], radius + 1)  # FAISS's radius is exclusive
        i_P = np.repeat(np.arange(first, last), _steps(limits))
        once = i_P < j_P
        yield i_P[once], j_P[once]
        chunk = int(np.clip(chunk * FOUND_AT_ONCE / max(len(j_P), 1), 1, min(2 * chunk, LARGEST_CHUNK)))
        first = last


def pairs_by_scan(queries_QB: np.ndarray, codes_MB: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """(query, row) of every pair within `radius`, by comparing all with all: what `near_pairs` is checked against."""
    index = import_faiss().IndexBinaryFlat(codes_MB.shape[1] * 8)
    index.add(np.ascontiguousarray(codes_MB))
    limits, _, row_P = index.range_search(np.ascontiguousarray(queries_QB), radius + 1)
    return np.repeat(np.arange(len(queries_QB)), _steps(limits)), row_P


def _steps(limits: np.ndarray) -> np.ndarray:
    limits = limits.astype(np.int64)
    return limits[1:] - limits[:-1]
