"""Spherical k-means by torch alone, on the device where the features are: what a `fit_kmeans` for CUDA could be.

As FAISS's Clustering does it: random posts are the start, centroids are renormalized, an empty cluster takes half of
another one, and the best of several starts is kept.

Letters: N posts, P dimensions, K clusters.
"""

import torch
from torch import Tensor

CHUNK = 1 << 18  # posts compared with all centroids at once


def fit(x_NP: Tensor, start_KP: Tensor, iterations: int) -> tuple[Tensor, float]:
    """Centroids (K, P) and the sum of inner products before the last update. Waits for the device once, at the end."""
    k = len(start_KP)
    centroids_KP = start_KP / start_KP.norm(dim=1, keepdim=True)
    place_K1 = torch.arange(k, device=x_NP.device)[:, None]
    objective = torch.zeros((), dtype=torch.float64, device=x_NP.device)
    for _ in range(iterations):
        sums_KP, counts_K = torch.zeros_like(centroids_KP), torch.zeros(k, device=x_NP.device)
        objective.zero_()
        for first in range(0, len(x_NP), CHUNK):
            part = x_NP[first : first + CHUNK]
            best, nearest = (part @ centroids_KP.T).max(1)
            sums_KP.addmm_((place_K1 == nearest).to(part.dtype), part)
            counts_K += torch.bincount(nearest, minlength=k)
            objective += best.sum(dtype=torch.float64)
        centroids_KP = _without_empty(sums_KP, counts_K)
    return centroids_KP, float(objective)


def _without_empty(sums_KP: Tensor, counts_K: Tensor) -> Tensor:
    """Means of unit norm. Each empty cluster becomes a copy of a large one, and both move apart a little."""
    order_K = counts_K.argsort(stable=True)  # the empty ones first
    empty_K = counts_K[order_K] == 0
    giver_K = order_K.flip(0)  # the largest first
    moved = torch.where(empty_K[:, None], sums_KP[giver_K], sums_KP[order_K])
    sign_P = torch.where(torch.arange(sums_KP.shape[1], device=sums_KP.device) % 2 == 0, 1.0, -1.0) / 1024
    sums_KP = sums_KP.clone()
    sums_KP[order_K] = torch.where(empty_K[:, None], moved * (1 + sign_P), moved)
    gives_K = torch.zeros(len(counts_K), dtype=torch.bool, device=sums_KP.device)
    gives_K[giver_K] = empty_K
    sums_KP = torch.where(gives_K[:, None], sums_KP * (1 - sign_P), sums_KP)
    return sums_KP / sums_KP.norm(dim=1, keepdim=True).clamp(min=1e-12)


def best_of(x_NP: Tensor, k: int, iterations: int, restarts: int, seed: int) -> Tensor:
    """Centroids (K, P) of the best of `restarts` fits, each from K random posts."""
    generator = torch.Generator(x_NP.device).manual_seed(seed)
    best_KP, best = None, -torch.inf
    for _ in range(restarts):
        rows_K = torch.randperm(len(x_NP), generator=generator, device=x_NP.device)[:k]
        centroids_KP, objective = fit(x_NP, x_NP[rows_K], iterations)
        if objective > best:
            best_KP, best = centroids_KP, objective
    assert best_KP is not None
    return best_KP
