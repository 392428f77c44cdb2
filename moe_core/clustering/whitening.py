"""PCA-whitening of features, fitted in one pass over them.

Letters: N posts, B of a part, D feature width, P dimensions kept.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from moe_core.clustering.product import placed_on
from moe_core.errors import NotFinite, TooFewPosts

SMALLEST = 1e-6  # of the largest variance: directions below it are noise that whitening would blow up


@dataclass(frozen=True)
class Whitening:
    """x -> (x - mean) @ projection has mean zero and unit covariance on the posts it was fitted on."""

    mean_D: np.ndarray  # float32
    projection_DP: np.ndarray  # float32

    def apply(self, features_ND: np.ndarray, device: str = "cpu") -> np.ndarray:
        """(N, P) float32 rows of unit norm; a feature equal to the mean stays zero."""
        if device != "cpu":
            return np.asarray(self.apply_on(device, features_ND).cpu().numpy())
        self._check(features_ND)
        x_NP = (features_ND - self.mean_D) @ self.projection_DP
        x_NP = x_NP / np.maximum(np.linalg.norm(x_NP, axis=1, keepdims=True), 1e-12)
        return x_NP.astype(np.float32, copy=False)

    def apply_on(self, device: str, features_ND: np.ndarray) -> Tensor:
        """The same rows, computed on a device, where they stay."""
        self._check(features_ND)
        x_ND, mean_D, projection_DP = (
            placed_on(device, array) for array in (features_ND, self.mean_D, self.projection_DP)
        )
        return F.normalize((x_ND - mean_D) @ projection_DP, eps=1e-12)

    def _check(self, features_ND: np.ndarray) -> None:
        if features_ND.shape[1] != len(self.mean_D):
            raise ValueError(
                f"features have width {features_ND.shape[1]}, the partition was fitted on width {len(self.mean_D)}: "
                "were they made by different trunks?"
            )


def whiten(parts: Iterable[np.ndarray], dimensions: int, device: str = "cpu") -> Whitening:
    """Keeps the `dimensions` directions of largest variance, fewer where the features do not fill them.

    `parts`: (B, D) features of some posts each; only sums of D x D numbers are kept of them, in float64, added up on
    the device. Raises NotFinite for a feature that is not finite, and TooFewPosts where there are no posts, or all have
    the same features.
    """
    count, sum_D, sum_DD = 0, np.zeros(()), np.zeros(())
    for part_BD in parts:
        if not np.isfinite(part_BD).all():
            raise NotFinite("a feature is not finite: check the trunk's weights")
        count += len(part_BD)
        if device == "cpu":
            x_BD = part_BD.astype(np.float64)
            sum_D, sum_DD = sum_D + x_BD.sum(0), sum_DD + x_BD.T @ x_BD
        else:
            there_BD = placed_on(device, part_BD).double()
            sum_D, sum_DD = sum_D + there_BD.sum(0).cpu().numpy(), sum_DD + (there_BD.T @ there_BD).cpu().numpy()
    if count == 0:
        raise TooFewPosts("no posts to fit on: wanted at least one")
    mean_D = sum_D / count
    covariance_DD = sum_DD / count - np.outer(mean_D, mean_D)
    variance_D, axes_DD = np.linalg.eigh((covariance_DD + covariance_DD.T) / 2)
    order = np.argsort(-variance_D, kind="stable")[:dimensions]
    order = order[variance_D[order] > SMALLEST * max(variance_D.max(), 0)]
    scale = float(np.abs(sum_DD).max()) / count
    if not len(order) or variance_D[order[0]] <= 1e-12 * scale:
        raise TooFewPosts(
            f"all {count} posts have the same features: wanted images that differ, and a trunk that tells them "
            "apart (trunk.epochs, trunk.lr)"
        )
    axes_DP = axes_DD[:, order]
    largest = np.abs(axes_DP).argmax(axis=0)
    axes_DP = axes_DP * np.sign(axes_DP[largest, np.arange(axes_DP.shape[1])])  # eigh leaves the sign open
    return Whitening(mean_D.astype(np.float32), (axes_DP / np.sqrt(variance_D[order])).astype(np.float32))
