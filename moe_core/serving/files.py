"""Image files for a bundle: found in folders, decoded in threads a batch at a time.

Letters: B images of a batch, H W pixels, C channels.
"""

import errno
import heapq
import io
import json
import os
import stat
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TypeVar

import numpy as np
from PIL import Image

from moe_core.data.image_files import IMAGE_SUFFIXES, MAX_FILE_BYTES
from moe_core.data.images import REASONS, Rejected, decode
from moe_core.errors import BadImage, BadSource
from moe_core.training.batches import ahead

BATCH = 256
TOGETHER = 16  # files that a thread decodes in one go
NO_IMAGE, HIDDEN, FOLDER = "no image by its name", "hidden", "/"
SORTED = 200_000  # names of a folder that are sorted in memory, some 40 MB

Item = TypeVar("Item")


def no_images(folder: Path) -> BadSource:
    """The error for a folder without an image file."""
    return BadSource(f"{folder} holds no image file: wanted names that end in {', '.join(IMAGE_SUFFIXES)}")


def entries_of(path: Path, without: Container[str] = ()) -> Iterator[tuple[str, str]]:
    """(path, the reason to leave it out or ""): a file itself; of a folder the entries in it and below, sorted, but for
    the paths `without`. Memory grows with the depth, and is bounded in a folder of any number of files."""
    if not os.path.isdir(path):
        yield str(path), ""
        return
    waiting = [_sorted_entries(str(path))]
    while waiting:
        try:
            each, why = next(waiting[-1])
        except StopIteration:
            waiting.pop()
            continue
        if each in without:
            continue
        if why == FOLDER:
            waiting.append(_sorted_entries(each))
        else:
            yield each, why


def _sorted_entries(folder: str) -> Iterator[tuple[str, str]]:
    """Entries of one folder, each with the reason to leave it out, "" for an image, or FOLDER."""
    try:
        with os.scandir(folder) as entries:
            yield from ((os.path.join(folder, name), why) for name, why in in_order(map(_judged, entries)))
    except OSError as error:
        yield folder, f"a folder that cannot be read: {error.strerror}"


def _judged(entry: os.DirEntry[str]) -> tuple[str, str]:
    if entry.name.startswith("."):
        return entry.name, HIDDEN
    if entry.is_dir(follow_symlinks=False):
        return entry.name, FOLDER
    if not entry.name.lower().endswith(IMAGE_SUFFIXES):
        return entry.name, NO_IMAGE
    return entry.name, "a link to a folder" if entry.is_symlink() and os.path.isdir(entry.path) else ""


def in_order(pairs: Iterable[tuple[str, str]], most: int = SORTED) -> Iterator[tuple[str, str]]:
    """The pairs, sorted; more than `most` are sorted in parts, which lie in temporary files until they are merged."""
    rest = iter(pairs)
    with ExitStack() as stack:
        parts = list[IO[str]]()
        while some := sorted(islice(rest, most)):
            if len(some) < most and not parts:
                yield from some
                return
            part = stack.enter_context(TemporaryFile("w+", encoding="ascii"))
            part.writelines(f"{json.dumps(pair)}\n" for pair in some)
            part.seek(0)
            parts.append(part)
        yield from heapq.merge(*(((name, why) for name, why in map(json.loads, part)) for part in parts))


def decoded(paths: Iterable[Path], size: int, threads: int) -> Iterator[tuple[list[tuple[Path, str]], np.ndarray]]:
    """(some files in order, each with its error or ""; (B, H, W, C) uint8 of the good ones), BATCH files at a time,
    resized to `size` squared pixels as posts are at ingest."""
    for batch, errors, images_BHWC in decoded_items(paths, bytes_of, size, threads):
        yield list(zip(batch, errors, strict=True)), images_BHWC


def decoded_items(
    items: Iterable[Item], read: Callable[[Item], bytes], size: int, threads: int
) -> Iterator[tuple[list[Item], list[str], np.ndarray]]:
    """(some items in order, the error of each or "", (B, H, W, C) uint8 of the good ones), BATCH items at a time.

    `read` gives the bytes of an item's image file, and raises Rejected or OSError where it has none, or Skip.
    """

    def decode_group(some: list[Item]) -> list[tuple[str, bytes]]:
        return [_pixels(read, item, size) for item in some]

    rest = iter(items)
    while batch := list(islice(rest, BATCH)):
        groups = [batch[first : first + TOGETHER] for first in range(0, len(batch), TOGETHER)]
        read_items = [item for group in ahead(decode_group, groups, threads) for item in group]
        pixels = np.frombuffer(bytearray().join(data for _, data in read_items), np.uint8)
        yield batch, [error for error, _ in read_items], pixels.reshape(-1, size, size, 3)


def file_of(pixels_HWC: np.ndarray, number: int) -> bytes:
    """A picture that was given as an array, the `number`th, as an image file. Raises BadImage where it is none."""
    if pixels_HWC.dtype != np.uint8 or pixels_HWC.ndim != 3 or pixels_HWC.shape[2] != 3 or 0 in pixels_HWC.shape:
        raise BadImage(f"image {number}: {pixels_HWC.dtype} of shape {pixels_HWC.shape}: wanted uint8 and (H, W, 3)")
    file = io.BytesIO()
    Image.fromarray(pixels_HWC).save(file, "BMP")
    return file.getvalue()


class Skip(Exception):
    """An item without an image to read; its text says why."""


def _pixels(read: Callable[[Item], bytes], item: Item, size: int) -> tuple[str, bytes]:
    try:
        return "", decode(read(item), size).pixels
    except Rejected as why:
        return f"{why}: {REASONS[why.reason]}", b""
    except Skip as why:
        return str(why), b""
    except OSError as why:
        return why.strerror or str(why) or type(why).__name__, b""


def bytes_of(path: Path) -> bytes:
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
