"""Near codes by multi-index hashing: exact, in time that grows with the number of pairs, in memory that does not grow.

A code is cut into blocks. Codes that differ in at most 2 x blocks - 1 bits differ in at most one bit in some block, so
looking up each block as it is and with each of its bits flipped finds them all (Norouzi, Punjani, Fleet, CVPR 2012).
A table of a block is a file of the codes, sorted by the block's value. Codes of one value lie side by side in it; codes
whose values differ in one bit lie a fixed step of the value apart. So a table is joined with itself by reading it from
front to back, once for each bit, part of it by part.

Letters: N codes of a part, K pairs.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moe_core.clustering.faiss_build import import_faiss
from moe_core.sorting import ROW, RowFile, Sorter, big_endian, numbers

CODE = 16  # bytes
WIDEST_BLOCK = 32  # bits: already more values than there are codes
VALUE = 4  # bytes, of a block's value
BYTES_A_ROW = 200  # of a part while it is joined
PAIRS = 1 << 18  # compared at once
STEP = 1 << 12  # rows from one value that is remembered to the next


def near_pairs(codes: RowFile, radius: int, folder: Path, memory: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every pair (i, j), i < j, of different codes that differ in at most `radius` bits, ascending, some at a time.

    About `memory` bytes are used, whatever the number of codes. Raises ValueError for a radius that leaves blocks of no
    bits.
    """
    if codes.width != CODE:
        raise ValueError(f"codes of {codes.width} bytes: wanted {CODE}")
    blocks, bits = _blocks_of(radius)
    pairs = Sorter(folder / "pairs", 2 * ROW, 2 * ROW, memory // 2)
    for block in range(blocks):
        table = _Table(codes, block, bits, folder, memory // 2)
        for one_K, other_K, xor_K2 in table.pairs(radius):
            for earlier in range(block):  # a pair that an earlier table found is there already
                new = np.bitwise_count(_block(xor_K2, earlier, bits)) > 1
                one_K, other_K, xor_K2 = one_K[new], other_K[new], xor_K2[new]
            low_K, high_K = np.minimum(one_K, other_K), np.maximum(one_K, other_K)
            pairs.add(np.hstack([big_endian(low_K), big_endian(high_K)]))
        table.rows.remove()
    for rows in pairs.sorted():
        for first in range(0, len(rows), PAIRS):
            part = rows[first : first + PAIRS]
            yield numbers(part[:, :ROW]), numbers(part[:, ROW:])


def pairs_by_scan(queries_QB: np.ndarray, codes_MB: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """(query, row) of every pair within `radius`, by comparing all with all: what `near_pairs` is checked against."""
    index = import_faiss().IndexBinaryFlat(codes_MB.shape[1] * 8)
    index.add(np.ascontiguousarray(codes_MB))
    limits, _, row_P = index.range_search(np.ascontiguousarray(queries_QB), radius + 1)  # FAISS's radius is exclusive
    return np.repeat(np.arange(len(queries_QB)), np.diff(limits.astype(np.int64))), row_P


def _blocks_of(radius: int) -> tuple[int, int]:
    """(blocks, bits of each) into which a code is cut to find all within `radius`."""
    width, blocks = CODE * 8, max(2, radius // 2 + 1)
    if radius < 0 or blocks * 2 > width:
        raise ValueError(f"radius {radius} of codes of {width} bits: wanted 0 to {width // 2 - 1}")
    return blocks, min(WIDEST_BLOCK, width // blocks)


class _Table:
    """The codes sorted by the value of one block: value, number and code of each in a row."""

    def __init__(self, codes: RowFile, block: int, bits: int, folder: Path, memory: int) -> None:
        self.bits, self.part = bits, max(1024, memory // BYTES_A_ROW)
        sorter = Sorter(folder / "table", VALUE + ROW + CODE, VALUE + ROW, memory)
        for first in range(0, len(codes), self.part):
            code_NB = codes.read(first, first + self.part)
            value_N = _block(code_NB.view(np.uint64), block, bits)
            row_N = np.arange(first, first + len(code_NB))
            sorter.add(np.hstack([big_endian(value_N, VALUE), big_endian(row_N), code_NB]))
        self.rows = RowFile(folder / "table.rows", VALUE + ROW + CODE)
        remembered = []
        for rows in sorter.sorted():
            remembered.append(numbers(rows[-len(self.rows) % STEP :: STEP, :VALUE]))
            self.rows.append(rows)
        self.value_S = np.concatenate([np.zeros(0, np.int64), *remembered])

    def pairs(self, radius: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(one, other, bits in which they differ) of codes within `radius` that differ in at most one bit here."""
        for first in range(0, len(self.rows), self.part):
            value_N, row_N, code_N2 = self._read(first)
            for step in [0, *(1 << bit for bit in range(self.bits))]:
                # of two values that differ in one bit, the one without it looks for the other
                here = np.flatnonzero(value_N & step == 0)
                if not len(here):
                    continue
                wanted = value_N[here] + step
                begin = max(0, int(np.searchsorted(self.value_S, wanted[0])) - 1) * STEP
                end = min(len(self.rows), int(np.searchsorted(self.value_S, wanted[-1], side="right")) * STEP)
                for start in range(begin if step else first, end, self.part):
                    values, rows, codes = (value_N, row_N, code_N2) if start == first else self._read(start)
                    low = np.searchsorted(values, wanted)
                    if step == 0:
                        low = np.maximum(low, first + here + 1 - start)
                    count = np.maximum(np.searchsorted(values, wanted, side="right") - low, 0)
                    for at, other in _expand(low, count):
                        xor = code_N2[here[at]] ^ codes[other]
                        near = np.bitwise_count(xor).sum(1) <= radius
                        yield row_N[here[at[near]]], rows[other[near]], xor[near]

    def _read(self, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = self.rows.read(first, first + self.part)
        code_NB = np.ascontiguousarray(rows[:, VALUE + ROW :])
        return numbers(rows[:, :VALUE]), numbers(rows[:, VALUE : VALUE + ROW]), code_NB.view(np.uint64)


def _block(code_N2: np.ndarray, block: int, bits: int) -> np.ndarray:
    """(N,) uint64: the bits of a block, from the lowest of the first byte on."""
    first, mask = block * bits, np.uint64((1 << bits) - 1)
    word, shift = divmod(first, 64)
    value_N = code_N2[:, word] >> np.uint64(shift)
    if shift + bits > 64:
        value_N = value_N | (code_N2[:, 1] << np.uint64(64 - shift))
    return np.asarray(value_N & mask)


def _expand(low_N: np.ndarray, count_N: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(number of a row, one of the `count` places from its `low` on), about PAIRS at a time."""
    some = np.flatnonzero(count_N)
    low_N, count_N = low_N[some], count_N[some]
    end_N = np.cumsum(count_N)
    first = 0
    while first < len(end_N):
        done = int(end_N[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(end_N, done + PAIRS, side="right")))
        count = count_N[first:last]
        within = np.arange(int(end_N[last - 1]) - done) - np.repeat(end_N[first:last] - count - done, count)
        yield np.repeat(some[first:last], count), np.repeat(low_N[first:last], count) + within
        first = last
