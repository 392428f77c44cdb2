"""Peak memory and time of `partition` at several numbers of posts, each in a fresh process.

A study whose posts (three hashtags each of 2,000, one picture for all) and features are drawn, so that millions need no
ingest and no trunk; splits and vocabulary are the project's own. Cost: two minutes, and 0.6 GB of disk a million posts.
Example: python benchmarks/partition.py --posts 1000000 4000000
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from splits import peak

from moe_core.data.duplicates import SIGNATURE_BYTES
from moe_core.data.ingest import POSTS
from moe_core.data.rejects import REJECTS
from moe_core.engine.build import build, build_all
from moe_core.engine.context import Context
from moe_core.engine.stage import Graph
from moe_core.settings import Data, Partition, Source, Study
from moe_core.stages import reading
from moe_core.stages.graph import GRAPH
from moe_core.store.artifact import Spec, StageOutput
from moe_core.tables.lance_tags import lance_tag_of
from moe_core.tables.location import tables_of
from moe_core.tables.shards import replace_rows
from moe_core.tables.vectors import write_vectors
from moe_core.workspace import open_study

SHARDS, SIDE, WIDTH, HASHTAGS = 20, 8, 48, 2_000
APART = np.array([0, 7, 31])  # of the numbers of a post's hashtags


def rows_of(context: Context, key: str | None) -> Iterator[range]:
    """Numbers of the posts of a shard, some at a time."""
    number = [shard.key for shard in context.shards].index(key or "")
    each = context.study.source.posts // SHARDS
    for first in range(number * each, (number + 1) * each, reading.BATCH):
        yield range(first, min(first + reading.BATCH, (number + 1) * each))


def ids(rows: range) -> pa.Array:
    return pa.array([f"post-{row:012d}" for row in rows])


def draw_posts(context: Context, spec: Spec, folder: Path) -> StageOutput:
    picture, signature = bytes(3 * SIDE**2), bytes(SIGNATURE_BYTES)

    def batches() -> Iterator[pa.RecordBatch]:
        for rows in rows_of(context, spec.key):
            first_B = np.random.default_rng(rows.start).integers(0, HASHTAGS, len(rows))
            tags = [[f"tag{number}" for number in its] for its in ((first_B[:, None] + APART) % HASHTAGS).tolist()]
            columns: dict[str, Any] = {
                "shard": [spec.key] * len(rows),
                "position": rows,
                "id": ids(rows),
                "image": [picture] * len(rows),
                "tags": tags,
                "signature": [signature] * len(rows),
            }
            nothing = [None] * len(rows)
            yield pa.record_batch([pa.array(columns.get(f.name, nothing), f.type) for f in POSTS], schema=POSTS)

    assert spec.key
    tables, lance_tag = tables_of(context.store), lance_tag_of(spec.key, context.version("posts", spec.key))
    replace_rows(tables.posts, POSTS, spec.key, batches(), [lance_tag])
    replace_rows(tables.rejects, REJECTS, spec.key, (), [lance_tag])
    return StageOutput({})


def draw_trunk(context: Context, spec: Spec, folder: Path) -> StageOutput:
    return StageOutput({})


def draw_features(context: Context, spec: Spec, folder: Path) -> StageOutput:
    centers = np.random.default_rng(0).normal(0, 3, (50, WIDTH))

    def parts() -> Iterator[tuple[dict[str, pa.Array], np.ndarray]]:
        for rows in rows_of(context, spec.key):
            draw = np.random.default_rng(rows.start)
            yield {"id": ids(rows)}, centers[draw.integers(0, 50, len(rows))] + draw.standard_normal((len(rows), WIDTH))

    write_vectors(folder / "features.lance", {"id": pa.string()}, "feature", WIDTH, parts())
    return StageOutput({}, content={"features": spec.version})


DRAWN = {"posts": draw_posts, "trunk": draw_trunk, "trunk_features": draw_features}


def opened(root: Path, posts: int, fitted: int) -> Context:
    study = Study(
        source=Source(format="synthetic", posts=posts, shards=SHARDS),
        data=Data(image_size=SIDE, near_duplicates="off"),
        partition=Partition(experts=8, max_fit_posts=fitted),
    )
    stages = (replace(stage, make=DRAWN.get(name, stage.make)) for name, stage in GRAPH.items())
    return open_study(study, root, graph=Graph(stages, GRAPH.aliases))


def measure(root: Path, posts: int, fitted: int) -> None:
    """In a process of its own."""
    context = opened(root, posts, fitted)
    before, began = peak(), time.process_time()
    found = build(context, "partition").artifact.metadata
    print(
        f"{posts:,} posts: partition {time.process_time() - began:.0f} s of processor time, {peak():.0f} MiB at the "
        f"peak, {before:.0f} MiB of it before; {found['training_posts']:,} training posts, fitted on "
        f"{found['fitted_on']:,}",
        flush=True,
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--posts", type=int, nargs="+", default=[1_000_000, 4_000_000])
    options.add_argument("--fitted", type=int, default=500_000, help="posts that the gate is fitted on, at most")
    options.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.measure:
        return measure(args.measure, args.posts[0], args.fitted)
    for count in args.posts:
        with tempfile.TemporaryDirectory() as name:
            build_all(opened(Path(name), count, args.fitted), ("posts", "splits", "vocabulary", "trunk"))
            build_all(opened(Path(name), count, args.fitted), ("trunk_features",))
            command = [sys.executable, __file__, "--measure", name, "--posts", str(count), "--fitted", str(args.fitted)]
            subprocess.run(command, check=True, cwd=Path(__file__).parent.parent)


if __name__ == "__main__":
    main()
