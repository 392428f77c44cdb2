"""The files and metadata of a partition, fitted from scratch or continued; pictures and hashtags of each cluster.

Letters: N posts, B of a part, K experts, V hashtags, T tags of all posts.
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from moe_core.clustering.gate import Gate
from moe_core.data.images import contact_sheet
from moe_core.data.loading import Labels, open_images
from moe_core.data.splits import SPLITS
from moe_core.engine.context import Context
from moe_core.errors import TooFewPosts
from moe_core.stages import reading
from moe_core.stages.gate import assignment
from moe_core.stages.gate.drift import imbalance
from moe_core.stages.gate.posts import Placement, PostTable, post_batches
from moe_core.stages.trunk.frozen import pointer_name
from moe_core.store.artifact import Spec, StageOutput
from moe_core.store.hashing import content_hash, file_hash
from moe_core.tables.location import tables_of

COLUMNS, PICTURES = 6, 12  # of a contact sheet
SIDE = 64  # pixels of a picture on it
HASHTAGS = 12  # of each cluster


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
    _write_assignment(context, folder, posts, {"expert": expert_N, "random": random_N} | columns)
    about = {"asset": spec.asset, "version": spec.version, "trunk": context.version("trunk")}
    gate.save(folder / "gate.safetensors", about)
    experts = len(context.experts)
    sizes = [int(n) for n in np.bincount(expert_N[posts.training_N], minlength=experts)]
    if min(sizes) == 0:
        empty = [key for key, n in zip(context.experts, sizes, strict=True) if n == 0]
        raise TooFewPosts(f"{', '.join(empty)} got no training post: lower partition.experts")
    write_sheets(context, folder, posts, placement)
    hashtags = reading.vocabulary(context).hashtags
    counts_KV = np.zeros((experts, len(hashtags)), np.int32)
    for batch in post_batches(context):
        count_hashtags(counts_KV, batch.labels, posts.training_N[batch.rows], expert_N[batch.rows])
    top = top_hashtags(hashtags, counts_KV)
    return StageOutput(
        {
            "pointer": pointer_name(context.planner.graph, context.study, "partition").name,
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
        content={
            "gate": file_hash(folder / "gate.safetensors"),
            "members": content_hash([metadata["members"], metadata["random_members"]]),
        },
    )


def _write_assignment(context: Context, folder: Path, posts: PostTable, columns: dict[str, np.ndarray]) -> None:
    (folder / "assignment").mkdir()
    names = np.array(SPLITS)
    for shard, rows in posts.rows.items():
        frame = pl.DataFrame({"id": reading.ids_of(context, shard)}).select(
            pl.lit(shard).alias("shard"),
            "id",
            pl.Series("split", names[posts.split_N[rows]], pl.String),
            *(pl.Series(name, column_N[rows]) for name, column_N in columns.items()),
        )
        frame.write_parquet(folder / assignment.file_of(shard), statistics=False)


def write_sheets(context: Context, folder: Path, posts: PostTable, placement: Placement) -> None:
    """Two contact sheets a cluster, of its training posts: `sheets/e000.typical.png` of those nearest to its centroid,
    `sheets/e000.ambiguous.png` of those that another expert almost got."""
    (folder / "sheets").mkdir()
    chosen = {}
    for number, key in enumerate(context.experts):
        mine = np.flatnonzero(posts.training_N & (placement.expert_N == number))
        for name, measure_N in (("typical", placement.distance_N), ("ambiguous", placement.gap_N)):
            rows = mine[np.argsort(measure_N[mine], kind="stable")[:PICTURES]]
            chosen[f"{key}.{name}"] = rows[np.isfinite(measure_N[rows])]  # no other expert is infinitely far
    table = tables_of(context.store).posts
    images = open_images(table, reading.places(context), context.study.data.image_size)
    for name, rows in chosen.items():
        if len(rows):
            sheet = contact_sheet(images.read(rows), COLUMNS, SIDE)
            (folder / "sheets" / f"{name}.png").write_bytes(sheet)


def count_hashtags(counts_KV: np.ndarray, labels: Labels, training_B: np.ndarray, expert_B: np.ndarray) -> None:
    """Adds the training posts of each cluster with each hashtag, in place."""
    owner_T = np.repeat(np.arange(len(training_B)), np.diff(labels.starts_N1))
    use_T = training_B[owner_T]
    np.add.at(counts_KV, (expert_B[owner_T[use_T]], labels.tags_T[use_T]), 1)


def top_hashtags(hashtags: list[str], counts_KV: np.ndarray) -> list[list[list[Any]]]:
    """By cluster, [hashtag, posts of the cluster with it, times its share among all posts] of those that set it
    apart: by posts x log(times), the cluster's part of the mutual information of hashtag and cluster."""
    share_V = counts_KV.sum(0) / max(counts_KV.sum(), 1)
    found = []
    for count_V in counts_KV:
        there = np.flatnonzero(count_V)
        times = count_V[there] / count_V.sum() / share_V[there]
        order = np.argsort(-count_V[there] * np.log(times), kind="stable")
        best = [n for n in order[:HASHTAGS] if times[n] > 1]
        found.append([[hashtags[there[n]], int(count_V[there[n]]), round(float(times[n]), 1)] for n in best])
    return found
