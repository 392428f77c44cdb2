"""Groups of near-duplicates, in memory that does not grow with the pictures' bytes.

Signatures, codes and pairs lie in files, which are sorted and read from front to back. In memory stay numbers: some 30
bytes a post at most. All pictures are sorted by (plain, code, signature), so a picture's place says which it is, and
those of one code lie side by side.

Letters: N posts, P different pictures, S of them searched, C codes of these, W bytes of a signature, K pairs of codes,
Q pairs of pictures.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from moe_core.data import duplicates
from moe_core.data.duplicates import (
    CODE_BYTES,
    PAIRS,
    PARTS,
    RADIUS,
    SIGNATURE_BYTES,
    at_equal_brightness,
    before,
    codes,
    directions,
    expand,
    is_plain,
    may_be_same,
    same_picture,
)
from moe_core.sorting import ROW, RowFile, Sorter, big_endian, numbers, starts

COMPARED = 1 << 14  # pairs compared at once, and signatures of which numbers are computed
PICTURE = 1 + CODE_BYTES + SIGNATURE_BYTES  # plain, code, signature

Neighbors = Callable[[RowFile, int, Path, int], Iterator[tuple[np.ndarray, np.ndarray]]]  # neighbors.near_pairs


class Signatures:
    """Takes the signatures of N posts, and finds which are one picture."""

    def __init__(self, folder: Path, posts: int, memory: int) -> None:
        self._folder, self._memory = folder, memory
        self._added = 0
        self._type = np.uint32 if posts < 2**32 else np.int64
        self._posts = posts
        width = PICTURE + 1 + ROW
        self._sorter = Sorter(folder / "signatures", width, width, memory)

    def add(self, signature_NW: np.ndarray, ignored_N: np.ndarray) -> None:
        """The next posts. Ignored ones get a number, and no group."""
        code_NB = codes(signature_NW)
        plain_N1 = is_plain(code_NB).astype(np.uint8)[:, None]
        row_N = np.arange(self._added, self._added + len(signature_NW))
        # of equal signatures an ignored one comes last: the first says whether all are ignored
        last_N1 = ignored_N.astype(np.uint8)[:, None]
        self._sorter.add(np.hstack([plain_N1, code_NB, signature_NW, last_N1, big_endian(row_N)]))
        self._added += len(signature_NW)

    def pictures(self) -> "Pictures":
        """The different pictures; to be called once, after all posts were added."""
        assert self._added == self._posts
        number_N = np.zeros(self._posts, self._type)
        first_P = np.zeros(self._posts, self._type)
        looks, found = RowFile(self._folder / "looks", SIGNATURE_BYTES), RowFile(self._folder / "codes", CODE_BYTES)
        begin_C: list[np.ndarray] = []
        pictures = alone = 0
        current, before_, code_before = 0, None, None  # the picture of the last row, that row, the last code searched
        for rows in self._sorter.sorted():
            row_N = numbers(rows[:, -ROW:])
            new_N = starts(rows[:, :PICTURE], before_)
            before_ = rows[-1, :PICTURE].copy()
            new = np.flatnonzero(new_N)
            ignored = rows[new, PICTURE] == 1
            number = np.where(ignored, self._posts - alone - np.cumsum(ignored), pictures - 1 + np.cumsum(~ignored))
            number_N[row_N] = np.append(current, number)[np.cumsum(new_N)]
            current = int(number[-1]) if len(number) else current
            new = new[~ignored]
            first_P[pictures : pictures + len(new)] = row_N[new]
            searched = rows[new[rows[new, 0] == 0]]
            new_code = starts(searched[:, 1 : 1 + CODE_BYTES], code_before)
            if len(searched):
                code_before = searched[-1, 1 : 1 + CODE_BYTES].copy()
            begin_C.append((len(looks) + np.flatnonzero(new_code)).astype(self._type))
            found.append(searched[new_code, 1 : 1 + CODE_BYTES])
            looks.append(searched[:, 1 + CODE_BYTES : PICTURE])
            pictures, alone = pictures + len(new), alone + int(ignored.sum())
        ends = np.array([len(looks)], self._type)
        return Pictures(
            number_N,
            first_P[:pictures].copy(),
            looks,
            found,
            np.concatenate([*begin_C, ends]),
            self._folder,
            self._memory,
        )


class Pictures:
    """The different pictures of N posts. The first S of them lie in `looks` by their place, their codes in `codes`."""

    def __init__(
        self,
        number_N: np.ndarray,  # the picture of each post; equal for equal signatures, also of ignored posts
        first_P: np.ndarray,  # the first post of each picture
        looks: RowFile,
        codes: RowFile,
        begin_C: np.ndarray,  # (C + 1,) place of the first picture of each code
        folder: Path,
        memory: int,
    ) -> None:
        self.number_N, self._first_P = number_N, first_P
        self._looks, self._codes, self._begin_C = looks, codes, begin_C
        self._folder, self._memory = folder, memory

    def __len__(self) -> int:
        """How many pictures differ, of the posts that are not ignored."""
        return len(self._first_P)

    def group(self, levels: float, neighbors: Neighbors) -> None:
        """Joins what is one picture: `first_of` gives then the first post of the group."""
        parent_P = np.arange(len(self._first_P), dtype=self._first_P.dtype)
        mean_S3 = self._means()
        waiting: list[np.ndarray] = []
        for one, other in self.candidates(neighbors):
            one, other = one.astype(np.int64), other.astype(np.int64)
            apart = _root(parent_P, one) != _root(parent_P, other)
            one, other = one[apart], other[apart]
            near = may_be_same(mean_S3[one].astype(np.float32), mean_S3[other].astype(np.float32), levels)
            waiting.append(np.stack([one[near], other[near]]))
            if sum(part.shape[1] for part in waiting) >= PAIRS:
                self._join_same(parent_P, np.hstack(waiting), levels)
                waiting = []
        if waiting:
            self._join_same(parent_P, np.hstack(waiting), levels)
        for first in range(0, len(parent_P), PAIRS):
            some = slice(first, first + PAIRS)
            parent_P[some] = _root(parent_P, np.arange(*some.indices(len(parent_P))))
            np.minimum.at(self._first_P, parent_P[some], self._first_P[some])
        for first in range(0, len(parent_P), PAIRS):  # roots have the first of all their group by now
            some = slice(first, first + PAIRS)
            self._first_P[some] = self._first_P[parent_P[some]]

    def first_of(self, number_N: np.ndarray) -> np.ndarray:
        """(N,) the first post of the group of each picture."""
        return self._first_P[number_N]

    def _means(self) -> np.ndarray:
        """(S, 3) uint8: means of luma and colors, rounded."""
        mean_S3 = np.empty((len(self._looks), 3), np.uint8)
        for first in range(0, len(mean_S3), COMPARED):
            look = self._looks.read(first, first + COMPARED)
            mean_S3[first : first + len(look)] = np.stack([np.rint(look[:, part].mean(1)) for part in PARTS], axis=1)
        return mean_S3

    def _join_same(self, parent_P: np.ndarray, pairs_2Q: np.ndarray, levels: float) -> None:
        """Compares pairs, ordered so that the file of signatures is read from front to back."""
        pairs_2Q = pairs_2Q[:, np.argsort(pairs_2Q[0], kind="stable")]
        for first in range(0, pairs_2Q.shape[1], COMPARED):
            one, other = pairs_2Q[:, first : first + COMPARED]
            same = same_picture(self._looks.take(one), self._looks.take(other), levels)
            _join(parent_P, one[same], other[same])

    def candidates(self, neighbors: Neighbors) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs of places with near codes, at most about PAIRS at once.

        Of many pictures with one code the first is paired with all others first: where they are one picture, one batch
        of comparisons joins them, and the pairs among them cost no comparison any more. A picture is paired with at
        most AT_MOST others of its code and AT_MOST of near ones, the first in the order of places; those for which
        there were more are a crowd, and paired with those that are nearest to them in the directions in which the crowd
        differs most. So pairs grow with the pictures, not with their square.
        """
        if not len(self._codes):
            return
        crowded_C = np.diff(self._begin_C) > duplicates.AT_MOST + 1
        yield from self._of_one_code()
        yield from self._of_near_codes(neighbors(self._codes, RADIUS, self._folder, self._memory), crowded_C)
        yield from self._of_crowds(crowded_C)

    def _of_one_code(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The first of each code with all others, then each with those after it."""
        for steps in (False, True):
            for first in range(0, len(self._looks), PAIRS):
                place = np.arange(first, min(first + PAIRS, len(self._looks)))
                begin = self._begin_C[self._code_of(place)].astype(np.int64)
                place, begin = place[place > begin], begin[place > begin]
                if not steps:
                    yield begin, place
                    continue
                for step in range(1, duplicates.AT_MOST + 1):
                    far = place - begin >= step
                    place, begin = place[far], begin[far]
                    if not len(place):
                        break
                    yield place - step, place

    def _code_of(self, place: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._begin_C, place.astype(self._begin_C.dtype), side="right") - 1

    def _of_near_codes(
        self, pairs: Iterator[tuple[np.ndarray, np.ndarray]], crowded_C: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Each with at most AT_MOST others of near codes; notes into `crowded_C` the codes for which there are more."""
        left_C = np.full(len(crowded_C), duplicates.AT_MOST, np.int32)
        for i_K, j_K in pairs:
            size_K = self._size(j_K)
            width_K = np.clip(left_C[i_K] - before(i_K, size_K), 0, size_K)
            np.subtract.at(left_C, i_K, width_K)
            cut = width_K < size_K
            crowded_C[i_K[cut]] = crowded_C[j_K[cut]] = True
            begin_K, begin_of_j_K = self._begin_C[i_K].astype(np.int64), self._begin_C[j_K].astype(np.int64)
            yield from expand(begin_K, self._size(i_K), begin_of_j_K, width_K)

    def _size(self, code: np.ndarray) -> np.ndarray:
        return self._begin_C[code + 1].astype(np.int64) - self._begin_C[code].astype(np.int64)

    def _of_crowds(self, crowded_C: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pictures of crowded codes with the nearest in the directions in which these differ most."""
        sums_W, squares_WW, count = np.zeros(SIGNATURE_BYTES), np.zeros((SIGNATURE_BYTES, SIGNATURE_BYTES)), 0
        for _, _, look_QW in self._crowd(crowded_C):
            even = at_equal_brightness(look_QW)
            sums_W, squares_WW, count = sums_W + even.sum(0), squares_WW + even.T @ even, count + len(even)
        if count < 2:
            return
        for direction_W in directions(count, sums_W, squares_WW):
            width = ROW + SIGNATURE_BYTES + CODE_BYTES + ROW  # equal values stay in the order of their signatures
            sorter = Sorter(self._folder / "crowd", width, ROW + SIGNATURE_BYTES, self._memory)
            for place, code_QB, look_QW in self._crowd(crowded_C):
                value = (at_equal_brightness(look_QW) @ direction_W).astype(np.int64) + 2**61
                sorter.add(np.hstack([big_endian(value), look_QW, code_QB, big_endian(place)]))
            yield from _nearest_in_order(sorter.sorted())

    def _crowd(self, crowded_C: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(places, codes, signatures) of the pictures of crowded codes, some at a time."""
        for first in range(0, len(self._looks), COMPARED):
            place = np.arange(first, min(first + COMPARED, len(self._looks)))
            code = self._code_of(place)
            place, code = place[crowded_C[code]], code[crowded_C[code]]
            if len(place):
                yield place, self._codes.take(code), self._looks.take(place)


def _nearest_in_order(blocks: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each of sorted rows, which end in code and place, with the NEAREST after it that have near codes."""
    tail = np.zeros((0, CODE_BYTES + ROW), np.uint8)
    for rows in blocks:
        tail = np.concatenate([tail, rows[:, -CODE_BYTES - ROW :]])
        new = len(rows)
        code, place = tail[:, :CODE_BYTES], numbers(tail[:, CODE_BYTES:])
        for step in range(1, min(duplicates.NEAREST, len(tail) - 1) + 1):
            for first in range(max(step, len(tail) - new), len(tail), PAIRS):
                later = np.arange(first, min(first + PAIRS, len(tail)))
                near = np.bitwise_count(code[later - step] ^ code[later]).sum(1) <= RADIUS
                yield place[later[near] - step], place[later[near]]
        tail = tail[-duplicates.NEAREST :]


def _root(parent_P: np.ndarray, of_Q: np.ndarray) -> np.ndarray:
    """The smallest of the set of each; ways that were gone are made short, in place."""
    found_Q = parent_P[of_Q]
    while True:
        above_Q = parent_P[found_Q]
        if np.array_equal(above_Q, found_Q):
            parent_P[of_Q] = found_Q
            return found_Q
        found_Q = above_Q


def _join(parent_P: np.ndarray, one_Q: np.ndarray, other_Q: np.ndarray) -> None:
    """Joins sets, in place; each is known by its smallest."""
    if not len(one_Q):
        return
    ends = np.concatenate([_root(parent_P, one_Q), _root(parent_P, other_Q)])
    labels, end = np.unique(ends, return_inverse=True)
    one, other = end[: len(one_Q)], end[len(one_Q) :]
    graph = coo_matrix((np.ones(len(one), np.int8), (one, other)), shape=(len(labels), len(labels)))
    _, part = connected_components(graph, directed=False)
    _, smallest = np.unique(part, return_index=True)  # labels ascend
    parent_P[labels] = labels[smallest[part]]
