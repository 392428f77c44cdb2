"""Image files for a bundle: found in folders, decoded in threads a batch at a time.

Letters: B images of a batch, H W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from moe_core.data.images import REASONS, Rejected, decode
from moe_core.data.sources.raw import IMAGE_SUFFIXES
from moe_core.training.batches import ahead

BATCH = 256
TOGETHER = 16  # files that a thread decodes in one go


@dataclass(frozen=True)
class Part:
    """Some files in order, each with what is wrong with it or "", and the pixels of the good ones."""

    files: list[tuple[Path, str]]
    images_BHWC: np.ndarray  # uint8


def files_of(paths: Iterable[Path]) -> Iterator[Path]:
    """The files themselves, and of each folder the image files in it and below, sorted; hidden ones are left out.

    Raises ValueError for a folder without any.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        found = [p for p in found if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        if not found:
            raise ValueError(f"{path} holds no image file: wanted names that end in {', '.join(IMAGE_SUFFIXES)}")
        yield from found


def decoded(paths: Iterable[Path], size: int, threads: int) -> Iterator[Part]:
    """The files BATCH at a time, resized to `size` squared pixels as posts are at ingest."""

    def read(some: list[Path]) -> list[tuple[Path, str, bytes]]:
        return [_read(path, size) for path in some]

    rest = iter(paths)
    while batch := list(islice(rest, BATCH)):
        groups = [batch[first : first + TOGETHER] for first in range(0, len(batch), TOGETHER)]
        found = [one for group in ahead(read, groups, threads) for one in group]
        pixels = np.frombuffer(bytearray().join(data for _, _, data in found), np.uint8)
        yield Part([(path, error) for path, error, _ in found], pixels.reshape(-1, size, size, 3))


def _read(path: Path, size: int) -> tuple[Path, str, bytes]:
    try:
        return path, "", decode(path.read_bytes(), size).pixels
    except Rejected as why:
        return path, f"{why}: {REASONS[why.reason]}", b""
    except OSError as why:
        return path, str(why), b""
