"""Matches new clusters to the old ones that they continue.

Letters: N posts, C new clusters, K experts.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment


def overlap(new_N: np.ndarray, old_N: np.ndarray, experts: int) -> np.ndarray:
    """(K, C) int64, C = K: posts of each old cluster in each new one; an old number of -1 is none."""
    known_N = old_N >= 0
    counted = np.bincount(old_N[known_N] * experts + new_N[known_N], minlength=experts * experts)
    return counted.reshape(experts, experts)


def continued_by(overlap_KC: np.ndarray) -> np.ndarray:
    """(K,) int64: the new cluster of each old one, each taken once, so that most posts stay (Hungarian method).

    Of equally good ones the cluster of the same number, so an old one without posts gets what is left.
    """
    same = 0.5 / max(len(overlap_KC), 1)  # all of them together are less than one post
    _, cluster_K = linear_sum_assignment(overlap_KC + same * np.eye(len(overlap_KC)), maximize=True)
    return np.asarray(cluster_K, np.int64)
