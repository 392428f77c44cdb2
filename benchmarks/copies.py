"""Copies of pictures that are found as one picture: how many of a thousand, by what was done to them.

Photos and emoji are read from Parquet files of one's own; synthetic pictures need none.
Example: python benchmarks/copies.py --photos tinyimagenet.parquet --emoji emoji.parquet
"""

import argparse
import io
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
from duplicates import groups_of
from PIL import Image, UnidentifiedImageError

from moe_core.data.duplicates import signature
from moe_core.data.images import Rejected, decode
from moe_core.data.sources.shards import find_shards, read_shard
from moe_core.settings import Source

PICTURES = 1000
Change = Callable[[Image.Image], Image.Image]


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def smaller(image: Image.Image, factor: float) -> Image.Image:
    side = round(image.width * factor)
    return image.resize((side, side), Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)


def levels(image: Image.Image, change: Callable[[np.ndarray], np.ndarray]) -> Image.Image:
    return Image.fromarray(np.rint(change(np.asarray(image, np.float32))).clip(0, 255).astype(np.uint8))


noise = np.random.default_rng(0)
CHANGES: dict[str, Change] = {
    "encoded as JPEG of quality 50": lambda image: jpeg(image, 50),
    "made smaller by 0.6 and larger again": lambda image: smaller(image, 0.6),
    "made smaller by 0.5, back, JPEG of quality 75": lambda image: jpeg(smaller(image, 0.5), 75),
    "darkened by 10 %": lambda image: levels(image, lambda x: 0.9 * x),
    "brightened by 10 %, which burns out what was bright": lambda image: levels(image, lambda x: 1.1 * x),
    "given noise of 4 levels": lambda image: levels(image, lambda x: x + noise.normal(0, 4, x.shape)),
}


def pictures(source: Source, size: int) -> Iterator[Image.Image]:
    """Different ones, square, as ingest stores them."""
    seen = set()
    for shard in find_shards(source):
        for batch in read_shard(source, shard):
            for file in batch["image"].to_pylist():
                try:
                    pixels = decode(file or b"", size).pixels
                except (Rejected, UnidentifiedImageError):
                    continue
                if pixels not in seen:
                    seen.add(pixels)
                    yield Image.frombytes("RGB", (size, size), pixels)


def found(images: list[Image.Image], change: Change) -> float:
    """Share of the copies that are in a group with their picture."""
    both = np.stack([np.asarray(image) for image in [*images, *map(change, images)]])
    first = groups_of(signature(both))
    return float((first[: len(images)] == first[len(images) :]).mean())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--photos", help="Parquet file; shown at 64 pixels")
    options.add_argument("--emoji", help="Parquet file; shown at 64 pixels")
    args = options.parse_args()
    sets = {name: Source(format="parquet", uri=uri) for name, uri in vars(args).items() if uri}
    columns = {f"{name} 64 px": list(islice(pictures(source, 64), PICTURES)) for name, source in sets.items()}
    columns["synthetic 32 px"] = list(islice(pictures(Source(format="synthetic", posts=2000, shards=1), 32), PICTURES))
    print("| a copy that was | " + " | ".join(f"found, {name}" for name in columns) + " |")
    print("| --- |" + " --- |" * len(columns))
    for name, change in CHANGES.items():
        print(f"| {name} | " + " | ".join(f"{found(images, change):.3f}" for images in columns.values()) + " |")


if __name__ == "__main__":
    main()
