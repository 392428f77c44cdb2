"""Exact search: every vector is compared.

Letters: N posts, B of a part, D embedding width, M asked for.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

Parts = Callable[[], Iterable[np.ndarray]]  # (B, D) float32 each, in the order of the posts


def unit(x_BD: np.ndarray) -> np.ndarray:
    """Rows of unit length, float32; rows of zeros stay."""
    length_B1 = np.linalg.norm(x_BD, axis=-1, keepdims=True)
    return (x_BD / np.where(length_B1 > 0, length_B1, 1)).astype(np.float32, copy=False)


class Exact:
    """Vectors of all the posts: in memory where they fit into `memory_bytes`, else read for each query."""

    def __init__(self, parts: Parts, count: int, width: int, memory_bytes: int) -> None:
        self._parts, self._count = parts, count
        self._in_memory: np.ndarray | None = None
        if count * width * 4 <= memory_bytes:
            self._in_memory = np.empty((count, width), np.float32)
            first = 0
            for part_BD in parts():
                self._in_memory[first : first + len(part_BD)] = unit(part_BD)
                first += len(part_BD)

    def __len__(self) -> int:
        return self._count

    def _read(self) -> Iterator[tuple[int, np.ndarray]]:
        """(row of the first, (B, D) of unit length)."""
        if self._in_memory is not None:
            yield 0, self._in_memory
            return
        first = 0
        for part_BD in self._parts():
            yield first, unit(part_BD)
            first += len(part_BD)

    def rows(self, rows_M: np.ndarray) -> np.ndarray:
        """(M, D) of unit length: vectors of some posts."""
        if self._in_memory is not None:
            return self._in_memory[rows_M]
        found: dict[int, np.ndarray] = {}
        for first, part_BD in self._read():
            found |= {int(row): part_BD[row - first] for row in rows_M if first <= row < first + len(part_BD)}
        return np.stack([found[int(row)] for row in rows_M])

    def nearest(self, query_D: np.ndarray, count: int, allowed_N: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """(rows, scores) of at most `count` posts with the largest inner products, the best first; of equal ones the
        earlier post."""
        rows, scores = np.zeros(0, np.int64), np.zeros(0, np.float32)
        for first, part_BD in self._read():
            its = (
                np.arange(len(part_BD))
                if allowed_N is None
                else np.flatnonzero(allowed_N[first : first + len(part_BD)])
            )
            dense = len(its) * 4 > len(part_BD)
            its_scores = (part_BD @ query_D)[its] if dense else part_BD[its] @ query_D
            rows, scores = best(np.concatenate([rows, first + its]), np.concatenate([scores, its_scores]), count)
        return rows, scores


def best(rows: np.ndarray, scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` with the largest scores, the best first; of equal ones the lower row. Rows ascend."""
    if len(scores) > count:
        least = np.partition(scores, len(scores) - count)[len(scores) - count]
        keep = np.flatnonzero(scores >= least)
        rows, scores = rows[keep], scores[keep]
    order = np.lexsort((rows, -scores))[:count]
    return rows[order], scores[order]
