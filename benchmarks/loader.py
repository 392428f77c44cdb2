"""The loader: against other loaders, and what it costs a training step.

1. Decoded, augmented batches of 64 px images: ours from posts.lance against torch's DataLoader over JPEG files with
   Pillow (2 workers), webdataset and Hugging Face datasets over the same JPEGs, where these are installed.
2. Batches of 224 px images from JPEGs in posts.lance against Pillow alone decoding the same files, in as many threads.
3. A training step (tiny ResNet, 32 px) fed from posts.lance against the same step with the posts as tensors in memory.
4. Batches of 64 px images read in blocks of 64 adjacent posts against post by post, as raw pixels and as JPEG, with
   posts.lance in the system's memory, and read from the disk.

Each comparison alternates its contestants in one process; printed are the medians and their ratio.
Example: pip install webdataset datasets; python benchmarks/loader.py --posts 8000 --repeats 3
"""

import argparse
import io
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import torch
from PIL import Image

from moe_core import threads
from moe_core.data.ingest import ingest
from moe_core.data.loading import Place, StoredImages, open_posts, read_labels
from moe_core.data.sources.shards import find_shards, read_shard
from moe_core.data.synthetic import synthetic_posts
from moe_core.data.vocabulary import Vocabulary
from moe_core.models.resnet import build
from moe_core.settings import Data, Network, Source, Training
from moe_core.store.layout import Layout
from moe_core.tables.location import tables_in
from moe_core.tables.reading import take_rows
from moe_core.training.batches import batches
from moe_core.training.loop import train
from moe_core.training.posts import ImagesInMemory, Posts

SIDE, LARGE, CROP, BATCH = 64, 224, 4, 128
Store = Literal["auto", "raw", "jpeg"]


def jpegs(posts: int, side: int) -> list[bytes]:
    """Drawn pictures as JPEG files of `side` squared pixels."""
    files = []
    for batch in synthetic_posts(0, 1, round(posts * 1.02), 0):
        for data in batch["image"].to_pylist():
            try:
                image = Image.open(io.BytesIO(data)).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
            except (OSError, SyntaxError):
                continue
            file = io.BytesIO()
            image.save(file, "JPEG", quality=90)
            files.append(file.getvalue())
    return files[:posts]


def stored(root: Path, files: list[bytes], side: int, store: Store = "auto") -> Posts:
    """The files ingested, and opened as training does."""
    path = root / "posts.parquet"
    tags = [[f"t{n % 100}", f"u{n % 7}"] for n in range(len(files))]
    pl.DataFrame({"id": [f"{n:07d}" for n in range(len(files))], "image": files, "tags": tags}).write_parquet(path)
    source = Source(format="parquet", uri=str(path))
    (shard,) = find_shards(source)
    done = ingest(
        tables_in(root), shard.key, read_shard(source, shard), Data(image_size=side, store=store), lambda _: None
    )
    places = [Place(shard.key, done.posts_version)]
    words = Vocabulary([f"t{n}" for n in range(100)] + [f"u{n}" for n in range(7)], {})
    table = tables_in(root).posts
    return open_posts(table, places, read_labels(table, places, words, Layout(root).arrays), side)


def augmented(image: np.ndarray, draw: np.random.Generator) -> torch.Tensor:
    """Flip and padded crop of one (H, W, 3) image, as a per-sample loader does it."""
    padded = np.pad(image, ((CROP, CROP), (CROP, CROP), (0, 0)))
    y, x = draw.integers(0, 2 * CROP + 1, 2)
    window = padded[y : y + SIDE, x : x + SIDE]
    return torch.from_numpy(np.ascontiguousarray(window[:, ::-1] if draw.integers(2) else window)).permute(2, 0, 1)


