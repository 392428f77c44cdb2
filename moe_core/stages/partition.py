"""partition: PCA-whitening and k-means on the trunk's features of the training posts; every post gets one expert."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moe_core.stages import reading
from moe_core.stages.context import Context
from moe_core.stages.stage import Stage
from moe_core.store import Written, file_digest

if TYPE_CHECKING:
    import polars as pl

ROWS = 65_536  # added to the moments at once: bounds the copy in float64
RANDOM_SEED = 0  # of the random partition that is the control


def _make(context: Context, key: str | None, folder: Path) -> Written:
    import polars as pl

    from moe_core.clustering.assign import assign
    from moe_core.clustering.balance import pack
    from moe_core.clustering.gate import Gate
    from moe_core.clustering.kmeans import fit
    from moe_core.clustering.random_partition import random_partition
    from moe_core.clustering.whitening import Moments, whiten
    from moe_core.data.splits import SPLITS

    settings = context.study.partition
    columns = reading.all_columns(context, ["shard", "id", "tags"]).with_columns(reading.splits(context)["split"])
    features_ND = reading.trunk_features(context)
    training_N = reading.index(context).use("train")
    train_ND = features_ND[training_N]
    if settings.experts > len(train_ND):
        raise ValueError(
            f"partition.experts = {settings.experts}, but only {len(train_ND)} training posts carry a hashtag: "
            "lower partition.experts, or add posts"
        )
    moments = Moments(train_ND.shape[1])
    for first in range(0, len(train_ND), ROWS):
        moments.add(train_ND[first : first + ROWS])
    whitening = whiten(moments, settings.pca)
    fitted_NP = whitening.apply(_sample(train_ND, settings.max_fit_posts, settings.seed))
    clusters = settings.fine or settings.experts
    found = fit(fitted_NP, clusters, settings.iterations, settings.restarts, settings.seed)
    expert_M = np.arange(clusters)
    if settings.fine:
        nearest_N = assign(whitening.apply(train_ND), found.centroids_KP)
        expert_M = pack(np.bincount(nearest_N, minlength=clusters), found.centroids_KP, settings.experts)
    gate = Gate(whitening, found.centroids_KP, expert_M)
    expert_N = gate.assign(features_ND)
    random_N = np.empty_like(expert_N)
    ids = columns["id"].to_numpy()
    for rows_N in [training_N, *(~training_N & (columns["split"].to_numpy() == s) for s in SPLITS)]:
        sizes_K = np.bincount(expert_N[rows_N], minlength=settings.experts)
        random_N[rows_N] = random_partition(ids[rows_N].tolist(), sizes_K, RANDOM_SEED)
    assignment = columns.select("shard", "id", "split").with_columns(
        pl.Series("expert", expert_N, pl.Int32), pl.Series("random", random_N, pl.Int32)
    )
    assignment.write_parquet(folder / "assignment.parquet", statistics=False)
    gate.save(
        folder / "gate.safetensors",
        {"asset": "partition", "version": context.version("partition"), "trunk": context.version("trunk")},
    )
    labels = _labels(context, columns)
    members = {
        name: {
            f"e{k:03d}": _digest_of_members(ids, labels, training_N & (column_N == k)) for k in range(settings.experts)
        }
        for name, column_N in (("expert", expert_N), ("random", random_N))
    }
    (folder / "members.json").write_text(json.dumps(members, indent=1, sort_keys=True))
    sizes = [int(n) for n in np.bincount(expert_N[training_N], minlength=settings.experts)]
    if min(sizes) == 0:
        empty = [f"e{k:03d}" for k, n in enumerate(sizes) if n == 0]
        raise ValueError(f"{', '.join(empty)} got no training post: lower partition.experts")
    return Written(
        {
            "experts": settings.experts,
            "centroids": clusters,
            "fitted_on": len(fitted_NP),
            "training_posts": len(train_ND),
            "dimensions": int(whitening.projection_DP.shape[1]),
            "objective": float(found.objective),
            "sizes": sizes,
            "imbalance": round(max(sizes) / (sum(sizes) / len(sizes)), 3),
            "members": members["expert"],
            "random_members": members["random"],
        },
        content={name: file_digest(folder / name) for name in ("gate.safetensors", "members.json")},
    )


def _sample(x_ND: np.ndarray, most: int, seed: int) -> np.ndarray:
    if len(x_ND) <= most:
        return x_ND
    return x_ND[np.sort(np.random.default_rng(seed).choice(len(x_ND), most, replace=False))]


def _labels(context: Context, columns: pl.DataFrame) -> list[str]:
    """The hashtags of each post that are predicted, as one text."""
    ids_T, starts_N1 = reading.vocabulary(context).compressed_rows(columns["tags"])
    text = ids_T.astype(str)
    return [",".join(text[a:b]) for a, b in pairwise(starts_N1)]


def _digest_of_members(ids: np.ndarray, labels: list[str], rows_N: np.ndarray) -> str:
    lines = sorted(f"{ids[row]} {labels[row]}" for row in np.flatnonzero(rows_N))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:20]


PARTITION = Stage(
    name="partition",
    keys=None,
    code="1",
    reads=("trunk_features", "vocabulary", "posts", "splits"),
    settings=lambda study: study.partition.model_dump(),
    inputs=lambda context, key: {
        f"features {shard.key}": context.version("trunk_features", shard.key) for shard in context.shards
    },
    make=_make,
)
