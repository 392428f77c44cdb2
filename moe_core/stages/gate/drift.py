"""Drift: how posts that arrived since the gate was fitted lie, against those that it was fitted on.

Letters: N posts, K experts.
"""

from typing import Any

import numpy as np

from moe_core.stages.gate.posts import Placement

FAR, AMBIGUOUS = 0.99, 0.05  # quantiles at the fit: beyond and below them a post is called far, or ambiguous


def as_fitted(training_N: np.ndarray, experts: int, placement: Placement) -> dict[str, Any]:
    """How the training posts lie when the gate is fitted: what drift is measured by."""
    mine = [training_N & (placement.expert_N == k) for k in range(experts)]
    far = [float(np.quantile(placement.distance_N[mine_N], FAR)) if mine_N.any() else 0.0 for mine_N in mine]
    return {
        "far_beyond": far,
        "ambiguous_below": float(np.quantile(placement.gap_N[training_N], AMBIGUOUS)) if experts > 1 else 0.0,
        "imbalance": imbalance([int(mine_N.sum()) for mine_N in mine]),
    }


def drift(training_N: np.ndarray, late_N: np.ndarray, placement: Placement, fitted: dict[str, Any]) -> dict[str, float]:
    """Of the posts that arrived since the fit: how many, and the shares that are far or ambiguous by what was usual
    then; and how much more unequal experts are than then."""
    far_N = placement.distance_N[late_N] > np.array(fitted["far_beyond"])[placement.expert_N[late_N]]
    ambiguous_N = placement.gap_N[late_N] < fitted["ambiguous_below"]
    sizes = np.bincount(placement.expert_N[training_N], minlength=len(fitted["far_beyond"])).tolist()
    return {
        "posts_since_fit": int(late_N.sum()),
        "far": round(float(far_N.mean()), 4) if len(far_N) else 0.0,
        "ambiguous": round(float(ambiguous_N.mean()), 4) if len(far_N) else 0.0,
        "imbalance": round(imbalance(sizes) / fitted["imbalance"], 3),
    }


def imbalance(sizes: list[int]) -> float:
    """The largest by the mean."""
    return round(max(sizes) / (sum(sizes) / len(sizes)), 3)
