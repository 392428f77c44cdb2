"""Writes the lists of `lists.py`, in memory that does not grow with the posts but for 4 bytes each, and measures them.

Vectors pass three times: a sample is clustered; each vector is put into its list; queries are compared with all.

Letters: N posts, B of a part, D width, K lists, Q queries, T answers of a query.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from moe_core.clustering.faiss_build import import_faiss
from moe_core.clustering.kmeans import assign
from moe_core.search.files import VectorFiles
from moe_core.search.lists import Lists, best, unit

Parts = Callable[[], Iterable[np.ndarray]]  # (B, D) each, in the order of the posts; called for each pass
MOST_LISTS = 8192  # each vector is compared with all centroids
A_LIST = 40  # vectors of the sample for each list
ITERATIONS = 10
TOP = 20  # answers of a query by which recall is measured
QUERIES = 200  # of each kind


def lists_for(posts: int, index_from: int) -> int:
    """Number of lists: one below `index_from` posts, where comparing all is as fast."""
    return 1 if posts < index_from else max(2, min(MOST_LISTS, round(4 * posts**0.5)))


def write_lists(folder: Path, parts: Parts, count: int, width: int, lists: int, seed: int, memory_bytes: int) -> None:
    """Writes the files into `folder`; `count` vectors of any length other than zero."""
    files = VectorFiles(folder.joinpath)
    centroids_KD = _centroids(parts, count, width, lists, seed, memory_bytes)
    lists = len(centroids_KD)
    list_N, sizes_K = np.empty(count, np.int32), np.zeros(lists, np.int64)
    for first, part_BD in _units(parts):
        list_N[first : first + len(part_BD)] = list_B = assign(part_BD, centroids_KD, "cpu")
        sizes_K += np.bincount(list_B, minlength=lists)
    np.save(files.centroids, centroids_KD)
    np.save(files.ends, sizes_K.cumsum())
    order = np.lib.format.open_memmap(files.order, "w+", np.int64, (count,))
    next_K = sizes_K.cumsum() - sizes_K
    with open(files.vectors, "xb") as file:
        os.truncate(file.fileno(), count * width * 4)
        for first, part_BD in _units(parts):
            list_B = list_N[first : first + len(part_BD)]
            by_list_B = np.argsort(list_B, kind="stable")
            sorted_BD, numbers, starts = part_BD[by_list_B], *np.unique(list_B[by_list_B], return_index=True)
            for number, start, end in zip(numbers, starts, [*starts[1:], len(list_B)], strict=True):
                place = int(next_K[number])
                os.pwrite(file.fileno(), np.ascontiguousarray(sorted_BD[start:end]).data, place * width * 4)
                order[place : place + end - start] = first + by_list_B[start:end]
                next_K[number] += end - start
    order.flush()


def _units(parts: Parts) -> Iterator[tuple[int, np.ndarray]]:
    first = 0
    for part_BD in parts():
        yield first, unit(part_BD)
        first += len(part_BD)


def _centroids(parts: Parts, count: int, width: int, lists: int, seed: int, memory_bytes: int) -> np.ndarray:
    if lists == 1 or not count:
        return np.zeros((1, width), np.float32)
    sample = min(count, lists * A_LIST, max(lists, memory_bytes // (width * 4)))
    wanted = np.sort(np.random.default_rng(seed).choice(count, sample, replace=False))
    sample_ND = vectors_at(parts, wanted, width)
    kmeans = import_faiss().Kmeans(
        width,
        lists,
        niter=ITERATIONS,
        spherical=True,
        seed=seed,
        max_points_per_centroid=A_LIST,
        min_points_per_centroid=1,
    )
    kmeans.train(sample_ND)
    return unit(kmeans.centroids.reshape(lists, width))


def vectors_at(parts: Parts, rows_M: np.ndarray, width: int) -> np.ndarray:
    """(M, D) of unit length: the vectors of some posts, whose rows ascend."""
    found = [np.empty((0, width), np.float32)]
    for first, part_BD in _units(parts):
        low, high = np.searchsorted(rows_M, [first, first + len(part_BD)])
        found.append(part_BD[rows_M[low:high] - first])
    return np.concatenate(found)


def exact_answers(parts: Parts, queries_QD: np.ndarray, top: int = TOP) -> np.ndarray:
    """(Q, T) rows of the posts nearest to each query, all compared."""
    rows, scores = [np.zeros(0, np.int64)] * len(queries_QD), [np.zeros(0, np.float32)] * len(queries_QD)
    for first, part_BD in _units(parts):
        part_QB = queries_QD @ part_BD.T
        numbers_B = np.arange(first, first + len(part_BD))
        for q, scores_B in enumerate(part_QB):
            its_rows, its_scores = best(numbers_B, scores_B, top)
            rows[q], scores[q] = best(np.concatenate([rows[q], its_rows]), np.concatenate([scores[q], its_scores]), top)
    return np.array(rows)


def recall_of(lists: Lists, queries_QD: np.ndarray, exact_QT: np.ndarray, probes: int | None = None) -> float:
    """Share of the true answers that the index finds."""
    top = exact_QT.shape[1]
    found = (lists.nearest(query_D, top, probes=probes)[0] for query_D in queries_QD)
    return float(
        np.mean([len(np.intersect1d(rows, exact_T)) / top for rows, exact_T in zip(found, exact_QT, strict=True)])
    )


def chosen_probes(lists: Lists, queries: dict[str, np.ndarray], exact: dict[str, np.ndarray], wanted: float) -> int:
    """The smallest power of two of lists by which each kind of query reaches a recall, on the even queries."""
    probes = 1
    while probes < len(lists.ends_K):
        if all(recall_of(lists, queries[kind][::2], exact[kind][::2], probes) >= wanted for kind in queries):
            return probes
        probes *= 2
    return len(lists.ends_K)
