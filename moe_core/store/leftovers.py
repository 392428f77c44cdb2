"""What interrupted processes left beside artifacts, told by names alone: unfinished artifacts, work folders, locks."""

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from moe_core.store.files import dead_files, dead_parts
from moe_core.store.layout import LOCK, WORK, Layout


@dataclass(frozen=True)
class WorkFolder:
    """Checkpoints of an artifact that is not finished."""

    asset: str
    key: str | None
    version: str
    path: Path


def leftovers(layout: Layout, assets: Iterable[str], every_process: bool = False) -> Iterator[Path]:
    """Unfinished artifacts, work folders of finished ones, and locks. Call it only while nothing is built.

    Unfinished artifacts of other hosts count as dead, since each container has a name of its own; those of a process
    that runs here do not, unless `every_process`: it may have the number of one that is gone.
    """
    for asset in assets:
        for key in _keys(layout, asset):
            folder = layout.partition(asset, key)
            dead = dead_parts(folder)
            for path in folder.glob(".part-*"):
                if every_process or path in dead or not path.name.startswith(f".part-{socket.gethostname()}-"):
                    yield path
            yield from folder.glob(f"{LOCK}*")
        for work in work_folders(layout, asset):
            if layout.manifest(asset, work.key, work.version).exists():
                yield work.path
    for folder in (layout.root, layout.progress_folder):
        yield from dead_files(folder)


def work_folders(layout: Layout, asset: str) -> Iterator[WorkFolder]:
    """All work folders of an asset."""
    for key in _keys(layout, asset):
        for path in sorted(layout.partition(asset, key).glob(f"{WORK}*")):
            yield WorkFolder(asset, key, path.name.removeprefix(WORK), path)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; files that are removed meanwhile count nothing."""
    files = [path] if path.is_file() else [Path(folder) / name for folder, _, names in os.walk(path) for name in names]
    size = 0
    for file in files:
        with suppress(FileNotFoundError):
            size += file.lstat().st_size
    return size


def _keys(layout: Layout, asset: str) -> list[str | None]:
    """None for the asset's own folder, then the names of the folders in it: keys, or versions without anything hidden
    in them."""
    folder = layout.asset(asset)
    if not folder.is_dir():
        return []
    return [None, *(path.name for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith("."))]
