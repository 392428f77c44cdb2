"""Spherical k-means in torch, on the devices where the posts lie: FAISS's, without a copy of all posts an iteration.

The posts go to a device once, in parts that stay there as far as they fit; the rest travels at each iteration. From the
same start the centroids are FAISS's up to rounding (facebookresearch/faiss, Clustering.cpp: means of unit norm, an
empty cluster takes half of another one).

Letters: N posts, B posts of a part, P dimensions, K clusters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

COMPARED_BYTES = 1 << 30  # of inner products of posts with centroids at once
PART_BYTES = 1 << 28
STAYS = 0.5  # of the memory that is free on a device, for posts
SHIFT = 1 / 1024  # by which the two halves of a split cluster move apart, relatively
SPLIT_SEED = 1234  # FAISS's


@dataclass(frozen=True)
class Part:
    """Some posts, and the device that compares them with the centroids; they lie there or in memory."""

    rows_BP: Tensor
    device: str


def best_fit(
    x_NP: np.ndarray, starts: Sequence[np.ndarray], iterations: int, devices: Sequence[str]
) -> tuple[np.ndarray, float]:
    """(centroids (K, P) float32 of unit norm, objective) of the best fit of some starts, of equal ones the first.

    Rows of `x_NP` have unit norm. The objective is the sum of inner products with the nearest centroid before the last
    update. The posts are divided among the devices.
    """
    parts = placed(x_NP, devices)
    fits = [_fit(parts, start_KP, iterations, devices[0]) for start_KP in starts]
    return max(fits, key=lambda fit: fit[1])


def devices_for(size: int) -> list[str]:
    """The current GPU where it has room for so many bytes of posts, else all GPUs, that one first."""
    current = f"cuda:{torch.cuda.current_device()}"
    every = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [current] if size <= _room(current) else [current, *(device for device in every if device != current)]


def placed(x_NP: np.ndarray, devices: Sequence[str]) -> list[Part]:
    """The posts in parts, in turn one a device, each there as long as it has room."""
    rows = max(1, PART_BYTES // (4 * x_NP.shape[1]))
    room = {device: _room(device) for device in devices}
    parts = []
    for number, first in enumerate(range(0, len(x_NP), rows)):
        device = devices[number % len(devices)]
        rows_BP = torch.from_numpy(x_NP[first : first + rows])
        room[device] -= rows_BP.nbytes
        parts.append(Part(rows_BP.to(device) if room[device] >= 0 else rows_BP, device))
    return parts


def _room(device: str) -> int:
    """Bytes of a device for posts. In memory they lie already."""
    return int(STAYS * torch.cuda.mem_get_info(device)[0]) if device.startswith("cuda") else 0


def _fit(parts: Sequence[Part], start_KP: np.ndarray, iterations: int, first: str) -> tuple[np.ndarray, float]:
    centroids_KP = _of_unit_norm(torch.from_numpy(start_KP).to(first))
    objective = 0.0
    for _ in range(iterations):
        sums = {device: _Sums(centroids_KP.to(device)) for device in dict.fromkeys(part.device for part in parts)}
        for part in parts:
            sums[part.device].add(part.rows_BP.to(part.device))
        each = zip(*((its.sums_KP, its.counts_K, its.best) for its in sums.values()), strict=True)
        sums_KP, counts_K, best = (torch.stack([tensor.to(first) for tensor in some]).sum(0) for some in each)
        objective = float(best)
        counts = counts_K.cpu().numpy()
        means_KP = sums_KP / counts_K.clamp(min=1).to(sums_KP.dtype)[:, None]
        centroids_KP = _of_unit_norm(_split(means_KP, counts) if (counts == 0).any() else means_KP)
    return centroids_KP.cpu().numpy(), objective


class _Sums:
    """Of the posts of one device: the rows of each cluster summed, their numbers, and the sum of inner products.

    Rows are summed by a product with the (K, B) matrix of who belongs where: the same at every run, as atomic additions
    are not.
    """

    def __init__(self, centroids_KP: Tensor) -> None:
        self.centroids_KP = centroids_KP
        self.sums_KP = torch.zeros_like(centroids_KP)
        self.counts_K = torch.zeros(len(centroids_KP), dtype=torch.int64, device=centroids_KP.device)
        self.best = centroids_KP.new_zeros((), dtype=torch.float64)

    def add(self, rows_BP: Tensor) -> None:
        clusters = len(self.centroids_KP)
        number_K1 = torch.arange(clusters, device=rows_BP.device)[:, None]
        for some_BP in rows_BP.split(max(1, COMPARED_BYTES // (4 * clusters))):
            inner_B, nearest_B = (some_BP @ self.centroids_KP.T).max(1)
            mine_KB = number_K1 == nearest_B
            self.sums_KP += mine_KB.to(some_BP.dtype) @ some_BP
            self.counts_K += mine_KB.sum(1)
            self.best += inner_B.sum(dtype=torch.float64)


def _split(means_KP: Tensor, counts: np.ndarray) -> Tensor:
    """Each empty cluster becomes a copy of another, drawn by its number of posts; the two move apart a little."""
    clusters, posts = len(counts), int(counts.sum())
    draw = np.random.RandomState(SPLIT_SEED)  # MT19937, as FAISS's
    means_KP, left = means_KP.clone(), counts.astype(np.float64)
    apart_P = torch.full((means_KP.shape[1],), SHIFT, device=means_KP.device)
    apart_P[1::2] *= -1
    for empty in np.flatnonzero(counts == 0).tolist():
        giver = 0
        while draw.randint(0, 2**32, dtype=np.uint32) / (2**32 - 1) >= (left[giver] - 1) / max(posts - clusters, 1):
            giver = (giver + 1) % clusters
        means_KP[empty] = means_KP[giver] * (1 + apart_P)
        means_KP[giver] *= 1 - apart_P
        left[empty] = left[giver] / 2
        left[giver] -= left[empty]
    return means_KP


def _of_unit_norm(rows_KP: Tensor) -> Tensor:
    return rows_KP / rows_KP.norm(dim=1, keepdim=True).clamp(min=1e-12)
