"""Peak memory and time of `partition` at several numbers of posts, each in a fresh process.

Posts (ids, three hashtags of 2,000, splits) and their features are drawn and handed to the stage in place of those of
Lance tables, so that millions need no ingest and no trunk.
Example: python benchmarks/partition.py --posts 1000000 4000000
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from splits import peak

from moe_core.data.loading import Labels
from moe_core.data.splits import SPLITS
from moe_core.settings import Partition, Study
from moe_core.stages import reading
from moe_core.stages.gate import membership, output, partition, posts
from moe_core.store.artifact import Spec

SHARDS, WIDTH, TAGS, HASHTAGS = 20, 48, 3, 2_000


def ids(first: int, last: int) -> list[str]:
    return [f"post-{row:012d}" for row in range(first, last)]


def measure(folder: Path, count: int, fitted: int) -> None:
    """In a process of its own."""
    each = count // SHARDS
    study = Study(partition=Partition(experts=8, max_fit_posts=fitted))
    keys = [SimpleNamespace(key=f"s{number:04d}") for number in range(SHARDS)]
    context: Any = SimpleNamespace(
        study=study,
        store=None,
        shards=keys,
        experts=[f"e{number:03d}" for number in range(study.partition.experts)],
        frozen=SimpleNamespace(shards=keys),
        version=lambda *names: "drawn",
        planner=SimpleNamespace(graph=None),
    )

    def batches(_: Any) -> Iterator[posts.PostBatch]:
        for number, shard in enumerate(keys):
            for first in range(number * each, (number + 1) * each, reading.BATCH):
                rows = slice(first, min(first + reading.BATCH, (number + 1) * each))
                tags_T = np.random.default_rng(first).integers(0, HASHTAGS, TAGS * (rows.stop - first))
                labels = Labels(tags_T, np.arange(0, len(tags_T) + 1, TAGS))
                yield posts.PostBatch(shard.key, rows, ids(first, rows.stop), labels)

    def features(_: Any) -> Iterator[tuple[np.ndarray, slice]]:
        for batch in batches(None):
            draw = np.random.default_rng(batch.rows.start)
            centers = np.random.default_rng(0).normal(0, 3, (50, WIDTH))
            size = batch.rows.stop - batch.rows.start
            found = centers[draw.integers(0, 50, size)] + draw.standard_normal((size, WIDTH))
            yield found.astype(np.float32), batch.rows

    replaced: dict[tuple[Any, str], Any] = {
        (reading, "split_numbers"): lambda _: (
            np.random.default_rng(0).choice(len(SPLITS), count, p=[0.8, 0.05, 0.1, 0.05, 0.0]).astype(np.int8)
        ),
        (reading, "split_batches"): lambda _, columns: (pl.DataFrame({"id": batch.ids}) for batch in batches(None)),
        (reading, "trunk_features"): features,
        (reading, "ids_of"): lambda _, shard: pa.array(ids(int(shard[1:]) * each, (int(shard[1:]) + 1) * each)),
        (reading, "vocabulary"): lambda _: SimpleNamespace(hashtags=[f"tag{number}" for number in range(HASHTAGS)]),
        (reading, "places"): lambda _: [],
        (output, "open_images"): lambda *_: SimpleNamespace(read=lambda rows: np.zeros((len(rows), 8, 8, 3), np.uint8)),
        (output, "pointer_name"): lambda *_: folder / "pointer",
        (output, "tables_of"): lambda _: SimpleNamespace(posts=None),
    }
    replaced |= {(module, "post_batches"): batches for module in (posts, membership, output)}
    for (module, name), function in replaced.items():
        setattr(module, name, function)
    before, began = peak(), time.process_time()
    found = partition.make(context, Spec("partition", None, "", {}, {}), folder)
    seconds, fitted_on = time.process_time() - began, found.metadata["fitted_on"]
    print(
        f"{count:,} posts: partition {seconds:.0f} s of processor time, {peak():.0f} MiB at the peak, {before:.0f} MiB "
        f"of it before; {found.metadata['training_posts']:,} training posts, fitted on {fitted_on:,}",
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
            command = [sys.executable, __file__, "--measure", name, "--posts", str(count), "--fitted", str(args.fitted)]
            subprocess.run(command, check=True, cwd=Path(__file__).parent.parent)


if __name__ == "__main__":
    main()
