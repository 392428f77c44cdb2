"""PCA-whitening of features, fitted in one pass over them.

Letters: N posts, D feature width, P dimensions kept.
"""

from dataclasses import dataclass

import numpy as np

from moe_core.errors import NotFinite, TooFewPosts

SMALLEST = 1e-6  # of the largest variance: directions below it are noise that whitening would blow up


@dataclass(frozen=True)
class Whitening:
    """x -> (x - mean) @ projection has mean zero and unit covariance on the posts it was fitted on."""

    mean_D: np.ndarray  # float32
    projection_DP: np.ndarray  # float32

    def apply(self, features_ND: np.ndarray) -> np.ndarray:
        """(N, P) float32 rows of unit norm; a feature equal to the mean stays zero."""
        if features_ND.shape[1] != len(self.mean_D):
            raise ValueError(
                f"features have width {features_ND.shape[1]}, the partition was fitted on width {len(self.mean_D)}: "
                "were they made by different trunks?"
            )
        x_NP = (features_ND - self.mean_D) @ self.projection_DP
        x_NP = x_NP / np.maximum(np.linalg.norm(x_NP, axis=1, keepdims=True), 1e-12)
        return x_NP.astype(np.float32, copy=False)


class Moments:
    """Sums from which mean and covariance follow; its memory is D x D however many posts are added."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.sum_D = np.zeros(width)
        self.sum_DD = np.zeros((width, width))

    def add(self, features_ND: np.ndarray) -> None:
        """Adds features to the sums. Raises NotFinite for one that is not finite."""
        x_ND = features_ND.astype(np.float64)
        if not np.isfinite(x_ND).all():
            raise NotFinite("a feature is not finite: check the trunk's weights")
        self.count += len(x_ND)
        self.sum_D += x_ND.sum(0)
        self.sum_DD += x_ND.T @ x_ND


def whiten(moments: Moments, dimensions: int) -> Whitening:
    """Keeps the `dimensions` directions of largest variance, fewer where the features do not fill them."""
    if moments.count == 0:
        raise TooFewPosts("no posts to fit on: wanted at least one")
    mean_D = moments.sum_D / moments.count
    covariance_DD = moments.sum_DD / moments.count - np.outer(mean_D, mean_D)
    variance_D, axes_DD = np.linalg.eigh((covariance_DD + covariance_DD.T) / 2)
    order = np.argsort(-variance_D, kind="stable")[:dimensions]
    order = order[variance_D[order] > SMALLEST * max(variance_D.max(), 0)]
    scale = float(np.abs(moments.sum_DD).max()) / moments.count
    if not len(order) or variance_D[order[0]] <= 1e-12 * scale:
        raise TooFewPosts(
            f"all {moments.count} posts have the same features: wanted images that differ, and a trunk that tells them "
            "apart (trunk.epochs, trunk.lr)"
        )
    axes_DP = axes_DD[:, order]
    largest = np.abs(axes_DP).argmax(axis=0)
    axes_DP = axes_DP * np.sign(axes_DP[largest, np.arange(axes_DP.shape[1])])  # eigh leaves the sign open
    return Whitening(mean_D.astype(np.float32), (axes_DP / np.sqrt(variance_D[order])).astype(np.float32))
