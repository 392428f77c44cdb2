"""Ingest of JPEGs of 64 to 256 pixels against the bare Pillow loop over the same bytes, on as many cores.

The product reads Parquet, decodes, checks, hashes, canonicalizes tags, splits, and writes two Lance tables. The bare
loop holds the files in memory and does Image.open + resize to the study's size + encode, in a ThreadPool; `bare`
decodes in full, `bare+draft` lets libjpeg decode at a half or a quarter as the product does. All run in turn in one
process; printed are images/s (medians) and the ratios to the bare loops.

Example: python benchmarks/ingest.py --images 6000 --repeats 5
"""

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from moe_core.data.images import QUALITY, RAW_UP_TO
from moe_core.data.ingest import ingest
from moe_core.data.sources.shards import find_shards, read_shard
from moe_core.data.synthetic import synthetic_posts
from moe_core.settings import Data, Source
from moe_core.tables.location import tables_in

TARGET = 0.85


def realistic(posts: int, sides: tuple[int, ...], path: Path) -> None:
    """Drawn posts whose pictures are upscaled to a side of `sides`, with noise, as JPEG of quality 90."""
    draw = np.random.default_rng(0)
    with pq.ParquetWriter(path, next(synthetic_posts(0, 1, 1, 0)).schema) as writer:
        for batch in synthetic_posts(0, 1, posts, 0):
            files = []
            for data in batch["image"].to_pylist():
                side = int(draw.choice(sides))
                try:
                    small = Image.open(io.BytesIO(data)).resize((side, side), Image.Resampling.BICUBIC)
                except OSError:
                    small = Image.effect_noise((side, side), 60).convert("RGB")  # as many images as posts
                noisy = np.asarray(small, np.int16) + draw.normal(0, 6, (side, side, 3)).astype(np.int16)
                file = io.BytesIO()
                Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
                files.append(file.getvalue())
            writer.write_batch(batch.set_column(1, "image", pa.array(files, pa.binary())))


def bare(files: list[bytes], size: int, threads: int, draft: bool) -> None:
    def one(data: bytes) -> bytes:
        with Image.open(io.BytesIO(data)) as image:
            if draft:
                image.draft("RGB", (size, size))
            small = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
        if size <= RAW_UP_TO:
            return small.tobytes()
        file = io.BytesIO()
        small.save(file, "JPEG", quality=QUALITY)
        return file.getvalue()

    def some(part: list[bytes]) -> list[bytes]:
        return [one(data) for data in part]

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(some, [files[at : at + 100] for at in range(0, len(files), 100)]):
            pass


def ours(source: Source, size: int, threads: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (shard,) = find_shards(source)
        data = Data(image_size=size, max_reject_rate=0.02)  # the synthetic posts without a tag
        ingest(tables_in(Path(folder)), shard.key, read_shard(source, shard), data, lambda _: None, threads=threads)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=6000)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--sides", type=int, nargs="+", default=[64, 96, 128, 192, 256], help="of the JPEGs")
    options.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128], help="of the study")
    options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "posts.parquet"
        realistic(args.images, tuple(args.sides), path)
        files = pq.read_table(path, columns=["image"])["image"].to_pylist()
        source = Source(format="parquet", uri=str(path))
        print(
            f"{len(files)} JPEGs, sides {args.sides}, {np.mean([len(f) for f in files]):.0f} bytes each; "
            f"{args.threads} threads; medians of {args.repeats}, in turn"
        )
        for size in args.sizes:
            kinds: dict[str, Callable[[], None]] = {
                "bare": partial(bare, files, size, args.threads, draft=False),
                "bare+draft": partial(bare, files, size, args.threads, draft=True),
                "ingest": partial(ours, source, size, args.threads),
            }
            rates: dict[str, list[float]] = {name: [] for name in kinds}
            for _ in range(args.repeats):
                for name, run in kinds.items():
                    began = time.monotonic()
                    run()
                    rates[name].append(len(files) / (time.monotonic() - began))
            middle = {name: statistics.median(found) for name, found in rates.items()}
            ratios = {n: statistics.median(np.divide(rates["ingest"], rates[n])) for n in ("bare", "bare+draft")}
            print(
                f"to {size:4} px ({'raw' if size <= RAW_UP_TO else 'JPEG'}): "
                + ", ".join(f"{name} {rate:.0f}/s" for name, rate in middle.items())
                + f"; ratio {ratios['bare']:.2f} to bare (target {TARGET}), {ratios['bare+draft']:.2f} to bare+draft",
                flush=True,
            )


if __name__ == "__main__":
    main()
