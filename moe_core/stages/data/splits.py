"""splits: which post is for training, choosing, testing or routing, with near-duplicates of all shards on one side.

Reads signatures and no pixels. Everything downstream takes a post's split from here.
"""

from pathlib import Path

import numpy as np
import polars as pl

from moe_core.clustering.neighbors import near_pairs
from moe_core.data.duplicates import SIGNATURE_BYTES, group, number_of_each
from moe_core.data.splits import ALONE, SPLITS, assign, leaks, users_apart
from moe_core.engine.context import Context
from moe_core.stages import reading
from moe_core.stages.data.rows import remove_gone_shards
from moe_core.store.artifact import Spec, StageOutput
from moe_core.tables.lance_tags import advance_lance_tags
from moe_core.tables.location import tables_of
from moe_core.tables.reading import read_rows


def make(context: Context, spec: Spec, folder: Path) -> StageOutput:
    tables = tables_of(context.store)
    remove_gone_shards(tables, [shard.key for shard in context.shards])
    for table in tables:  # all shards at one version: each reader opens one
        advance_lance_tags(table)
    data = context.study.data
    posts, signature_NW = read_signed(context)
    rows = np.flatnonzero(posts["id"].is_first_distinct().to_numpy())
    group_N = np.full(len(posts), ALONE)
    group_N[rows] = rows
    if data.near_duplicates == "group":
        group_N[rows] = rows[group(signature_NW[rows], data.near_duplicate_levels, near_pairs)]
    posts = posts.with_columns(pl.Series("group", group_N, pl.Int64))
    posts = posts.with_columns(assign(posts, group_N, data))
    number_N = number_of_each(signature_NW)
    leaking = leaks(posts, number_N)
    posts.select("shard", "position", "id", "group", "split").write_parquet(folder / "splits.parquet", statistics=False)
    leaking.write_parquet(folder / "leaks.parquet", statistics=False)
    _, sizes = np.unique(group_N[rows], return_counts=True)
    removed = (leaking["split"] == "dropped").sum()
    counts = posts["split"].value_counts()
    splits = dict.fromkeys(SPLITS, 0) | dict(counts.iter_rows())
    return StageOutput(
        {
            "posts": len(posts),
            "splits": splits,
            "duplicate_ids": len(posts) - len(rows),
            "pictures": len(sizes),
            "groups": int((sizes > 1).sum()),
            "largest_group": int(sizes.max(initial=0)),
            "near_duplicates": len(rows) - len(sizes),
            "equal_signatures": len(rows) - len(np.unique(number_N[rows])),
            "leaking_groups": leaking["group"].n_unique(),
            "leaking_groups_same": leaking.filter(pl.col("same"))["group"].n_unique(),
            "leaking_posts": len(leaking),
            "leaks_removed": int(removed),
            "users_apart": users_apart(posts),
            "snapshot": {shard.key: context.version("posts", shard.key) for shard in context.shards},
        }
    )


def read_signed(context: Context) -> tuple[pl.DataFrame, np.ndarray]:
    """(shard, position, id, user and given, signatures (N, W) uint8) of all the posts, shard by shard."""
    frames, signatures, table = [], [], tables_of(context.store).posts
    for number, place in enumerate(reading.places(context)):
        columns = ["shard", "position", "id", "user", "given", "signature"]
        rows = read_rows(table, place.version, place.shard, columns)
        signatures.append(np.frombuffer(b"".join(rows["signature"].to_pylist()), np.uint8))
        frames.append(pl.DataFrame(rows.drop_columns(["signature"])))
        context.report({"shards": number + 1})
    return pl.concat(frames), np.concatenate(signatures).reshape(-1, SIGNATURE_BYTES)
