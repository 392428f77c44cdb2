"""The gate: from a trunk's features to the one expert of an image.

Letters: N images, B of a part, D embedding width, P whitened dimensions, M centroids, C of one expert, K experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moe_core.clustering.product import placed_on, rows_at_once
from moe_core.clustering.whitening import Whitening
from moe_core.errors import CorruptArtifact
from moe_core.weights import load_weights, save_weights


@dataclass(frozen=True)
class Gate:
    """M centroids in whitened space; centroid m belongs to expert `expert_M[m]`. One level: M = K."""

    whitening: Whitening
    centroids_MP: np.ndarray  # float32, unit norm
    expert_M: np.ndarray  # int64 in [0, K)

    @property
    def experts(self) -> int:
        return int(self.expert_M.max()) + 1

    def distances(self, features_ND: np.ndarray, device: str = "cpu") -> np.ndarray:
        """(N, K) float32: squared distance of each image to the nearest centroid of each expert.

        Of distances to all M centroids few exist at once, and none leaves the device.
        """
        out_NK = np.empty((len(features_ND), self.experts), np.float32)
        order_M = np.argsort(self.expert_M, kind="stable")
        centroids = None if device == "cpu" else placed_on(device, self.centroids_MP[order_M])  # by expert
        step = rows_at_once(len(self.centroids_MP), features_ND.shape[1])
        for first in range(0, len(features_ND), step):
            some = slice(first, first + step)
            if centroids is None:
                x_BP = self.whitening.apply(features_ND[some])
                squared_BM = np.maximum(2 - 2 * (x_BP @ self.centroids_MP.T), 0)  # of unit vectors
                for expert in range(self.experts):
                    out_NK[some, expert] = squared_BM[:, self.expert_M == expert].min(axis=1)
            else:
                inner_BM = self.whitening.apply_on(device, features_ND[some]) @ centroids.T
                of_experts = inner_BM.split(np.bincount(self.expert_M).tolist(), 1)
                nearest_BK = torch.stack([inner_BC.amax(1) for inner_BC in of_experts], 1)
                out_NK[some] = (2 - 2 * nearest_BK).clamp_(min=0).cpu().numpy()
        return out_NK

    def assign(self, features_ND: np.ndarray) -> np.ndarray:
        """(N,) int64: the expert of each image; of two equally near the lower number."""
        return self.nearest(features_ND)[0]

    def nearest(self, features_ND: np.ndarray, device: str = "cpu") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(expert, squared distance to it, how much farther the next expert is) of each image, (N,) each.

        With a single expert the next one is infinitely far.
        """
        distance_NK = self.distances(features_ND, device)
        expert_N = distance_NK.argmin(axis=1)
        own_N = distance_NK.min(axis=1)
        if self.experts == 1:
            return expert_N, own_N, np.full(len(own_N), np.inf, np.float32)
        return expert_N, own_N, np.partition(distance_NK, 1, axis=1)[:, 1] - own_N

    def weights(self, features_ND: np.ndarray, k: int, temperature: float, device: str = "cpu") -> np.ndarray:
        """(N, K) float32, rows sum to one: softmax(-d^2/T) over the k nearest experts, zero elsewhere (c-BTM)."""
        distance_NK = self.distances(features_ND, device).astype(np.float64)
        far_NK = np.argsort(np.argsort(distance_NK, axis=1, kind="stable"), axis=1) >= k
        behind_NK = distance_NK - distance_NK.min(axis=1, keepdims=True)
        with np.errstate(over="ignore"):  # however small T is, the nearest has its weight
            weights_NK = np.where(far_NK, 0.0, np.exp(-behind_NK / temperature))
        return (weights_NK / weights_NK.sum(axis=1, keepdims=True)).astype(np.float32)

    def save(self, path: Path, about: Mapping[str, str]) -> None:
        save_weights(
            path,
            {
                "mean": torch.from_numpy(self.whitening.mean_D),
                "projection": torch.from_numpy(np.ascontiguousarray(self.whitening.projection_DP)),
                "centroids": torch.from_numpy(np.ascontiguousarray(self.centroids_MP)),
                "expert": torch.from_numpy(self.expert_M.astype(np.int64)),
            },
            about,
        )


def load_gate(path: Path) -> tuple[Gate, dict[str, str]]:
    """(gate, `about` of its file)."""
    state, about = load_weights(path)
    return gate_of(state, path), about


def gate_of(state: Mapping[str, Tensor], path: Path) -> Gate:
    """The gate in a file's tensors. Raises CorruptArtifact where some are missing, or an expert has no centroid."""
    missing = {"mean", "projection", "centroids", "expert"} - set(state)
    if missing:
        raise CorruptArtifact(f"{path} is not a gate: it has no {', '.join(sorted(missing))}", path)
    whitening = Whitening(state["mean"].numpy(), state["projection"].numpy())
    expert_M = state["expert"].numpy()
    numbers = np.unique(expert_M)
    if not len(numbers) or numbers[0] != 0 or numbers[-1] != len(numbers) - 1:
        message = f"{path} is not a gate: wanted experts 0 to K - 1, each with a centroid of its own"
        raise CorruptArtifact(message, path)
    return Gate(whitening, state["centroids"].numpy(), expert_M)
