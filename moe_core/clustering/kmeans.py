"""Spherical k-means by FAISS, with every limit that samples silently set on purpose.

This file and neighbours.py are the home of faiss.

Letters: N posts, P dimensions, K clusters.
"""

from dataclasses import dataclass

import numpy as np

from moe_core.clustering.assign import assign


@dataclass(frozen=True)
class Fit:
    """What k-means found."""

    centroids_KP: np.ndarray  # float32, unit norm
    objective: float  # sum of the inner products with the nearest centroid
    points: int  # posts that it was fitted on: all that were given


def fit(x_NP: np.ndarray, clusters: int, iterations: int, restarts: int, seed: int) -> Fit:
    """Fits `clusters` centroids to rows of unit norm, on a GPU where faiss has one; the same seed gives the same.

    Raises ValueError when there are fewer posts than clusters, or a cluster stays empty.
    """
    import faiss

    if clusters > len(x_NP):
        raise ValueError(f"wanted {clusters} clusters, got {len(x_NP)} posts: lower partition.experts, or add posts")
    x_NP = np.ascontiguousarray(x_NP, np.float32)
    kmeans = faiss.Kmeans(
        x_NP.shape[1],
        clusters,
        niter=iterations,
        nredo=restarts,
        spherical=True,
        seed=seed,
        gpu=hasattr(faiss, "get_num_gpus") and faiss.get_num_gpus() > 0,
        max_points_per_centroid=len(x_NP),  # the default of 256 would fit on a sample without a word
        min_points_per_centroid=1,  # only a warning otherwise
    )
    kmeans.train(x_NP)
    assert kmeans.centroids is not None
    assert kmeans.obj is not None
    centroids_KP = kmeans.centroids.reshape(clusters, -1)
    norms_K = np.linalg.norm(centroids_KP, axis=1, keepdims=True)
    if not np.isfinite(centroids_KP).all() or (norms_K == 0).any():
        raise ValueError(f"k-means gave a centroid without a direction: fewer than {clusters} different features?")
    centroids_KP = (centroids_KP / norms_K).astype(np.float32)
    empty = np.flatnonzero(np.bincount(assign(x_NP, centroids_KP), minlength=clusters) == 0)
    if len(empty):
        raise ValueError(
            f"{len(empty)} of {clusters} clusters got none of {len(x_NP)} posts: lower partition.experts "
            "(or partition.fine), or raise partition.restarts"
        )
    return Fit(centroids_KP, float(kmeans.obj[-1]), len(x_NP))
