"""partition: PCA-whitening and k-means on the trunk's features of the training posts; every post gets one expert."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moe_core.stages import reading
from moe_core.stages.clusters import top_hashtags, write_sheets
from moe_core.stages.context import Context
from moe_core.stages.stage import Stage
from moe_core.store import Artefact, Written, file_digest

if TYPE_CHECKING:
    from moe_core.data.loading import Labels


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
    columns = reading.all_columns(context, ["shard", "id"])
    index = reading.index(context)
    training_N = index.use("train")
    count = int(training_N.sum())
    if settings.experts > count:
        raise ValueError(
            f"partition.experts = {settings.experts}, but only {count} training posts carry a hashtag: "
            "lower partition.experts, or add posts"
        )
    moments: Moments | None = None
    for part_BD, rows_B in _parts(context):
        moments = moments or Moments(part_BD.shape[1])
        moments.add(part_BD[training_N[rows_B]])
    assert moments is not None
    whitening = whiten(moments, settings.pca)
    fitted_NP = whitening.apply(
        reading.trunk_features_where(context, _sample(training_N, settings.max_fit_posts, settings.seed))
    )
    clusters = settings.fine or settings.experts
    found = fit(fitted_NP, clusters, settings.iterations, settings.restarts, settings.seed)
    expert_M = np.arange(clusters)
    if settings.fine:
        sizes_M = np.zeros(clusters, np.int64)
        for part_BD, rows_B in _parts(context):
            nearest_B = assign(whitening.apply(part_BD[training_N[rows_B]]), found.centroids_KP)
            sizes_M += np.bincount(nearest_B, minlength=clusters)
        expert_M = pack(sizes_M, found.centroids_KP, settings.experts)
    gate = Gate(whitening, found.centroids_KP, expert_M)
    nearest = [gate.nearest(part_BD) for part_BD, _ in _parts(context)]
    expert_N, distance_N, gap_N = (np.concatenate(parts) for parts in zip(*nearest, strict=True))
    random_N = np.empty_like(expert_N)
    ids = columns["id"].to_numpy()
    for rows_N in [training_N, *(~training_N & (index.split_N == s) for s in SPLITS)]:
        sizes_K = np.bincount(expert_N[rows_N], minlength=settings.experts)
        random_N[rows_N] = random_partition(ids[rows_N].tolist(), sizes_K, settings.seed)
    assignment = columns.with_columns(
        pl.Series("split", index.split_N.tolist(), pl.String),
        pl.Series("expert", expert_N, pl.Int32),
        pl.Series("random", random_N, pl.Int32),
    )
    assignment.write_parquet(folder / "assignment.parquet", statistics=False)
    gate.save(
        folder / "gate.safetensors",
        {"asset": "partition", "version": context.version("partition"), "trunk": context.version("trunk")},
    )
    members = {
        name: {
            f"e{k:03d}": _digest_of_members(ids, index.labels, training_N & (column_N == k))
            for k in range(settings.experts)
        }
        for name, column_N in (("expert", expert_N), ("random", random_N))
    }
    (folder / "members.json").write_text(json.dumps(members, indent=1, sort_keys=True))
    sizes = [int(n) for n in np.bincount(expert_N[training_N], minlength=settings.experts)]
    if min(sizes) == 0:
        empty = [f"e{k:03d}" for k, n in enumerate(sizes) if n == 0]
        raise ValueError(f"{', '.join(empty)} got no training post: lower partition.experts")
    write_sheets(context, folder, index, expert_N, distance_N, gap_N)
    hashtags = reading.vocabulary(context).hashtags
    top = top_hashtags(hashtags, index.labels, training_N, expert_N, settings.experts)
    return Written(
        {
            "experts": settings.experts,
            "centroids": clusters,
            "fitted_on": len(fitted_NP),
            "training_posts": count,
            "dimensions": int(whitening.projection_DP.shape[1]),
            "objective": float(found.objective),
            "sizes": sizes,
            "imbalance": round(max(sizes) / (sum(sizes) / len(sizes)), 3),
            "hashtags": dict(zip(context.experts, top, strict=True)),
            "members": members["expert"],
            "random_members": members["random"],
        },
        content={name: file_digest(folder / name) for name in ("gate.safetensors", "members.json")},
    )


def _parts(context: Context) -> Iterator[tuple[np.ndarray, slice]]:
    """((B, D) float32 features, which posts of the one order) part by part."""
    first = 0
    for part_BD in reading.trunk_features(context):
        yield part_BD, slice(first, first + len(part_BD))
        first += len(part_BD)


def _sample(wanted_N: np.ndarray, most: int, seed: int) -> np.ndarray:
    """(N,) bool: at most `most` of the wanted posts, at random."""
    rows = np.flatnonzero(wanted_N)
    if len(rows) <= most:
        return wanted_N
    chosen_N = np.zeros_like(wanted_N)
    chosen_N[np.random.default_rng(seed).choice(rows, most, replace=False)] = True
    return chosen_N


def _digest_of_members(ids: np.ndarray, labels: Labels, rows_N: np.ndarray) -> str:
    """Of the sorted ids of some posts and the hashtags of each that are predicted."""
    rows = np.flatnonzero(rows_N)
    mine = labels.where(rows)
    text = mine.tags_T.astype(str)
    lines = sorted(
        f"{ids[row]} {','.join(text[a:b])}" for row, (a, b) in zip(rows, pairwise(mine.starts_N1), strict=True)
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:20]


def _ids(artefact: Artefact) -> list[str]:
    import polars as pl

    return pl.read_parquet(artefact.file("assignment.parquet"), columns=["id"])["id"].to_list()


PARTITION = Stage(
    name="partition",
    keys=None,
    code="3",
    reads=("trunk_features", "vocabulary", "posts"),
    settings=lambda study: study.partition.model_dump(),
    inputs=lambda context, key: {
        f"features {shard.key}": context.version("trunk_features", shard.key) for shard in context.shards
    },
    make=_make,
    holds=_ids,
)
