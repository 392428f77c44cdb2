"""The text side alone: read, canonicalize and count hashtags of millions of posts, against its targets.

Posts are drawn from the hashtags of real Instagram posts (harrison_hashtags.parquet, which is not part of this
repository), with users by Zipf's law, spellings disturbed and a tail of rare tags, and written as Parquet shards. A
fresh process reads them with the functions of the product and says how long it took and how much memory it held.

Example: python benchmarks/text_side.py --posts 5000000
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from moe_core.data.tags import as_lists, canonical_lists, flattened
from moe_core.data.vocabulary import choose_from
from moe_core.settings import Data

HASHTAGS = Path(__file__).parents[2] / "shared" / "data" / "harrison_hashtags.parquet"
POSTS_PER_SECOND, PEAK_BYTES = 250_000, 2 << 30
SHARD = 500_000
POSTS_PER_USER = 40
RARE = 0.01  # share of tags that are written with a number of their own
SPELLINGS = ("{}", "{}", "{}", "{}", "#{}", "#{}", " {} ", "{}!", "{}.", "{}\u2764\ufe0f", "#_{}", "\uff03{}")
CASES = (str.lower, str.lower, str.lower, str.upper, str.title)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--posts", type=int, default=5_000_000)
    options.add_argument("--batch", type=int, default=65_536, help="posts canonicalized at a time")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # the fresh process
    args = options.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.batch)))
        return
    if not HASHTAGS.is_file():
        print(f"skipped: no hashtags to draw from at {HASHTAGS}")
        return
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), args.posts, args.seed)
        command = [sys.executable, __file__, "--measure", folder, "--batch", str(args.batch)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | {"TMPDIR": folder})
    found = json.loads(done.stdout)
    rate = found["posts"] / found["seconds"]
    print(
        f"{found['posts']:,} posts, {found['tags']:,} canonical tags, {found['kept']:,} hashtags kept; "
        f"{found['seconds']:.1f} s, {found['cpu_seconds']:.1f} s of the processor, {len(os.sched_getaffinity(0))} cores"
    )
    print(f"speed: {rate:,.0f} posts/s, {rate / POSTS_PER_SECOND:.2f} of the target {POSTS_PER_SECOND:,} (at least 1)")
    print(
        f"memory: peak {found['peak_bytes'] / 2**20:,.0f} MiB, {found['peak_bytes'] / PEAK_BYTES:.2f} of the limit "
        f"{PEAK_BYTES >> 20:,} MiB (at most 1)"
    )


def write_shards(folder: Path, posts: int, seed: int) -> None:
    """Parquet files of `raw_tags` and `user`."""
    real = pl.read_parquet(HASHTAGS, columns=["raw_tags"])["raw_tags"]
    words = real.explode().unique().sort()
    spelled_WS = np.array([[case(s.format(word)) for s in SPELLINGS for case in CASES] for word in words])
    starts_N1, flat = flattened(real)
    real = as_lists(starts_N1, words.search_sorted(flat))
    users = max(1, posts // POSTS_PER_USER)
    weights = 1 / np.arange(1, users + 1) ** 0.8
    cumulated = weights.cumsum() / weights.sum()
    for shard, first in enumerate(range(0, posts, SHARD)):
        draw = np.random.default_rng([seed, shard])
        count = min(SHARD, posts - first)
        starts_N1, tags_T = flattened(real.gather(draw.integers(0, len(real), count)))
        words_T = tags_T.to_numpy()
        codes_T = words_T * spelled_WS.shape[1] + draw.integers(0, spelled_WS.shape[1], len(words_T))
        written = pl.Series("written", spelled_WS.reshape(-1)).gather(codes_T)
        rare_T = pl.Series("rare", draw.random(len(words_T)) < RARE)
        number_T = pl.Series("number", draw.integers(0, 10_000, len(words_T)))
        written = pl.select(pl.when(rare_T).then(pl.format("{}{}", written, number_T)).otherwise(written)).to_series()
        user = pl.Series(cumulated.searchsorted(draw.random(count)))
        frame = pl.DataFrame({"raw_tags": as_lists(starts_N1, written), "user": user})
        frame = frame.with_columns(pl.format("user{}", pl.col("user").cast(pl.String).str.zfill(8)).alias("user"))
        frame.write_parquet(folder / f"s{shard:04d}.parquet")


def measure(folder: Path, batch: int) -> dict[str, float]:
    """Reads, canonicalizes and counts all the shards."""
    posts = 0

    def canonicalized() -> Iterator[pl.DataFrame]:
        nonlocal posts
        for path in sorted(folder.glob("*.parquet")):
            with pq.ParquetFile(path) as file:
                for rows in file.iter_batches(batch, columns=["raw_tags", "user"]):
                    frame = pl.from_arrow(rows)
                    assert isinstance(frame, pl.DataFrame)
                    posts += frame.height
                    yield frame.select(tags=canonical_lists(frame["raw_tags"]), user="user")

    began = time.monotonic()
    kept, dropped, _ = choose_from(canonicalized, Data(min_posts_per_tag=20, min_users_per_tag=3))
    return {
        "posts": posts,
        "seconds": time.monotonic() - began,
        "cpu_seconds": time.process_time(),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "tags": kept.height + dropped.height,
        "kept": kept.height,
    }


if __name__ == "__main__":
    main()
