"""All the posts as a partition sees them, and passes over their features.

Letters: N posts, F that are fitted on, B of a part, D embedding width, P whitened dimensions, M centroids, K experts.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from moe_core.clustering.gate import Gate
from moe_core.clustering.kmeans import assign
from moe_core.clustering.product import best_device, rows_at_once
from moe_core.clustering.random_partition import count_pairs, random_partition
from moe_core.clustering.whitening import Whitening, whiten
from moe_core.data.loading import Labels
from moe_core.data.splits import SPLITS
from moe_core.engine.context import Context
from moe_core.errors import TooFewPosts
from moe_core.stages import reading
from moe_core.tables.location import tables_of
from moe_core.tables.reading import scan_rows

MEMORY = 32 << 20  # bytes, to sort posts for the control


@dataclass(frozen=True)
class PostBatch:
    """Some posts of a shard, without their pictures."""

    shard: str
    rows: slice  # in the one order of all the posts
    ids: list[str]
    labels: Labels


def post_batches(context: Context) -> Iterator[PostBatch]:
    """All the posts in the one order."""
    vocabulary, first = reading.vocabulary(context), 0
    table = tables_of(context.store).posts
    for place in reading.places(context):
        for batch in scan_rows(table, place.version, place.shard, ["id", "tags"], reading.BATCH):
            rows = slice(first, first + len(batch["id"]))
            labels = Labels(*vocabulary.compressed_rows(pl.Series(batch["tags"])))
            yield PostBatch(place.shard, rows, batch["id"].to_pylist(), labels)
            first = rows.stop


@dataclass(frozen=True)
class PostTable:
    """What is in memory of all the posts, in the one order: a few bytes of each."""

    split_N: np.ndarray  # int8: a number in SPLITS
    training_N: np.ndarray  # bool: the gate is fitted on it
    rows: dict[str, slice]  # of each shard


@dataclass(frozen=True)
class Placement:
    """Where a gate places the posts, (N,) each."""

    expert_N: np.ndarray  # int32
    distance_N: np.ndarray  # to its expert
    gap_N: np.ndarray  # how much farther the next expert is


def post_table(context: Context) -> PostTable:
    """Raises TooFewPosts where training posts are fewer than experts."""
    split_N = reading.split_numbers(context)
    training_N, rows = split_N == SPLITS.index("train"), dict[str, slice]()
    for batch in post_batches(context):
        training_N[batch.rows] &= batch.labels.tagged_N
        rows[batch.shard] = slice(rows.get(batch.shard, batch.rows).start, batch.rows.stop)
    experts, count = context.study.partition.experts, int(training_N.sum())
    if experts > count:
        raise TooFewPosts(
            f"partition.experts = {experts}, but only {count} training posts carry a hashtag: "
            "lower partition.experts, or add posts"
        )
    nothing = slice(0, 0)  # of a shard all of whose posts were rejected or taken down
    return PostTable(split_N, training_N, {shard.key: rows.get(shard.key, nothing) for shard in context.shards})


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


def placed(context: Context, gate: Gate, posts: PostTable) -> Placement:
    """Each post at its nearest expert."""
    count = len(posts.split_N)
    found = Placement(np.empty(count, np.int32), np.empty(count, np.float32), np.empty(count, np.float32))
    for part_BD, rows_B in reading.trunk_features(context):
        nearest = gate.nearest(part_BD, best_device())
        found.expert_N[rows_B], found.distance_N[rows_B], found.gap_N[rows_B] = nearest
    return found


def dealt_at_random(
    context: Context, posts: PostTable, expert_N: np.ndarray, old_N: np.ndarray, scratch: Path
) -> np.ndarray:
    """(N,) int32: the control's expert of each post. Among the training posts, and among the others of each split, its
    experts have as many as those of `expert_N`; as few posts leave `old_N` (-1: none) as that takes."""
    settings = context.study.partition
    group_N = np.where(posts.training_N, 0, posts.split_N + 1).astype(np.uint8)
    sizes_GK = count_pairs(group_N, expert_N, (len(SPLITS) + 1, settings.experts))
    ids = (rows["id"].to_list() for rows in reading.split_batches(context, ["id"]))
    return random_partition(ids, group_N, sizes_GK, settings.seed, old_N, scratch / "random", MEMORY)


def sample(wanted_N: np.ndarray, most: int, seed: int) -> np.ndarray:
    """(N,) bool: at most `most` of the wanted posts, at random."""
    rows = np.flatnonzero(wanted_N)
    if len(rows) <= most:
        return wanted_N
    chosen_N = np.zeros_like(wanted_N)
    chosen_N[np.random.default_rng(seed).choice(rows, most, replace=False)] = True
    return chosen_N
