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


def blocks_of(width: int, radius: int) -> tuple[int, int]:
    """(blocks, bits of each) into which codes of `width` bits are cut to find all within `radius`.

    Raises ValueError for a radius that leaves blocks of no bits.
    """
    blocks = max(2, radius // 2 + 1)
    if radius < 0 or blocks * 2 > width:
        raise ValueError(f"radius {radius} of codes of {width} bits: wanted 0 to {width // 2 - 1}")
    return blocks, min(WIDEST_BLOCK, width // blocks)


def near_pairs(
    codes_MB: np.ndarray, radius: int, first_Q: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every pair (i, j), i < j, of rows of uint8 that differ in at most `radius` bits, some at a time.

    With `first_Q`, ascending rows, only the pairs whose i is one of these. Rows should differ: n equal ones are n^2 / 2
    pairs. Raises ValueError for a radius that leaves blocks of no bits.
    """
    width = codes_MB.shape[1] * 8
    blocks, bits = blocks_of(width, radius)
    codes_MB = np.ascontiguousarray(codes_MB)
    index = import_faiss().IndexBinaryMultiHash(width, blocks, bits)
    index.nflip = 1
    index.add(codes_MB)
    row_Q = np.arange(len(codes_MB)) if first_Q is None else first_Q
    first, chunk = 0, FIRST_CHUNK
    while first < len(row_Q):
        row_C = row_Q[first : first + chunk]
        limits, _, j_P = index.range_search(codes_MB[row_C], radius + 1)  # FAISS's radius is exclusive
        i_P = np.repeat(row_C, _steps(limits))
        once = i_P < j_P
        yield i_P[once], j_P[once]
        first += len(row_C)
        chunk = int(np.clip(chunk * FOUND_AT_ONCE / max(len(j_P), 1), 1, min(2 * chunk, LARGEST_CHUNK)))


def pairs_by_scan(queries_QB: np.ndarray, codes_MB: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """(query, row) of every pair within `radius`, by comparing all with all: what `near_pairs` is checked against."""
    index = import_faiss().IndexBinaryFlat(codes_MB.shape[1] * 8)
    index.add(np.ascontiguousarray(codes_MB))
    limits, _, row_P = index.range_search(np.ascontiguousarray(queries_QB), radius + 1)
    return np.repeat(np.arange(len(queries_QB)), _steps(limits)), row_P


def _steps(limits: np.ndarray) -> np.ndarray:
    limits = limits.astype(np.int64)
    return limits[1:] - limits[:-1]
