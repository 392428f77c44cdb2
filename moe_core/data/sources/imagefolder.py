"""Folders of images that are named by their class: `cat/1.jpg`, `train/cat/1.jpg`. One shard a split, or one of all.

Tags are the names of all folders between the source's and the image, so that `animal/cat/1.jpg` has two.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from moe_core.data.image_files import IMAGE_SUFFIXES
from moe_core.data.sources.files import key_of, listing, local
from moe_core.data.sources.images import ImageFolder
from moe_core.data.sources.path_splits import split_of_word
from moe_core.data.sources.raw import Row, in_batches, reasons_noted
from moe_core.data.sources.reader import Reader
from moe_core.data.sources.registry import FORMATS
from moe_core.data.sources.scan import Scan, Shard
from moe_core.errors import BadSource
from moe_core.settings import Source
from moe_core.text import utf8

WHAT = FORMATS["imagefolder"].what


def find(source: Source, scan: Scan) -> list[Shard]:
    root = _root(source)
    shards = []
    for folder in _splits(_base(root)) or [root]:
        if next(_images(folder), None) is None:
            continue
        content = listing(folder, IMAGE_SUFFIXES, hidden=True)
        shards.append(Shard(key_of(f"{folder.name}/", ("/",)), str(folder), content))
    if not shards:
        raise BadSource(f"no image below {root}: wanted {WHAT}")
    return shards


def _root(source: Source) -> Path:
    root = local(source.uri)
    if not root.is_dir():
        raise BadSource(f"no folder at {root}: wanted {WHAT}")
    return root


def _below(folder: str) -> tuple[list[str], list[str]]:
    """Names of folders and of images in a folder, in their order."""
    folders, images = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                images.append(entry.name)
    return sorted(folders), sorted(images)


def _base(root: Path) -> Path:
    """The folder whose folders are classes or splits: below single ones such as images/."""
    while True:
        folders, images = _below(str(root))
        if images or len(folders) != 1 or split_of_word(folders[0]) or _below(str(root / folders[0]))[1]:
            return root
        root /= folders[0]


def _splits(base: Path) -> list[Path]:
    """Folders that are splits. None where one has another name: train may be a class beside bus and car."""
    folders, images = _below(str(base))
    return [base / name for name in folders] if not images and folders and all(map(split_of_word, folders)) else []


def _images(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Path and folders of each image, by their names."""
    stack = [(str(folder), list[str]())]
    while stack:
        path, above = stack.pop()
        folders, images = _below(path)
        yield from ((os.path.join(path, name), above) for name in images)
        stack += [(os.path.join(path, name), [*above, name]) for name in reversed(folders)]


def read(source: Source, shard: Shard, cache: Path | None) -> Iterator[pa.RecordBatch]:
    root = _root(source)
    folder, base = Path(shard.path), _base(root)
    split = split_of_word(folder.name) if folder in _splits(base) else None
    images = ImageFolder(root)
    start = base if split is None else folder

    def posts() -> Iterator[Row]:
        read = 0
        for path, above in _images(start):
            read += 1
            name = os.path.relpath(path, root)
            row: Row = {"id": name, "tags": above, "split": split, "original": utf8(name)}
            with reasons_noted(row):
                row["image"] = images.read(name)
            yield row
        if read != sum(1 for _ in _images(start)):  # a mount that went away and came back leaves an empty folder
            raise BadSource(f"{start} was changed while it was read: run the same command again")

    return images.watching(in_batches(posts()))


def columns(source: Source, shard: Shard) -> tuple[dict[str, str], list[str]]:
    """Folders and files in place of columns."""
    return {"id": "paths", "image": "files", "tags": "names of folders"}, []


def count(source: Source, shards: Sequence[Shard]) -> tuple[int, bool]:
    return sum(1 for shard in shards for _ in _images(Path(shard.path))), True


READERS = {
    "imagefolder": Reader(
        find, read, count, columns, recognizes=lambda contents: contents.images_in_folders, splits_by_name=False
    )
}
