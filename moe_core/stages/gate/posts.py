"""All the posts as a partition sees them, and passes over their features.

Letters: N posts, F that are fitted on, B of a part, D embedding width, P whitened dimensions, M centroids, K experts.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from moe_core.clustering.gate import Gate
from moe_core.clustering.kmeans import assign
from moe_core.clustering.product import best_device, rows_at_once
from moe_core.clustering.random_partition import random_partition
from moe_core.clustering.whitening import Whitening, whiten
from moe_core.data.splits import SPLITS
from moe_core.engine.context import Context
from moe_core.errors import TooFewPosts
from moe_core.settings import Partition
from moe_core.stages import reading


@dataclass(frozen=True)
class PostTable:
    """All the posts in the one order, and which of them the gate is fitted on."""

    columns: pl.DataFrame  # shard and id
    index: reading.Index
    training_N: np.ndarray  # bool

    @property
    def ids(self) -> np.ndarray:
        return np.asarray(self.columns["id"].to_numpy())


@dataclass(frozen=True)
class Placement:
    """Where a gate places the posts, (N,) each."""

    expert_N: np.ndarray
    distance_N: np.ndarray  # to its expert
    gap_N: np.ndarray  # how much farther the next expert is


def post_table(context: Context) -> PostTable:
    """Raises TooFewPosts where training posts are fewer than experts."""
    columns = reading.splits(context).select("shard", "id")
    index = reading.index(context)
    posts = PostTable(columns, index, index.use("train"))
    experts, count = context.study.partition.experts, int(posts.training_N.sum())
    if experts > count:
        raise TooFewPosts(
            f"partition.experts = {experts}, but only {count} training posts carry a hashtag: "
            "lower partition.experts, or add posts"
        )
    return posts


def whitening_of(context: Context, posts: PostTable) -> Whitening:
    mine = (part_BD[posts.training_N[rows_B]] for part_BD, rows_B in reading.trunk_features(context))
    return whiten(mine, context.study.partition.pca, best_device())


def whitened(context: Context, whitening: Whitening, wanted_N: np.ndarray) -> np.ndarray:
    """(F, P) float32 of the posts where `wanted_N`, one bool a post, holds: of their features few exist at once."""
    device, first = best_device(), 0
    out_FP = np.empty((int(wanted_N.sum()), whitening.projection_DP.shape[1]), np.float32)
    for part_BD in _regrouped(
        (part_BD[wanted_N[rows_B]] for part_BD, rows_B in reading.trunk_features(context)),
        rows_at_once(len(whitening.mean_D)),
    ):
        out_FP[first : first + len(part_BD)] = whitening.apply(part_BD, device)
        first += len(part_BD)
    return out_FP


def _regrouped(parts: Iterable[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """The rows of all parts, so many at a time: the last bits of a product depend on it, and should not on shards."""
    waiting: list[np.ndarray] = []
    for part_BD in parts:
        waiting.append(part_BD)
        while sum(map(len, waiting)) >= rows:
            some_BD = np.concatenate(waiting)
            yield some_BD[:rows]
            waiting = [some_BD[rows:]]
    if sum(map(len, waiting)):
        yield np.concatenate(waiting)


def sizes_of(context: Context, posts: PostTable, whitening: Whitening, centroids_MP: np.ndarray) -> np.ndarray:
    """(M,) int64: training posts of each centroid."""
    sizes_M = np.zeros(len(centroids_MP), np.int64)
    for part_BD, rows_B in reading.trunk_features(context):
        nearest_B = assign(whitening.apply(part_BD[posts.training_N[rows_B]], best_device()), centroids_MP)
        sizes_M += np.bincount(nearest_B, minlength=len(centroids_MP))
    return sizes_M


def placed(context: Context, gate: Gate) -> Placement:
    """Each post at its nearest expert."""
    found = [gate.nearest(part_BD, best_device()) for part_BD, _ in reading.trunk_features(context)]
    return Placement(*(np.concatenate(column) for column in zip(*found, strict=True)))


def dealt_at_random(posts: PostTable, expert_N: np.ndarray, old_N: np.ndarray, settings: Partition) -> np.ndarray:
    """(N,) int64: the control's expert of each post. Among the training posts, and among the others of each split, its
    experts have as many as those of `expert_N`; as few posts leave `old_N` (-1: none) as that takes."""
    random_N = np.empty_like(expert_N)
    for rows_N in (posts.training_N, *(~posts.training_N & (posts.index.split_N == split) for split in SPLITS)):
        sizes_K = np.bincount(expert_N[rows_N], minlength=settings.experts)
        random_N[rows_N] = random_partition(posts.ids[rows_N].tolist(), sizes_K, settings.seed, old_N[rows_N])
    return random_N


def sample(wanted_N: np.ndarray, most: int, seed: int) -> np.ndarray:
    """(N,) bool: at most `most` of the wanted posts, at random."""
    rows = np.flatnonzero(wanted_N)
    if len(rows) <= most:
        return wanted_N
    chosen_N = np.zeros_like(wanted_N)
    chosen_N[np.random.default_rng(seed).choice(rows, most, replace=False)] = True
    return chosen_N
