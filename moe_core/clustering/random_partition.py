"""Random partition of given sizes, the control of every claim about a partition; the same on every machine."""

import hashlib
from collections.abc import Sequence

import numpy as np


def random_partition(ids: Sequence[str], sizes_K: np.ndarray, seed: int) -> np.ndarray:
    """(N,) int64: the cluster of each post. It follows from the ids, whatever their order, and the sizes."""
    if sum(sizes_K) != len(ids):
        raise ValueError(f"sizes sum to {sum(sizes_K)}, got {len(ids)} posts")
    order = sorted(range(len(ids)), key=lambda n: (_mark(seed, ids[n]), ids[n]))
    cluster_N = np.empty(len(ids), np.int64)
    cluster_N[order] = np.repeat(np.arange(len(sizes_K)), sizes_K)
    return cluster_N


def reshuffled(ids: Sequence[str], old_N: np.ndarray, sizes_K: np.ndarray, seed: int) -> np.ndarray:
    """(N,) int64: a random partition of these sizes with as few moves as that takes from `old_N`, -1 for a new post.

    What a cluster has too much leaves it at random, and is dealt out with the new posts where room is left.
    """
    if sum(sizes_K) != len(ids):
        raise ValueError(f"sizes sum to {sum(sizes_K)}, got {len(ids)} posts")
    cluster_N = np.full(len(ids), -1)
    for k, size in enumerate(sizes_K):
        members = sorted(np.flatnonzero(old_N == k).tolist(), key=lambda n: (_mark(seed, ids[n]), ids[n]))
        cluster_N[members[: int(size)]] = k
    left = np.flatnonzero(cluster_N < 0).tolist()
    room_K = np.asarray(sizes_K) - np.bincount(cluster_N[cluster_N >= 0], minlength=len(sizes_K))
    cluster_N[left] = random_partition([ids[n] for n in left], room_K, seed)
    return cluster_N


def _mark(seed: int, post_id: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{post_id}".encode(), digest_size=16).digest()
