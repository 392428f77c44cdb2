"""Spherical k-means: by FAISS on a CPU, with every limit that samples silently set on purpose; by torch on GPUs.

Letters: N posts, P dimensions, K clusters.
"""

import numpy as np
import torch

from moe_core.clustering.device_kmeans import best_fit, devices_for
from moe_core.clustering.faiss_build import import_faiss
from moe_core.clustering.product import best_device, placed_on, rows_at_once
from moe_core.errors import TooFewPosts


def fit_kmeans(
    x_NP: np.ndarray,
    clusters: int,
    iterations: int,
    restarts: int,
    seed: int,
    start_KP: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """(centroids (K, P) float32 of unit norm, sum of the inner products of all posts with their nearest centroid).

    Fits `clusters` centroids to rows of unit norm, on a GPU where torch sees one; a seed repeats the result.
    Starts from random posts, `restarts` times, or once from `start_KP`: then centroid k continues start k.
    Raises TooFewPosts when there are fewer posts than clusters, or a cluster stays empty.
    """
    if clusters > len(x_NP):
        raise TooFewPosts(
            f"wanted {clusters} clusters, got {len(x_NP)} posts to fit them on: lower partition.experts (or "
            "partition.fine), raise partition.max_fit_posts, or add posts"
        )
    x_NP = np.ascontiguousarray(x_NP, np.float32)
    given = [] if start_KP is None else [np.ascontiguousarray(start_KP, np.float32)]
    if torch.cuda.is_available():
        starts = given or [x_NP[rows_K] for rows_K in random_rows(len(x_NP), clusters, restarts, seed)]
        centroids_KP, objective = best_fit(x_NP, starts, iterations, devices_for(x_NP.nbytes))
    else:
        centroids_KP, objective = _fit_by_faiss(x_NP, clusters, iterations, restarts, seed, *given)
    norms_K = np.linalg.norm(centroids_KP, axis=1, keepdims=True)
    if not np.isfinite(centroids_KP).all() or (norms_K == 0).any():
        raise TooFewPosts(f"k-means gave a centroid without a direction: fewer than {clusters} different features?")
    centroids_KP = (centroids_KP / norms_K).astype(np.float32)
    empty = np.flatnonzero(np.bincount(assign(x_NP, centroids_KP), minlength=clusters) == 0)
    if len(empty):
        raise TooFewPosts(
            f"{len(empty)} of {clusters} clusters got none of {len(x_NP)} posts: lower partition.experts "
            "(or partition.fine), or raise partition.restarts"
        )
    return centroids_KP, objective


def _fit_by_faiss(
    x_NP: np.ndarray, clusters: int, iterations: int, restarts: int, seed: int, start_KP: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    kmeans = import_faiss().Kmeans(
        x_NP.shape[1],
        clusters,
        niter=iterations,
        nredo=restarts if start_KP is None else 1,
        spherical=True,
        seed=seed,
        max_points_per_centroid=len(x_NP),  # the default of 256 would fit on a sample without a word
        min_points_per_centroid=1,  # only a warning otherwise
        gpu=False,
    )
    kmeans.train(x_NP, init_centroids=start_KP)
    return kmeans.centroids.reshape(clusters, -1), float(kmeans.obj[-1])


def random_rows(posts: int, clusters: int, restarts: int, seed: int) -> list[np.ndarray]:
    """(K,) posts at which each restart begins: those that FAISS begins at (its rand_perm, and Clustering.cpp)."""
    return [_first_of_permutation(posts, clusters, seed + 1 + restart * 15_486_557) for restart in range(restarts)]


def _first_of_permutation(posts: int, first: int, seed: int) -> np.ndarray:
    """(K,) int64: the first of a random order of the posts, by as many exchanges; others do not touch them."""
    draw, moved = np.random.RandomState(seed % 2**32), dict[int, int]()  # MT19937, as FAISS's
    order_K = np.empty(first, np.int64)
    for place in range(first):
        other = place + int(draw.randint(0, 2**32, dtype=np.uint32)) % (posts - place)
        order_K[place] = moved.get(other, other)
        moved[other] = moved.get(place, place)
    return order_K


def assign(x_NP: np.ndarray, centroids_KP: np.ndarray, device: str | None = None) -> np.ndarray:
    """(N,) int64 in [0, K): the centroid of largest inner product, of two equal ones the lower; both of unit norm.

    Computed on the device, by default the best one; of N x K inner products few exist at once, and none leaves it.
    """
    if x_NP.shape[1] != centroids_KP.shape[1]:
        raise ValueError(
            f"features have width {x_NP.shape[1]}, centroids have width {centroids_KP.shape[1]}: "
            "were they whitened by different partitions?"
        )
    device, nearest_N = device or best_device(), np.empty(len(x_NP), np.int64)
    centroids = None if device == "cpu" else placed_on(device, centroids_KP)
    step = rows_at_once(*centroids_KP.shape)
    for first in range(0, len(x_NP), step):
        some = slice(first, first + step)
        if centroids is None:
            nearest_N[some] = (x_NP[some] @ centroids_KP.T).argmax(1)
        else:
            nearest_N[some] = (placed_on(device, x_NP[some]) @ centroids.T).argmax(1).cpu().numpy()
    return nearest_N


def starts(x_NP: np.ndarray, old_N: np.ndarray, clusters: int, iterations: int, seed: int) -> np.ndarray:
    """(K, P) float32, unit norm: means of old clusters, as starts of new ones; `old_N` is -1 for a post of no cluster.

    A cluster without posts is one half of the worst served: that with the largest sum of distances to its mean.
    """
    old_N = old_N.copy()
    start_KP = np.zeros((clusters, x_NP.shape[1]), np.float32)
    for k in range(clusters):
        start_KP[k] = _direction(x_NP[old_N == k])
    for k in np.flatnonzero(np.bincount(old_N[old_N >= 0], minlength=clusters) == 0).tolist():
        far_N = np.where(old_N >= 0, 1 - (x_NP * start_KP[old_N]).sum(1), 0)
        worst = int(np.bincount(np.maximum(old_N, 0), weights=far_N, minlength=clusters).argmax())
        members = np.flatnonzero(old_N == worst)
        halves, _ = fit_kmeans(x_NP[members], 2, iterations, 1, seed)
        stays = int((halves @ start_KP[worst]).argmax())
        old_N[members[assign(x_NP[members], halves) != stays]] = k
        start_KP[worst], start_KP[k] = halves[stays], halves[1 - stays]
    return start_KP


def _direction(x_NP: np.ndarray) -> np.ndarray:
    mean_P = x_NP.sum(0, dtype=np.float64)
    return mean_P / max(float(np.linalg.norm(mean_P)), 1e-12)
