"""What a first fit and a refit share: the posts, the passes over their features, the artifact's files.

Letters: N posts, D embedding width, P whitened dimensions, M centroids, K experts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_core.clustering.assign import assign
from moe_core.clustering.whitening import Moments, whiten
from moe_core.engine.context import Context
from moe_core.errors import TooFewPosts
from moe_core.stages import reading
from moe_core.stages.gate.contact_sheets import top_hashtags, write_sheets
from moe_core.stages.trunk.frozen import pointer_file
from moe_core.store.artifact import StageOutput
from moe_core.store.hashing import file_hash

if TYPE_CHECKING:
    import polars as pl

    from moe_core.clustering.gate import Gate
    from moe_core.clustering.whitening import Whitening

FAR, AMBIGUOUS = 0.99, 0.05  # quantiles at the fit: beyond and below them a post is called far, or ambiguous


@dataclass(frozen=True)
class Posts:
    """All the posts, as a partition sees them."""

    columns: pl.DataFrame  # shard and id
    index: reading.Index
    training_N: np.ndarray  # bool

    @property
    def ids(self) -> np.ndarray:
        found: np.ndarray = self.columns["id"].to_numpy()
        return found

    def groups(self) -> list[np.ndarray]:
        """(N,) bool each: training posts, and the others of each split, within which random sizes are those of K."""
        from moe_core.data.splits import SPLITS

        return [self.training_N, *(~self.training_N & (self.index.split_N == split) for split in SPLITS)]


def posts_of(context: Context) -> Posts:
    """Raises ValueError where training posts are fewer than experts."""
    columns = reading.all_columns(context, ["shard", "id"])
    index = reading.index(context)
    posts = Posts(columns, index, index.use("train"))
    experts, count = context.study.partition.experts, int(posts.training_N.sum())
    if experts > count:
        raise TooFewPosts(
            f"partition.experts = {experts}, but only {count} training posts carry a hashtag: "
            "lower partition.experts, or add posts"
        )
    return posts


def whitening_of(context: Context, posts: Posts) -> Whitening:
    moments: Moments | None = None
    for part_BD, rows_B in parts(context):
        moments = moments or Moments(part_BD.shape[1])
        moments.add(part_BD[posts.training_N[rows_B]])
    assert moments is not None
    return whiten(moments, context.study.partition.pca)


def parts(context: Context) -> Iterator[tuple[np.ndarray, slice]]:
    """((B, D) float32 features, which posts of the one order) part by part."""
    first = 0
    for part_BD in reading.trunk_features(context):
        yield part_BD, slice(first, first + len(part_BD))
        first += len(part_BD)


def sizes_of(context: Context, posts: Posts, whitening: Whitening, centroids_MP: np.ndarray) -> np.ndarray:
    """(M,) int64: training posts of each centroid."""
    sizes_M = np.zeros(len(centroids_MP), np.int64)
    for part_BD, rows_B in parts(context):
        nearest_B = assign(whitening.apply(part_BD[posts.training_N[rows_B]]), centroids_MP)
        sizes_M += np.bincount(nearest_B, minlength=len(centroids_MP))
    return sizes_M


def nearest(context: Context, gate: Gate) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N,) each: expert of a post, its distance, and how much farther the next expert is."""
    found = [gate.nearest(part_BD) for part_BD, _ in parts(context)]
    expert_N, distance_N, gap_N = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return expert_N, distance_N, gap_N


def sample(wanted_N: np.ndarray, most: int, seed: int) -> np.ndarray:
    """(N,) bool: at most `most` of the wanted posts, at random."""
    rows = np.flatnonzero(wanted_N)
    if len(rows) <= most:
        return wanted_N
    chosen_N = np.zeros_like(wanted_N)
    chosen_N[np.random.default_rng(seed).choice(rows, most, replace=False)] = True
    return chosen_N


def as_fitted(
    posts: Posts, gate: Gate, expert_N: np.ndarray, distance_N: np.ndarray, gap_N: np.ndarray
) -> dict[str, Any]:
    """How the posts lay when the gate was fitted: what a drift is measured by."""
    mine = [posts.training_N & (expert_N == k) for k in range(gate.experts)]
    sizes = [int(mine_N.sum()) for mine_N in mine]
    several = gate.experts > 1
    return {
        "far_beyond": [float(np.quantile(distance_N[mine_N], FAR)) if mine_N.any() else 0.0 for mine_N in mine],
        "ambiguous_below": float(np.quantile(gap_N[posts.training_N], AMBIGUOUS)) if several else 0.0,
        "imbalance": imbalance(sizes),
    }


def imbalance(sizes: list[int]) -> float:
    """The largest by the mean."""
    return round(max(sizes) / (sum(sizes) / len(sizes)), 3)


def write(
    context: Context,
    folder: Path,
    posts: Posts,
    gate: Gate,
    placed: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    more: dict[str, np.ndarray],
    said: dict[str, Any],
) -> StageOutput:
    """Writes a partition; `placed`: expert, distance, gap and random expert of each post; `more` columns of the
    assignment; `said`: metadata, its digests of members among them. Raises ValueError for an expert without posts."""
    import polars as pl

    expert_N, distance_N, gap_N, random_N = placed
    assignment = posts.columns.with_columns(
        pl.Series("split", posts.index.split_N.tolist(), pl.String),
        pl.Series("expert", expert_N, pl.Int32),
        pl.Series("random", random_N, pl.Int32),
        *(pl.Series(name, column_N) for name, column_N in more.items()),
    )
    assignment.write_parquet(folder / "assignment.parquet", statistics=False)
    gate.save(
        folder / "gate.safetensors",
        {"asset": "partition", "version": context.version("partition"), "trunk": context.version("trunk")},
    )
    members = {"expert": said["members"], "random": said["random_members"]}
    (folder / "members.json").write_text(json.dumps(members, indent=1, sort_keys=True))
    experts = len(context.experts)
    sizes = [int(n) for n in np.bincount(expert_N[posts.training_N], minlength=experts)]
    if min(sizes) == 0:
        empty = [key for key, n in zip(context.experts, sizes, strict=True) if n == 0]
        raise TooFewPosts(f"{', '.join(empty)} got no training post: lower partition.experts")
    write_sheets(context, folder, posts.index, expert_N, distance_N, gap_N)
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
        | said,
        content={name: file_hash(folder / name) for name in ("gate.safetensors", "members.json")},
    )
