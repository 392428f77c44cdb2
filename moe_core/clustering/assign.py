"""The nearest centroid of each post, in bounded memory.

Letters: N posts, P dimensions, K centroids.
"""

import numpy as np


def assign(x_NP: np.ndarray, centroids_KP: np.ndarray, chunk: int = 65_536) -> np.ndarray:
    """(N,) int64 in [0, K): the centroid of largest inner product, of two equal ones the lower; both of unit norm."""
    if x_NP.shape[1] != centroids_KP.shape[1]:
        raise ValueError(
            f"features have width {x_NP.shape[1]}, centroids have width {centroids_KP.shape[1]}: "
            "were they whitened by different partitions?"
        )
    nearest_N = np.empty(len(x_NP), np.int64)
    for first in range(0, len(x_NP), chunk):  # never N x K numbers at once
        nearest_N[first : first + chunk] = (x_NP[first : first + chunk] @ centroids_KP.T).argmax(axis=1)
    return nearest_N
