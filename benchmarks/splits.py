"""Peak memory and time of `splits` and its check at several numbers of posts, each in a fresh process.

Posts are drawn (signatures as in benchmarks/duplicates.py, ids, users) and handed to the stage in place of those of a
Lance table, so that millions need no ingest. Example: python benchmarks/splits.py --posts 1000000 4000000
"""

import argparse
import re
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
from duplicates import drawn

from moe_core.settings import Data
from moe_core.stages import reading
from moe_core.stages.data import split_check, splits

SHARD = 1_000_000  # signatures drawn at once, before anything is measured


def peak() -> float:
    """MiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def batches(path: Path, posts: int, columns: list[str]) -> Iterator[pl.DataFrame]:
    for first in range(0, posts, reading.BATCH):
        row = np.arange(first, min(first + reading.BATCH, posts))
        frame = pl.DataFrame({"position": row}).with_columns(
            shard=pl.lit("s0000"),
            id=pl.format("post-{}", "position"),
            user=pl.format("user-{}", pl.col("position") // 7),
            given=pl.lit(None, pl.String),
        )
        if "signature" in columns:
            bytes_of = np.fromfile(path, "V96", len(row), offset=first * 96)
            frame = frame.with_columns(signature=pl.Series([one.tobytes() for one in bytes_of], dtype=pl.Binary))
        yield frame.select(columns)


def measure(folder: Path, posts: int) -> None:
    """In a process of its own: the drawn signatures lie in a file."""
    artifact = SimpleNamespace(file=lambda name: folder / name)
    layout = SimpleNamespace(tables=(), partition=lambda *names: folder)
    context: Any = SimpleNamespace(
        study=SimpleNamespace(data=Data(store="jpeg")),  # so that no pixels are looked at
        store=SimpleNamespace(layout=layout),
        shards=(),
        need=lambda name: artifact,
        report=lambda counts: None,
    )
    for module in (splits, split_check):
        setattr(module, "batches", lambda _, columns: batches(folder / "signatures", posts, columns))  # noqa: B010
    setattr(reading, "count_posts", lambda _: posts)  # noqa: B010
    before, began = peak(), time.monotonic()
    output = splits.make(context, None, folder)  # type: ignore[arg-type]
    made, seconds, began = peak(), time.monotonic() - began, time.monotonic()
    found = split_check.check(context)
    print(
        f"{posts:,} posts: splits {seconds:.0f} s, {made:.0f} MiB at the peak, {before:.0f} MiB of it before; "
        f"its check {time.monotonic() - began:.0f} s, {peak():.0f} MiB; {output.metadata['groups']:,} groups, "
        f"good: {found.good}",
        flush=True,
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--posts", type=int, nargs="+", default=[1_000_000, 4_000_000])
    options.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.measure:
        return measure(args.measure, args.posts[0])
    for posts in args.posts:
        with tempfile.TemporaryDirectory() as name:
            with open(Path(name) / "signatures", "wb") as file:
                for first in range(0, posts, SHARD):
                    file.write(drawn(min(SHARD, posts - first), seed=first).tobytes())
            command = [sys.executable, __file__, "--measure", name, "--posts", str(posts)]
            subprocess.run(command, check=True, cwd=Path(__file__).parent.parent)


if __name__ == "__main__":
    main()
