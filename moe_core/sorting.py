"""Rows of bytes in files, and their sorting in bounded memory: sorted runs on the disk, merged a few at a time.

Rows are compared byte by byte from the left, so numbers in a key lie big-endian. Memory is bounded in bytes, whatever
the number of rows; the disk holds each row twice while runs are merged.

Letters: N rows, W bytes of a row.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path

import numpy as np

from moe_core.store.files import errors_with_path

MEMORY = 128 << 20  # bytes, for sorting and joining
FAN_IN = 32  # runs merged at once
HASH = 16  # bytes: of a billion names two have one hash once in 10^21 times
ROW = 8  # bytes, of the number of a row
GAP = 1 << 14  # bytes between two rows that are read rather than skipped
SPAN = 1 << 22  # bytes read at once


def big_endian(numbers_N: np.ndarray, width: int = 8) -> np.ndarray:
    """(N, width) uint8 of numbers from 0 on: their bytes are in the order of the numbers."""
    return numbers_N.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 8 - width :]


def numbers(rows_NW: np.ndarray) -> np.ndarray:
    """(N,) int64 of at most 8 bytes each: undoes `big_endian`."""
    whole = np.zeros((len(rows_NW), 8), np.uint8)
    whole[:, 8 - rows_NW.shape[1] :] = rows_NW
    return whole.view(">u8").ravel().astype(np.int64)


def hashes_of(names: Iterable[str]) -> np.ndarray:
    """(N, HASH) uint8."""
    found = (hashlib.blake2b(name.encode(), digest_size=HASH).digest() for name in names)
    return np.frombuffer(b"".join(found), np.uint8).reshape(-1, HASH)


def starts(rows_NW: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    """(N,) bool: rows that differ from the one before; `before` is the one before the first."""
    new = np.ones(len(rows_NW), bool)
    new[1:] = (rows_NW[1:] != rows_NW[:-1]).any(1)
    if before is not None and len(new):
        new[0] = bool((rows_NW[0] != before).any())
    return new


def different(blocks: Iterator[np.ndarray], key: int) -> Iterator[np.ndarray]:
    """Sorted rows without those that repeat the one before, and rows of one key (the first bytes) always together.

    What is held back between two blocks are the different rows of one key.
    """
    held, before = np.zeros((0, 0), np.uint8), None
    for rows in blocks:
        new = rows[starts(rows, before)]
        before = rows[-1].copy()
        held = np.concatenate([held, new]) if len(held) else new
        begin = np.flatnonzero(starts(held[:, :key], None))
        if len(begin) > 1:
            yield held[: begin[-1]]
            held = held[begin[-1] :]
    if len(held):
        yield held


def order_of(rows_NW: np.ndarray) -> np.ndarray:
    """(N,) the stable order of rows by their bytes."""
    words = -(-rows_NW.shape[1] // 8)
    if not len(rows_NW):
        return np.zeros(0, np.int64)
    order = np.argsort(_word(rows_NW, 0), kind="stable")
    same = np.ones(len(order) - 1, bool)  # as the one before, as far as was compared
    for number in range(1, words):
        last = _word(rows_NW, number - 1)[order]
        same &= last[1:] == last[:-1]
        tied = np.flatnonzero(np.append(False, same) | np.append(same, False))
        if not len(tied):
            break
        run = np.append(0, np.cumsum(~same))[tied]
        rows = order[tied]
        order[tied] = rows[np.lexsort((_word(rows_NW[rows], number), run))]
    return order


def _word(rows_NW: np.ndarray, number: int) -> np.ndarray:
    """(N,) uint64: eight bytes of each row, in whose order they are."""
    part = rows_NW[:, number * 8 : number * 8 + 8]
    whole = np.zeros((len(part), 8), np.uint8)
    whole[:, : part.shape[1]] = part
    return whole.view(">u8").ravel().astype(np.uint64)


class RowFile:
    """Rows of W bytes that are appended to a file and read back by their number. Nothing of them stays in memory."""

    def __init__(self, path: Path, width: int) -> None:
        self.path, self.width, self.rows = path, width, 0
        path.touch()

    def __len__(self) -> int:
        return self.rows

    def append(self, rows_NW: np.ndarray) -> None:
        with errors_with_path(self.path), open(self.path, "ab", buffering=0) as file:
            left = np.ascontiguousarray(rows_NW).reshape(-1).data
            while left:
                left = left[file.write(left) :]
        self.rows += len(rows_NW)

    def read(self, first: int, last: int) -> np.ndarray:
        """(last - first, W) uint8, fewer at the end of the file."""
        count = max(0, min(last, self.rows) - first)
        with errors_with_path(self.path):
            found = np.fromfile(self.path, np.uint8, count * self.width, offset=first * self.width)
        self._expect(found, first, first + count)
        return found.reshape(count, self.width)

    def take(self, rows_N: np.ndarray) -> np.ndarray:
        """(N, W) uint8 in the order asked for. The file is read from front to back, over what lies close together."""
        wanted, which = np.unique(rows_N, return_inverse=True)
        out = np.empty((len(wanted), self.width), np.uint8)
        far = np.diff(wanted) * self.width > GAP
        span = wanted * self.width // SPAN
        cuts = np.flatnonzero(far | (span[1:] != span[:-1])) + 1
        handle = os.open(self.path, os.O_RDONLY)
        try:
            for first, last in zip([0, *cuts.tolist()], [*cuts.tolist(), len(wanted)], strict=True):
                if first < last:
                    begin, end = int(wanted[first]), int(wanted[last - 1]) + 1
                    with errors_with_path(self.path):
                        data = os.pread(handle, (end - begin) * self.width, begin * self.width)
                    self._expect(data, begin, end)
                    rows = np.frombuffer(data, np.uint8).reshape(-1, self.width)
                    out[first:last] = rows[wanted[first:last] - begin]
        finally:
            os.close(handle)
        return out[which]

    def remove(self) -> None:
        self.path.unlink()

    def _expect(self, data: Sized, first: int, last: int) -> None:
        if len(data) != (last - first) * self.width:
            raise OSError(f"{self.path}: rows {first} to {last} of {self.rows} are not there: was the file cut short?")


class Sorter:
    """Takes rows in any order and gives them back sorted by their first `key` bytes, once.

    Nothing is written, nor `folder` made, where they fit in memory.
    """

    def __init__(self, folder: Path, width: int, key: int, memory: int) -> None:
        self._folder, self._width, self._key, self._memory = folder, width, key, memory
        self._buffer_NW = np.empty((max(1024, memory // (4 * width)), width), np.uint8)  # and as much to sort them
        self._filled = self._made = 0
        self._runs: list[RowFile] = []

    def add(self, rows_NW: np.ndarray) -> None:
        while len(rows_NW):
            part = rows_NW[: len(self._buffer_NW) - self._filled]
            self._buffer_NW[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            rows_NW = rows_NW[len(part) :]
            if self._filled == len(self._buffer_NW):
                self._runs.append(self._written([self._take()]))

    def sorted(self) -> Iterator[np.ndarray]:
        """All the rows, some at a time. The files are gone afterwards."""
        if not self._runs:
            rows_NW = self._take()
            self._buffer_NW = self._buffer_NW[:0]
            if len(rows_NW):
                yield rows_NW
        else:
            if self._filled:
                self._runs.append(self._written([self._take()]))
            self._buffer_NW = self._buffer_NW[:0]
            while len(self._runs) > FAN_IN:
                few, self._runs = self._runs[:FAN_IN], self._runs[FAN_IN:]
                self._runs.append(self._written(self._merged(few)))
            yield from self._merged(self._runs)
            self._folder.rmdir()

    def _take(self) -> np.ndarray:
        rows_NW, self._filled = self._buffer_NW[: self._filled], 0
        return rows_NW[order_of(rows_NW[:, : self._key])]

    def _written(self, blocks: "Iterator[np.ndarray] | list[np.ndarray]") -> RowFile:
        self._folder.mkdir(parents=True, exist_ok=True)
        run = RowFile(self._folder / f"{self._made}.rows", self._width)
        self._made += 1
        for block in blocks:
            run.append(block)
        return run

    def _merged(self, runs: list[RowFile]) -> Iterator[np.ndarray]:
        each = max(64, self._memory // (4 * self._width * len(runs)))
        parts = [run.read(0, each) for run in runs]
        read = [len(part) for part in parts]
        while any(map(len, parts)):
            # what lies beyond the last row of a part may come from that run: only rows up to there are in order
            ends = [part[-1] for part, run, at in zip(parts, runs, read, strict=True) if at < len(run)]
            end = min((bytes(row[: self._key]) for row in ends), default=None)
            counts = [len(part) if end is None else self._up_to(part, end) for part in parts]
            block = np.concatenate([part[:count] for part, count in zip(parts, counts, strict=True)])
            parts = [part[count:] for part, count in zip(parts, counts, strict=True)]
            block = block[order_of(block[:, : self._key])]
            yield block
            del block  # before the next one is there
            for number, run in enumerate(runs):
                if not len(parts[number]) and read[number] < len(run):
                    parts[number] = run.read(read[number], read[number] + each)
                    read[number] += len(parts[number])
        for run in runs:
            run.remove()

    def _up_to(self, part_NW: np.ndarray, end: bytes) -> int:
        """Number of sorted rows whose key is at most `end`."""
        keys = np.ascontiguousarray(part_NW[:, : self._key]).view(f"V{self._key}").ravel()
        return int(np.searchsorted(keys, np.frombuffer(end, f"V{self._key}"), side="right")[0])


def first_of_equal(rows: Iterable[np.ndarray], sought: Iterable[np.ndarray], folder: Path, memory: int) -> np.ndarray:
    """(N,) for each of N sought hashes the number of the first of `rows` that is equal to it, -1 where none is."""
    sorter, counts = Sorter(folder, HASH + 1 + ROW, HASH + 1 + ROW, memory), [0, 0]
    for side, parts in enumerate((rows, sought)):
        for part in parts:
            number = np.arange(counts[side], counts[side] + len(part))
            sorter.add(np.hstack([part, np.full((len(part), 1), side, np.uint8), big_endian(number)]))
            counts[side] += len(part)
    found_N = np.full(counts[1], -1, np.int32 if counts[0] < 2**31 else np.int64)
    before, last = None, -1  # hash of the last row, and what is found for it
    for block in sorter.sorted():
        new, is_sought, number = starts(block[:, :HASH], before), block[:, HASH] == 1, numbers(block[:, HASH + 1 :])
        first = np.append(last, np.where(is_sought, -1, number)[new])[np.cumsum(new)]
        found_N[number[is_sought]] = first[is_sought]
        before, last = block[-1, :HASH].copy(), int(first[-1])
    return found_N
