"""The files and metadata of a partition, fitted from scratch or continued."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from moe_core.clustering.gate import Gate
from moe_core.engine.context import Context
from moe_core.errors import TooFewPosts
from moe_core.stages import reading
from moe_core.stages.gate.contact_sheets import top_hashtags, write_sheets
from moe_core.stages.gate.drift import imbalance
from moe_core.stages.gate.posts import Placement, PostTable
from moe_core.stages.trunk.frozen import pointer_file
from moe_core.store.artifact import Spec, StageOutput
from moe_core.store.hashing import file_hash


def write(
    context: Context,
    spec: Spec,
    folder: Path,
    posts: PostTable,
    gate: Gate,
    placement: Placement,
    random_N: np.ndarray,
    columns: dict[str, np.ndarray],
    metadata: dict[str, Any],
) -> StageOutput:
    """`random_N`: the control's expert of each post; `columns`: more of the assignment; `metadata`: hashes of members
    among it. Raises TooFewPosts for an expert without posts."""
    expert_N = placement.expert_N
    assignment = posts.columns.with_columns(
        pl.Series("split", posts.index.split_N.tolist(), pl.String),
        pl.Series("expert", expert_N, pl.Int32),
        pl.Series("random", random_N, pl.Int32),
        *(pl.Series(name, column_N) for name, column_N in columns.items()),
    )
    assignment.write_parquet(folder / "assignment.parquet", statistics=False)
    gate.save(
        folder / "gate.safetensors",
        {"asset": "partition", "version": spec.version, "trunk": context.version("trunk")},
    )
    members = {"expert": metadata["members"], "random": metadata["random_members"]}
    (folder / "members.json").write_text(json.dumps(members, indent=1, sort_keys=True))
    experts = len(context.experts)
    sizes = [int(n) for n in np.bincount(expert_N[posts.training_N], minlength=experts)]
    if min(sizes) == 0:
        empty = [key for key, n in zip(context.experts, sizes, strict=True) if n == 0]
        raise TooFewPosts(f"{', '.join(empty)} got no training post: lower partition.experts")
    write_sheets(context, folder, posts.index, expert_N, placement.distance_N, placement.gap_N)
    hashtags = reading.vocabulary(context).hashtags
    top = top_hashtags(hashtags, posts.index.labels, posts.training_N, expert_N, experts)
    return StageOutput(
        {
            "pointer": pointer_file(context.planner.graph, context.study, context.root, "partition").name,
            "trunk": context.version("trunk"),
            "experts": experts,
            "centroids": len(gate.centroids_MP),
            "training_posts": int(posts.training_N.sum()),
            "dimensions": int(gate.whitening.projection_DP.shape[1]),
            "sizes": sizes,
            "imbalance": imbalance(sizes),
            "hashtags": dict(zip(context.experts, top, strict=True)),
        }
        | metadata,
        content={name: file_hash(folder / name) for name in ("gate.safetensors", "members.json")},
    )