class Files(torch.utils.data.Dataset):
    """JPEG files of a folder, decoded by Pillow."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        with Image.open(self.paths[row]) as image:
            return augmented(np.asarray(image.convert("RGB")), np.random.default_rng(row))


def ours(posts: Posts) -> Callable[[], int]:
    training = Training(batch_size=BATCH, crop=CROP)

    def run() -> int:
        steps = len(posts) // BATCH
        return sum(len(b.images_BCHW) for b in batches(posts, training, 0, steps, threads=2))

    return run


def pillow(files: list[bytes]) -> Callable[[], int]:
    """Nothing but decoding, by as many threads as hardmoe decodes with."""

    def decode(data: bytes) -> int:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
        return 1

    def run() -> int:
        with ThreadPoolExecutor(threads.share()) as pool:
            return sum(pool.map(decode, files))

    return run


def counted(loader: Iterable[Sized]) -> Callable[[], int]:
    return lambda: sum(len(batch) for batch in loader)


def torch_files(folder: Path) -> Callable[[], int]:
    return counted(torch.utils.data.DataLoader(Files(folder), batch_size=BATCH, shuffle=True, num_workers=2))


def webdataset_tars(root: Path, files: list[bytes]) -> Callable[[], int]:
    import webdataset

    names = []
    for shard in range(4):
        names.append(str(root / f"{shard}.tar"))
        with tarfile.open(names[-1], "w") as tar:
            for n in range(shard, len(files), 4):
                member = tarfile.TarInfo(f"{n:07d}.jpg")
                member.size = len(files[n])
                tar.addfile(member, io.BytesIO(files[n]))
    draw = np.random.default_rng(0)
    data = webdataset.WebDataset(names, shardshuffle=4, nodesplitter=webdataset.split_by_node)
    data = data.shuffle(1000).decode("rgb8").to_tuple("jpg").map(lambda t: augmented(t[0], draw))
    return counted(torch.utils.data.DataLoader(data, batch_size=BATCH, num_workers=2))


def hugging_face(files: list[bytes]) -> Callable[[], int]:
    import datasets

    draw = np.random.default_rng(0)
    data = datasets.Dataset.from_dict({"image": [{"bytes": f, "path": None} for f in files]})
    data = data.cast_column("image", datasets.Image())
    data.set_transform(lambda rows: {"image": [augmented(np.asarray(i.convert("RGB")), draw) for i in rows["image"]]})
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True, num_workers=2)
    return lambda: sum(len(batch["image"]) for batch in loader)


def contestants(root: Path, files: list[bytes]) -> Iterator[tuple[str, Callable[[], int]]]:
    yield "hardmoe, posts.lance", ours(stored(root, files, SIDE))
    folder = root / "files"
    folder.mkdir()
    for n, data in enumerate(files):
        (folder / f"{n:07d}.jpg").write_bytes(data)
    yield "torch DataLoader, files, Pillow, 2 workers", torch_files(folder)
    for name, make in (
        ("webdataset, 2 workers", lambda: webdataset_tars(root, files)),
        ("Hugging Face datasets, 2 workers", lambda: hugging_face(files)),
    ):
        try:
            yield name, make()
        except ImportError as error:
            print(f"{name}: left out ({error})")


def medians(runs: dict[str, Callable[[], int]], repeats: int) -> dict[str, float]:
    """Images a second of each, in turn; a first pass warms up."""
    seen: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            count = run()
            if repeat:
                seen[name].append(count / (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in seen.items()}


def steps(posts: Posts) -> Callable[[], int]:
    """One epoch of the tiny ResNet at 32 px."""
    training = Training(epochs=1, batch_size=BATCH, crop=CROP)

    def run() -> int:
        model = build(Network(), 107, seed=0)
        return list(train(model, posts, training))[-1].images_seen

    return run


def from_disk(table: Path, run: Callable[[], int]) -> Callable[[], int]:
    """After the files of the table were given up by the system's memory."""

    def cold() -> int:
        for file in table.rglob("*.lance"):
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        return run()

    return cold


def blocks(files: list[bytes], repeats: int) -> None:
    for store in ("raw", "jpeg"):
        with tempfile.TemporaryDirectory() as name:
            posts = stored(Path(name), files, SIDE, store)
            runs = {f"blocks of {block}": ours(replace(posts, block=block)) for block in (1, 64)}
            table = Path(name) / "posts.lance"
            for where in ("memory", "disk"):
                found = medians({n: from_disk(table, r) if where == "disk" else r for n, r in runs.items()}, repeats)
                one, many = found.values()
                print(
                    f"{SIDE} px, {store}, posts.lance in {where}: "
                    + ", ".join(f"{k} {v:,.0f} images/s" for k, v in found.items())
                    + f": {many / one:.2f} times"
                )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--posts", type=int, default=8000)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--blocks", action="store_true", help="4 alone")
    args = options.parse_args()
    if args.blocks:
        blocks(jpegs(args.posts, SIDE), args.repeats)
        return
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        found = medians(dict(contestants(root, jpegs(args.posts, SIDE))), args.repeats)
        print(f"decoded, augmented {SIDE} px batches of {BATCH}, {args.posts} images, median of {args.repeats} passes")
        for contestant, rate in found.items():
            print(f"  {contestant:45} {rate:10,.0f} images/s")
        first, *others = found.values()
        print(f"loader against the best other: {first / max(others):.2f} (target 2)")
    with tempfile.TemporaryDirectory() as name:
        posts = stored(Path(name), jpegs(args.posts // 2, LARGE), LARGE)
        images = posts.images
        assert isinstance(images, StoredImages)
        taken = take_rows(images.table, images.version, images.offsets(np.arange(len(images))), ["image"])["image"]
        found = medians({"ours": ours(posts), "pillow": pillow(taken.to_pylist())}, args.repeats)
        print(f"{LARGE} px: " + ", ".join(f"{k} {v:,.0f} images/s" for k, v in found.items()))
        print(
            f"loader against bare Pillow decode on the same cores: {found['ours'] / found['pillow']:.2f} (target 0.90)"
        )
    with tempfile.TemporaryDirectory() as name:
        lazy = stored(Path(name), jpegs(args.posts, 32), 32)
        memory = Posts(ImagesInMemory(lazy.images.read(np.arange(len(lazy)))), lazy.tags_T, lazy.starts_N1)
        found = medians({"posts.lance": steps(lazy), "tensors in memory": steps(memory)}, args.repeats)
        print(
            "training step, tiny ResNet (8, 16, 32), 32 px: "
            + ", ".join(f"{k} {v:,.0f} images/s" for k, v in found.items())
        )
        lance, tensors = found.values()
        print(f"step from posts.lance against tensors in memory: {lance / tensors:.3f} (target 0.92)")
    blocks(jpegs(args.posts, SIDE), args.repeats)


if __name__ == "__main__":
    main()
