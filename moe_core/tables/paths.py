"""A path for lance, which reads one as a URL.

It creates the folder of its tags at the percent-encoded path (`jos%C3%A9` beside `josé`), and refuses control
characters and names that are too long when encoded. Below an open folder no name of a user's is in the path.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DESCRIPTORS = Path("/proc/self/fd")  # of Linux; elsewhere lance gets the path as it is
PLAIN = re.compile(r"[A-Za-z0-9_./-]*")  # what percent-encoding leaves as it is

_handles: dict[tuple[int, int], int] = {}  # of folders by device and inode: never closed, so that no number is reused


def lance_path(path: Path) -> str:
    """Path of a data set that may stay open as long as this process runs, such as posts.lance."""
    if _is_plain(path):
        return str(path)
    folder, rest = _split(path)
    stat = folder.stat()
    inode = stat.st_dev, stat.st_ino
    if inode not in _handles:
        _handles[inode] = os.open(folder, os.O_RDONLY)
    return f"{DESCRIPTORS}/{_handles[inode]}{rest}"


@contextmanager
def open_path(path: Path) -> Iterator[str]:
    """Path of a data set that is read or written within the block only."""
    if _is_plain(path):
        yield str(path)
        return
    folder, rest = _split(path)
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield f"{DESCRIPTORS}/{handle}{rest}"
    finally:
        os.close(handle)


def _is_plain(path: Path) -> bool:
    return bool(PLAIN.fullmatch(str(path.absolute()))) or not DESCRIPTORS.is_dir()


def _split(path: Path) -> tuple[Path, str]:
    """The folder to open, and what follows it: the data set itself, or its parent where it is still to be created."""
    return (path, "") if path.is_dir() else (path.parent, f"/{path.name}")
