"""Churn: which training posts stayed, moved, came and went between a partition and the one that it continues.

Letters: N posts, K experts.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from moe_core.engine.context import Context
from moe_core.stages.gate.posts import PostTable
from moe_core.stages.gate.previous import PreviousPartition


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
    was_N = np.where(previous.was_N < 0, old, previous.was_N)
    matrix = np.bincount(
        (was_N * len(keys) + expert_N)[posts.training_N],
        minlength=(old + 1) * len(keys),
    ).reshape(old + 1, len(keys))
    gone = previous.assignment.filter(pl.col("split") == "train").join(posts.columns, on=["shard", "id"], how="anti")
    gone_K = np.bincount(gone["expert"].to_numpy(), minlength=old)
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
            "gone": int(gone_K[was]) if was is not None else 0,
            "changed": changed[key],
            "again": key in retrained,
        }
    (folder / "churn.json").write_text(
        json.dumps({"before": previous.keys, "now": keys, "posts": matrix.tolist(), "experts": by_expert})
    )
    return {
        "moved": sum(expert["came"] for expert in by_expert.values()),
        "new": int(matrix[old].sum()),
        "gone": len(gone),
        "trained_again": retrained,
        "kept": [key for key in keys if key not in retrained],
    }
