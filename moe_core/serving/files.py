"""Image files for a bundle: found in folders, decoded in threads a batch at a time.

Letters: B images of a batch, H W pixels, C channels.
"""

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from moe_core.data.image_files import IMAGE_SUFFIXES, MAX_FILE_BYTES
from moe_core.data.images import REASONS, Rejected, decode
from moe_core.errors import BadSource
from moe_core.training.batches import ahead

BATCH = 256
TOGETHER = 16  # files that a thread decodes in one go
NO_IMAGE, HIDDEN = "no image by its name", "hidden"


def files_of(paths: Iterable[Path]) -> tuple[list[Path], list[tuple[Path, str]]]:
    """(files, what was left out of their folders, each with the reason): the files themselves, and of each folder the
    image files in it and below, sorted. Links to folders are not followed, links to files are.

    Raises BadSource for a folder without any.
    """
    files: list[Path] = []
    skipped: list[tuple[Path, str]] = []
    for path in paths:
        entries = sorted(_below(path)) if os.path.isdir(path) else [(path, "")]
        images = [each for each, why in entries if not why]
        if not images:
            raise BadSource(f"{path} holds no image file: wanted names that end in {', '.join(IMAGE_SUFFIXES)}")
        files += images
        skipped += [(each, why) for each, why in entries if why]
    return files, skipped


def _below(folder: Path) -> Iterator[tuple[Path, str]]:
    """Entries of a folder and below, each with the reason to leave it out or ""."""
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        try:
            entries = list(os.scandir(path))
        except OSError as error:
            yield path, f"a folder that cannot be read: {error.strerror}"
            continue
        for entry in entries:
            each = path / entry.name
            if entry.name.startswith("."):
                yield each, HIDDEN
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(each)
            elif not entry.name.lower().endswith(IMAGE_SUFFIXES):
                yield each, NO_IMAGE
            elif os.path.isdir(each):
                yield each, "a link to a folder"
            else:
                yield each, ""


def decoded(paths: Iterable[Path], size: int, threads: int) -> Iterator[tuple[list[tuple[Path, str]], np.ndarray]]:
    """(some files in order, each with its error or ""; (B, H, W, C) uint8 of the good ones), BATCH files at a time,
    resized to `size` squared pixels as posts are at ingest."""

    def read(some: list[Path]) -> list[tuple[Path, str, bytes]]:
        return [_read(path, size) for path in some]

    rest = iter(paths)
    while batch := list(islice(rest, BATCH)):
        groups = [batch[first : first + TOGETHER] for first in range(0, len(batch), TOGETHER)]
        read_files = [file for group in ahead(read, groups, threads) for file in group]
        pixels = np.frombuffer(bytearray().join(data for _, _, data in read_files), np.uint8)
        yield [(path, error) for path, error, _ in read_files], pixels.reshape(-1, size, size, 3)


def _read(path: Path, size: int) -> tuple[Path, str, bytes]:
    try:
        return path, "", decode(_bytes_of(path), size).pixels
    except Rejected as why:
        return path, f"{why}: {REASONS[why.reason]}", b""
    except OSError as why:
        return path, why.strerror or str(why), b""


def _bytes_of(path: Path) -> bytes:
    """Bytes of a regular file within the limits of ingest; nothing else is opened, as a FIFO or device may never end.

    Raises OSError, and Rejected for a file that is too large.
    """
    _regular(os.stat(path))
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        about = os.fstat(file.fileno())
        _regular(about)
        if about.st_size > MAX_FILE_BYTES:
            raise Rejected("too_large", f"the file has {about.st_size:,} bytes, more than {MAX_FILE_BYTES:,}")
        data = file.read(about.st_size + 1)
        if len(data) != about.st_size:
            raise OSError(errno.EBUSY, "the file was changed while it was read")
    return data


def _regular(about: os.stat_result) -> None:
    if not stat.S_ISREG(about.st_mode):
        raise OSError(errno.EINVAL, "this is not a regular file")
