"""Random partition of given sizes, the control of every claim about a partition; the same on every machine."""

import hashlib
from collections.abc import Sequence

import numpy as np


def random_partition(ids: Sequence[str], sizes_K: np.ndarray, seed: int, old_N: np.ndarray | None = None) -> np.ndarray:
    """(N,) int64: the cluster of each post. It follows from the ids, whatever their order, and the sizes.

    As few posts leave `old_N`, where each was before (-1: nowhere), as the sizes take: what a cluster has too much
    leaves it at random, and is dealt out with the new posts where room is left.
    """
    if sum(sizes_K) != len(ids):
        raise ValueError(f"sizes sum to {sum(sizes_K)}, got {len(ids)} posts")
    order_N = np.array(sorted(range(len(ids)), key=lambda n: (_mark(seed, ids[n]), ids[n])), np.int64)
    cluster_N = np.full(len(ids), -1)
    if old_N is not None:
        for k, size in enumerate(sizes_K):
            cluster_N[order_N[old_N[order_N] == k][: int(size)]] = k
    room_K = sizes_K - np.bincount(cluster_N[cluster_N >= 0], minlength=len(sizes_K))
    cluster_N[order_N[cluster_N[order_N] < 0]] = np.repeat(np.arange(len(sizes_K)), room_K)
    return cluster_N


def _mark(seed: int, post_id: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{post_id}".encode(), digest_size=16).digest()
