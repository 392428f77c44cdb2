"""Drift: how posts that arrived since the gate was fitted lie, against those that it was fitted on. Churn: which
training posts stayed, moved, came and went between a partition and the one that it continues.

Letters: N posts, K experts.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moe_core.clustering.random_partition import count_pairs
from moe_core.engine.context import Context
from moe_core.stages.gate.posts import Placement, PostTable
from moe_core.stages.gate.previous import PreviousPartition

FAR, AMBIGUOUS = 0.99, 0.05  # quantiles at the fit: beyond and below them a post is called far, or ambiguous


def as_fitted(training_N: np.ndarray, experts: int, placement: Placement) -> dict[str, Any]:
    """How the training posts lie when the gate is fitted: what drift is measured by."""
    far, sizes = [], []
    for k in range(experts):
        distances = placement.distance_N[training_N & (placement.expert_N == k)]
        far.append(float(np.quantile(distances, FAR)) if len(distances) else 0.0)
        sizes.append(len(distances))
    return {
        "far_beyond": far,
        "ambiguous_below": float(np.quantile(placement.gap_N[training_N], AMBIGUOUS)) if experts > 1 else 0.0,
        "imbalance": imbalance(sizes),
    }


def drift(
    training_N: np.ndarray, new_since_fit_N: np.ndarray, placement: Placement, fitted: dict[str, Any]
) -> dict[str, float]:
    """How many posts arrived since the fit, and the shares of them that are far or ambiguous by what was usual
    then; and how much more unequal experts are than then."""
    far_N = placement.distance_N[new_since_fit_N] > np.array(fitted["far_beyond"])[placement.expert_N[new_since_fit_N]]
    ambiguous_N = placement.gap_N[new_since_fit_N] < fitted["ambiguous_below"]
    sizes = np.bincount(placement.expert_N[training_N], minlength=len(fitted["far_beyond"])).tolist()
    return {
        "posts_since_fit": int(new_since_fit_N.sum()),
        "far": round(float(far_N.mean()), 4) if len(far_N) else 0.0,
        "ambiguous": round(float(ambiguous_N.mean()), 4) if len(far_N) else 0.0,
        "imbalance": round(imbalance(sizes) / fitted["imbalance"], 3),
    }


def imbalance(sizes: list[int]) -> float:
    """The largest by the mean."""
    return round(max(sizes) / (sum(sizes) / len(sizes)), 3)


def write_churn(
    context: Context,
    folder: Path,
    posts: PostTable,
    previous: PreviousPartition,
    expert_N: np.ndarray,
    changed: Mapping[str, float],
    retrained: list[str],
) -> dict[str, Any]:
    """Writes churn.json, by expert, and returns its totals; `changed`: share of its posts since its training."""
    keys, old = context.experts, len(previous.keys)
    was_N = np.where(previous.was_N < 0, old, previous.was_N)[posts.training_N]
    matrix = count_pairs(was_N, expert_N[posts.training_N], (old + 1, len(keys)))
    by_expert = {}
    for k, key in enumerate(keys):
        was = previous.keys.index(key) if key in previous.keys else None
        stayed = int(matrix[was, k]) if was is not None else 0
        by_expert[key] = {
            "now": int(matrix[:, k].sum()),
            "stayed": stayed,
            "came": int(matrix[:old, k].sum()) - stayed,
            "left": int(matrix[was].sum()) - stayed if was is not None else 0,
            "new": int(matrix[old, k]),
            "gone": int(previous.gone_K[was]) if was is not None else 0,
            "changed": changed[key],
            "again": key in retrained,
        }
    (folder / "churn.json").write_text(
        json.dumps({"before": previous.keys, "now": keys, "posts": matrix.tolist(), "experts": by_expert})
    )
    return {
        "moved": sum(expert["came"] for expert in by_expert.values()),
        "new": int(matrix[old].sum()),
        "gone": int(previous.gone_K.sum()),
        "trained_again": retrained,
        "kept": [key for key in keys if key not in retrained],
    }
