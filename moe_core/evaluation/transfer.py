"""Transfer: how well a frozen embedding tells a label that no network was trained on, by neighbors and a linear probe.

Each post is predicted once, from the posts of the other folds, so that all of them judge and measures of two embeddings
are paired. Neighbors vote by exp(cosine / 0.07), as Wu et al. (CVPR 2018) weigh them.

Letters: N posts, B of a part, D embedding width, L labels, k neighbors.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FOLDS = 5
NEIGHBORS, TEMPERATURE = 20, 0.07
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # of the squared weights, beside the mean cross-entropy
ITERATIONS = 100  # of L-BFGS, at most
CHUNK = 1024  # posts whose neighbors are searched at a time


def folds_of(group_N: np.ndarray, seed: int = 0) -> np.ndarray:
    """(N,) int64 below FOLDS: posts of one group, such as copies of one picture, share a fold; folds are about
    equal."""
    _, number_N, size_G = np.unique(group_N, return_inverse=True, return_counts=True)
    order_G = np.random.default_rng(seed).permutation(len(size_G))
    order_G = order_G[np.argsort(-size_G[order_G], kind="stable")]  # the largest first, each into the smallest fold
    filled, fold_G = np.zeros(FOLDS, np.int64), np.empty(len(size_G), np.int64)
    for group in order_G.tolist():
        fold_G[group] = filled.argmin()
        filled[fold_G[group]] += size_G[group]
    return fold_G[number_N]


def neighbors_right(features_ND: Tensor, label_N: Tensor, fold_N: np.ndarray, labels: int, device: str) -> np.ndarray:
    """(N,) float64, 1 where the NEIGHBORS nearest posts of other folds, by cosine, vote for the post's own label."""
    unit_ND, label_N = F.normalize(features_ND.float(), dim=1).to(device), label_N.to(device)
    right_N = np.zeros(len(label_N))
    for known_M, asked_M in _each_fold(fold_N):
        known_MD, label_M = unit_ND[known_M], label_N[known_M]
        for rows_B in asked_M.split(CHUNK):
            best = (unit_ND[rows_B] @ known_MD.T).topk(min(NEIGHBORS, len(known_M)))
            votes_BL = torch.zeros(len(rows_B), labels, device=device)
            votes_BL.scatter_add_(1, label_M[best.indices], (best.values / TEMPERATURE).exp())
            right_N[rows_B] = (votes_BL.argmax(1) == label_N[rows_B]).cpu().numpy()
    return right_N


def probe_right(features_ND: Tensor, label_N: Tensor, fold_N: np.ndarray, labels: int, device: str) -> np.ndarray:
    """(N,) float64, 1 where a logistic regression on the standardized features of the other folds tells the label.

    Its penalty is the best of PENALTIES on one fold of those that the first regression is fitted on.
    """
    features_ND, label_N = features_ND.float().to(device), label_N.to(device)
    right_N, penalty = np.zeros(len(label_N)), 0.0
    for known_M, asked_M in _each_fold(fold_N):
        if not penalty:
            fold_M = fold_N[known_M]
            inner, outer = known_M[fold_M != fold_M.max()], known_M[fold_M == fold_M.max()]
            found = [_right(features_ND, label_N, inner, outer, labels, each).mean() for each in PENALTIES]
            penalty = PENALTIES[int(np.argmax(found))]
        right_N[asked_M] = _right(features_ND, label_N, known_M, asked_M, labels, penalty)
    return right_N


def _each_fold(fold_N: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
    """(places of the posts that are known, of those that are asked about) for each fold."""
    for fold in range(FOLDS):
        asked = fold_N == fold
        yield torch.from_numpy(np.flatnonzero(~asked)), torch.from_numpy(np.flatnonzero(asked))


def _right(
    features_ND: Tensor, label_N: Tensor, known_M: Tensor, asked_B: Tensor, labels: int, penalty: float
) -> np.ndarray:
    known_MD, label_M = features_ND[known_M], label_N[known_M]
    mean_D, scale_D = known_MD.mean(0), known_MD.std(0).clamp(min=1e-6)
    known_MD = (known_MD - mean_D) / scale_D
    weight_LD = torch.zeros(labels, known_MD.shape[1], device=known_MD.device, requires_grad=True)
    bias_L = torch.zeros(labels, device=known_MD.device, requires_grad=True)
    fit = torch.optim.LBFGS([weight_LD, bias_L], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        fit.zero_grad()
        loss = F.cross_entropy(F.linear(known_MD, weight_LD, bias_L), label_M) + penalty * weight_LD.square().sum()
        loss.backward()
        return loss

    fit.step(closure)
    with torch.no_grad():
        asked_BL = F.linear((features_ND[asked_B] - mean_D) / scale_D, weight_LD, bias_L)
        right: np.ndarray = (asked_BL.argmax(1) == label_N[asked_B]).double().cpu().numpy()
    return right
