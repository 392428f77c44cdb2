"""Random partition of given sizes, the control of every claim about a partition; the same on every machine.

Letters: N posts, B of a part, G groups that are dealt out apart, K clusters, H bytes of a hash.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from moe_core.sorting import HASH, ROW, Sorter, big_endian, hashes_of, numbers


def random_partition(
    ids: Iterable[Sequence[str]],  # of B posts, part by part
    group_N: np.ndarray,  # uint8 in [0, G)
    sizes_GK: np.ndarray,
    seed: int,
    old_N: np.ndarray,
    folder: Path,
    memory: int,
) -> np.ndarray:
    """(N,) int32: the cluster of each post. It follows from the ids, whatever their order, and the sizes.

    As few posts leave `old_N`, where each was before (-1: nowhere), as the sizes take: what a cluster has too much
    leaves it at random, and is dealt out with the new posts where room is left. Posts are sorted in files in `folder`.
    """
    counts_G = np.bincount(group_N, minlength=len(sizes_GK))
    for group in np.flatnonzero(counts_G != sizes_GK.sum(1)):
        raise ValueError(f"sizes sum to {sizes_GK[group].sum()}, got {counts_G[group]} posts")
    was_N = old_N >= 0
    old_GK = count_pairs(group_N[was_N], old_N[was_N], sizes_GK.shape)
    rooms_GK = (sizes_GK - np.minimum(sizes_GK, old_GK)).cumsum(1)
    stayed_GK, dealt_G = np.zeros_like(old_GK), np.zeros(len(sizes_GK), np.int64)
    cluster_N = np.full(len(group_N), -1, np.int32)
    for group_B, row_B in _shuffled(ids, group_N, seed, folder, memory):
        for group in np.unique(group_B):
            rows = row_B[group_B == group]
            was = old_N[rows]
            stays = np.zeros(len(rows), bool)
            for k in np.unique(was[was >= 0]):
                mine = np.flatnonzero(was == k)
                stays[mine[: sizes_GK[group, k] - stayed_GK[group, k]]] = True
                stayed_GK[group, k] += stays[mine].sum()
            cluster_N[rows[stays]] = was[stays]
            moving = rows[~stays]
            place = dealt_G[group] + np.arange(len(moving))
            cluster_N[moving] = np.searchsorted(rooms_GK[group], place, side="right")
            dealt_G[group] += len(moving)
    return cluster_N


def count_pairs(one_N: np.ndarray, other_N: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """How often each pair of numbers comes, in an array of that shape."""
    return np.bincount(one_N.astype(np.int32) * shape[1] + other_N, minlength=shape[0] * shape[1]).reshape(shape)


def _shuffled(
    ids: Iterable[Sequence[str]], group_N: np.ndarray, seed: int, folder: Path, memory: int
) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """(group, row) of all posts by the hashes of their ids, group by group, some at a time."""
    sorter, first = Sorter(folder, 1 + HASH + ROW, 1 + HASH + ROW, memory), 0
    for part in ids:
        row_B = np.arange(first, first + len(part))
        hash_BH = hashes_of(f"{seed}:{post_id}" for post_id in part)
        sorter.add(np.hstack([group_N[row_B, None], hash_BH, big_endian(row_B)]))
        first += len(part)
    for block in sorter.sorted():
        found = block[:, 0].copy(), numbers(block[:, 1 + HASH :])
        del block  # before the next one is there
        yield found
        del found
