"""A sample of embeddings on a plane: their two largest principal components, so that any other embedding has its place.

Letters: M posts of the sample, B others, D embedding width, K experts.
"""

from dataclasses import dataclass

import numpy as np

from moe_core.search.lists import unit


@dataclass(frozen=True)
class Plane:
    """Where posts lie. `share`: of the variance of the sample that the plane shows."""

    rows_M: np.ndarray
    unit_MD: np.ndarray  # of unit length
    at_M2: np.ndarray
    mean_D: np.ndarray
    axes_D2: np.ndarray
    share: float

    def at(self, embedding_BD: np.ndarray) -> np.ndarray:
        """(B, 2) float32: where any embeddings lie."""
        return ((unit(embedding_BD) - self.mean_D) @ self.axes_D2).astype(np.float32)

    def typical(self, expert_M: np.ndarray, most: int) -> np.ndarray:
        """Places in the sample of `most` of each expert that are nearest to the mean of those of the expert."""
        found = [np.zeros(0, np.int64)]
        for number in np.unique(expert_M):
            its = np.flatnonzero(expert_M == number)
            score = self.unit_MD[its] @ self.unit_MD[its].mean(0)
            found.append(its[np.argsort(-score, kind="stable")[:most]])
        return np.concatenate(found)


def fitted(rows_M: np.ndarray, unit_MD: np.ndarray) -> Plane:
    """The plane of the sample itself. Each axis points to where its largest entry is positive."""
    width = unit_MD.shape[1]
    mean_D = unit_MD.mean(0) if len(unit_MD) else np.zeros(width, np.float32)
    centered_MD = unit_MD - mean_D
    variance_D, directions_DD = np.linalg.eigh(centered_MD.T.astype(np.float64) @ centered_MD)  # ascending
    axes_D2 = directions_DD[:, ::-1][:, :2]
    axes_D2 = np.pad(axes_D2, ((0, 0), (0, 2 - axes_D2.shape[1])))
    axes_D2 = (axes_D2 * np.where(axes_D2[np.abs(axes_D2).argmax(0), [0, 1]] < 0, -1, 1)).astype(np.float32)
    share = float(variance_D[-2:].sum() / variance_D.sum()) if variance_D.sum() > 0 else 0.0
    return Plane(rows_M, unit_MD, (centered_MD @ axes_D2).astype(np.float32), mean_D, axes_D2, share)
