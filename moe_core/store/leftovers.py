"""What processes left beside artifacts in a folder, told by names alone: unfinished artifacts, work folders, locks."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from moe_core.processes import alive, is_dead, is_name, is_ours
from moe_core.store.blobs import Blobs, Folder
from moe_core.store.files import folders_in, process_of
from moe_core.store.layout import LOCK, WORK, Layout

ABANDONED_SECONDS = 86_400.0  # no text takes so long to be written


@dataclass(frozen=True)
class Leftover:
    """A file or folder that may be removed; in a bucket, a blob or all that lie under a name."""

    place: Blobs
    name: str

    @property
    def size(self) -> int:
        """Bytes."""
        return self.place.size(self.name)

    def remove(self) -> None:
        self.place.remove(self.name)


def left_at(layout: Layout, path: Path) -> Leftover:
    """A file or folder under a root."""
    return Leftover(Folder(layout.root), path.relative_to(layout.root).as_posix())


def leftovers(layout: Layout, assets: Iterable[str], every_process: bool = False) -> Iterator[Path]:
    """Unfinished artifacts, work folders of finished ones, and what `local_leftovers` finds. The caller holds the lock
    `layout.in_use` alone.

    So nothing is built on any machine, and unfinished artifacts are left over, but for those of a process that runs
    here, unless `every_process`. Texts are written without that lock: those of another machine are left over after a
    day, by the clock of the file system.
    """
    for asset in assets:
        for key in _keys(layout, asset):
            yield from _parts(layout.partition(asset, key), every_process)
        for path, key, version in work_folders(layout, asset):
            if layout.manifest(asset, key, version).exists():
                yield path
    layout.in_use.touch()
    yield from local_leftovers(layout, every_process, layout.in_use.stat().st_mtime)


def local_leftovers(layout: Layout, every_process: bool = False, now: float = 0.0) -> Iterator[Path]:
    """What lies under the root of a study in a bucket, too: what was being written, texts, and arrays that processes
    mapped, which may be of posts that are gone. With `now`, texts of other machines are among them, by their age.
    """
    yield from _parts(layout.scratch, every_process)
    if layout.arrays.is_dir():
        yield layout.arrays
    yield from _texts(layout, now)


def _parts(folder: Path, every_process: bool) -> Iterator[Path]:
    for path in folder.glob(".part-*-*-*"):
        if every_process or not alive(process_of(path)):
            yield path


def _texts(layout: Layout, now: float) -> Iterator[Path]:
    for path in (*layout.root.glob(".*.part"), *layout.progress_folder.glob(".*.part")):
        process = process_of(path)
        with suppress(FileNotFoundError):
            if is_dead(process) or (
                is_name(process) and not is_ours(process) and now - path.stat().st_mtime > ABANDONED_SECONDS
            ):
                yield path


def remove_locks(layout: Layout, assets: Iterable[str]) -> None:
    """Removes the locks of builds. The caller holds the lock `layout.in_use` alone: nobody has or wants one."""
    for asset in assets:
        for key in _keys(layout, asset):
            for lock in layout.partition(asset, key).glob(f"{LOCK}*"):
                lock.unlink(missing_ok=True)


def work_folders(layout: Layout, asset: str) -> Iterator[tuple[Path, str | None, str]]:
    """Folders with checkpoints of an asset's artifacts, each with the key and the version of its artifact."""
    for key in _keys(layout, asset):
        for path in sorted(layout.partition(asset, key).glob(f"{WORK}*")):
            yield path, key, path.name.removeprefix(WORK)


def _keys(layout: Layout, asset: str) -> list[str | None]:
    """None for the asset's own folder, then the names of the folders in it: keys, or versions without anything hidden
    in them."""
    return [None, *(path.name for path in folders_in(layout.asset(asset)))]
