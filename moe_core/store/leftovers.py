"""What interrupted processes left beside artifacts, told by names alone: unfinished artifacts, work folders, locks."""

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from moe_core.store.files import dead_files, dead_parts, folders_in
from moe_core.store.layout import LOCK, WORK, Layout


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
        for path, key, version in work_folders(layout, asset):
            if layout.manifest(asset, key, version).exists():
                yield path
    for folder in (layout.root, layout.progress_folder):
        yield from dead_files(folder)


def work_folders(layout: Layout, asset: str) -> Iterator[tuple[Path, str | None, str]]:
    """Folders with checkpoints of an asset's artifacts, each with the key and the version of its artifact."""
    for key in _keys(layout, asset):
        for path in sorted(layout.partition(asset, key).glob(f"{WORK}*")):
            yield path, key, path.name.removeprefix(WORK)


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
    return [None, *(path.name for path in folders_in(layout.asset(asset)))]
