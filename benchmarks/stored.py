"""How to store pictures: size, time to encode and time to load, of raw pixels, JPEG, PNG and WebP.

Pictures are synthetic ones, upscaled to the study's size with noise. Loaded are all of them from Lance by
moe_core.data.loading, decoded by `--threads` threads. Example: python benchmarks/stored.py --images 2000
"""

import argparse
import io
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from moe_core.data.images import encode
from moe_core.data.ingest import POSTS
from moe_core.data.loading import Place, open_images
from moe_core.data.synthetic import synthetic_posts
from moe_core.tables.location import tables_in
from moe_core.tables.shards import replace_rows


def pictures(count: int, size: int) -> list[bytes]:
    draw = np.random.default_rng(0)
    found: list[bytes] = []
    for batch in synthetic_posts(0, 1, 2 * count, 0):
        for data in batch["image"].to_pylist():
            try:
                small = Image.open(io.BytesIO(data)).resize((size, size), Image.Resampling.BICUBIC)
            except OSError:
                continue
            noisy = np.asarray(small, np.int16) + draw.normal(0, 6, (size, size, 3)).astype(np.int16)
            found.append(noisy.clip(0, 255).astype(np.uint8).tobytes())
            if len(found) == count:
                return found
    raise AssertionError


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=2000)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128, 224])
    options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    print("| side | stored as | bytes a picture | encoded, pictures/s a thread | loaded, pictures/s | against raw |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size in args.sizes:
        raw = pictures(args.images, size)
        kinds = ("raw", "jpeg", "png", "webp")
        rates: dict[str, list[float]] = {kind: [] for kind in kinds}
        with tempfile.TemporaryDirectory() as folder:
            places, encoding, length = {}, {}, {}
            for kind in kinds:
                began = time.monotonic()
                stored = [encode(pixels, size, kind) for pixels in raw]
                encoding[kind] = len(raw) / max(1e-9, time.monotonic() - began)
                length[kind] = sum(map(len, stored)) / len(stored)
                count = len(stored)
                columns = {"shard": pa.array([kind] * count), "position": pa.array(range(count), pa.int64())}
                columns |= {"image": pa.array(stored, pa.binary()), "tags": pa.array([["cat"]] * count)}
                arrays = [columns[f.name] if f.name in columns else pa.nulls(count, f.type) for f in POSTS]
                rows = pa.RecordBatch.from_arrays(
                    [a.cast(f.type) for a, f in zip(arrays, POSTS, strict=True)], schema=POSTS
                )
                root = Path(folder) / kind
                root.mkdir()
                places[kind] = Place(kind, replace_rows(tables_in(root).posts, POSTS, kind, [rows]))
            for _ in range(args.repeats):
                for kind in kinds:
                    began = time.monotonic()
                    open_images(tables_in(Path(folder) / kind).posts, [places[kind]], size).read(np.arange(len(raw)))
                    rates[kind].append(len(raw) / (time.monotonic() - began))
        middle = {kind: statistics.median(found) for kind, found in rates.items()}
        for kind in kinds:
            speed = "-" if kind == "raw" else f"{encoding[kind]:,.0f}"
            share = middle[kind] / middle["raw"]
            print(
                f"| {size} | {kind} | {length[kind]:,.0f} | {speed} | {middle[kind]:,.0f} | {share:.2f} |", flush=True
            )


if __name__ == "__main__":
    main()
