"""Vectors in inverted lists: each lies in the list of its nearest centroid, and a query reads the lists nearest to it.

    vectors.f32     (N, D) float32 of unit length, list after list
    order.npy       (N,) int64: the post of each vector
    ends.npy        (K,) int64: where each list ends
    centroids.npy   (K, D) float32; one list where all vectors are compared

Vectors are kept whole, so scores are exact: the index misses posts, but misjudges none. Memory holds the vectors where
they fit into a limit; otherwise BLOCK_BYTES of them at a time, read from the file.

Letters: N posts, D width, K lists, M rows or places.
"""

import os
import weakref

import numpy as np

from moe_core.errors import CorruptArtifact
from moe_core.search.files import VectorFiles

BLOCK_BYTES = 16 << 20
DENSE = 8  # a list is read whole where more than one of so many of its posts may be in the answer
FEW = 8  # posts whose places are looked for one by one
MOST_PARTS = 256  # of which the best are kept at once
PER_ANSWER = 50  # posts that are compared for each that is asked for, at least


def unit(x_BD: np.ndarray) -> np.ndarray:
    """Rows of unit length, float32; rows of zeros stay."""
    length_B1 = np.linalg.norm(x_BD, axis=-1, keepdims=True)
    return np.asarray(x_BD / np.where(length_B1 > 0, length_B1, 1), np.float32)


class Lists:
    """The lists, opened. `probes`: lists that a query reads; None: all. Threads may share them."""

    def __init__(self, files: VectorFiles, memory_bytes: int, probes: int | None) -> None:
        self.order_N: np.ndarray = np.load(files.order, mmap_mode="r", allow_pickle=False)
        self.ends_K: np.ndarray = np.load(files.ends, allow_pickle=False)
        self.centroids_KD: np.ndarray = np.load(files.centroids, allow_pickle=False)
        self.probes = len(self.ends_K) if probes is None else min(probes, len(self.ends_K))
        self.sizes_K = np.diff(self.ends_K, prepend=0)
        self._width = self.centroids_KD.shape[1]
        self._file = os.open(files.vectors, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        size, wanted = os.fstat(self._file).st_size, len(self) * self._width * 4
        if size != wanted or (len(self.ends_K) and self.ends_K[-1] != len(self)):
            raise CorruptArtifact(f"{files.vectors} has {size:,} bytes, wanted {wanted:,}", files.vectors)
        self._in_memory: np.ndarray | None = None
        if size <= memory_bytes:
            self._in_memory = np.fromfile(files.vectors, np.float32).reshape(-1, self._width)

    def __len__(self) -> int:
        return len(self.order_N)

    @property
    def is_exact(self) -> bool:
        """Whether every query is compared with all posts."""
        return self.probes == len(self.ends_K)

    def _slice(self, first: int, last: int) -> np.ndarray:
        """(M, D): the vectors at these places."""
        if self._in_memory is not None:
            return self._in_memory[first:last]
        row = self._width * 4
        data = os.pread(self._file, (last - first) * row, first * row)
        return np.frombuffer(data, np.float32).reshape(-1, self._width)

    def _at(self, places_M: np.ndarray) -> np.ndarray:
        """(M, D): the vectors at these places, which need not be adjacent."""
        if self._in_memory is not None:
            return self._in_memory[places_M]
        parts = [self._slice(place, place + 1) for place in places_M.tolist()]
        return np.concatenate([np.empty((0, self._width), np.float32), *parts])

    def rows(self, rows_M: np.ndarray) -> np.ndarray:
        """(M, D): the vectors of some posts."""
        if len(rows_M) <= FEW:
            return self._at(np.array([int(np.flatnonzero(self.order_N == row)[0]) for row in rows_M], np.int64))
        place_N = np.empty(len(self), np.int64)
        place_N[self.order_N] = np.arange(len(self))
        return self._at(place_N[rows_M])

    def nearest(
        self, query_D: np.ndarray, count: int, allowed_N: np.ndarray | None = None, probes: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(rows, scores) of at most `count` posts with large inner products, the best first; of equal ones the earlier.

        `allowed_N`, one bool a post, says which may be in the answer: as many of these are compared as without it, so
        that `count` come back where there are so many.
        """
        order_K = np.argsort(-(self.centroids_KD @ query_D), kind="stable")
        least = max(int(self.sizes_K[order_K[: probes or self.probes]].sum()), PER_ANSWER * count)
        at_places_N = None if allowed_N is None else allowed_N[self.order_N]
        found, compared = [(np.zeros(0, np.int64), np.zeros(0, np.float32))], 0
        for number in order_K.tolist():
            if compared >= least:
                break
            last = int(self.ends_K[number])
            for first, end in self._blocks(last - int(self.sizes_K[number]), last):
                found.append(self._compared(query_D, first, end, at_places_N))
                compared += len(found[-1][0])
                if len(found) > MOST_PARTS:
                    found = [_best_of(found, count)]
        return _best_of(found, count)

    def _compared(
        self, query_D: np.ndarray, first: int, end: int, at_places_N: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(rows, scores) of the posts at some places that may be in the answer."""
        if at_places_N is None:
            return self.order_N[first:end], self._slice(first, end) @ query_D
        its = np.flatnonzero(at_places_N[first:end])
        if len(its) * DENSE < end - first:
            return self.order_N[first + its], self._at(first + its) @ query_D
        return self.order_N[first + its], (self._slice(first, end) @ query_D)[its]

    def _blocks(self, first: int, last: int) -> list[tuple[int, int]]:
        step = max(1, BLOCK_BYTES // (self._width * 4))
        return [(start, min(start + step, last)) for start in range(first, last, step)]


def _best_of(parts: list[tuple[np.ndarray, np.ndarray]], count: int) -> tuple[np.ndarray, np.ndarray]:
    return best(np.concatenate([rows for rows, _ in parts]), np.concatenate([scores for _, scores in parts]), count)


def best(rows: np.ndarray, scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` with the largest scores, the best first; of equal ones the lower row."""
    if len(scores) > count:
        least = np.partition(scores, len(scores) - count)[len(scores) - count]
        keep = np.flatnonzero(scores >= least)
        rows, scores = rows[keep], scores[keep]
    order = np.lexsort((rows, -scores))[:count]
    return rows[order], scores[order]
