"""Groups of near-duplicates by files, and the peak memory of that: python pictures_on_disk.py FOLDER PICTURES."""

import re
import sys
import tempfile
from pathlib import Path

import numpy as np

from moe_core.clustering.neighbors import near_pairs
from moe_core.data.duplicates import SIGNATURE_BYTES
from moe_core.data.groups import Signatures

PART = 10_000
LEVELS = 8.0


def pictures_of(folder, signatures, ignored=None, memory=1 << 20, parts=5):
    """The different pictures, not grouped yet."""
    ignored = np.zeros(len(signatures), bool) if ignored is None else ignored
    found = Signatures(folder, len(signatures), memory)
    for some, which in zip(np.array_split(signatures, parts), np.array_split(ignored, parts), strict=True):
        found.add(some, which)
    return found.pictures()


def grouped(folder, signatures, ignored=None, memory=1 << 20, parts=5, levels=LEVELS):
    """(first of the group of each, -1 where it is ignored; the number of its signature)."""
    used = np.ones(len(signatures), bool) if ignored is None else ~ignored
    pictures = pictures_of(folder, signatures, ignored, memory, parts)
    pictures.group(levels, near_pairs)
    group = np.full(len(signatures), -1)
    group[used] = pictures.first_of(pictures.number_N[used])
    return group, pictures.number_N


def groups_of(signatures, levels=LEVELS):
    """First of the group of each."""
    with tempfile.TemporaryDirectory() as folder:
        return grouped(Path(folder), signatures, levels=levels)[0]


def main(folder, count):
    """Drawn a part at a time, so that nothing but the search may grow."""
    found = Signatures(folder, count, 8 << 20)
    for number in range(count // PART):
        draw = np.random.default_rng(number)
        rows = draw.integers(0, 256, (PART, SIGNATURE_BYTES)).astype(np.uint8)
        rows[::100] = np.arange(SIGNATURE_BYTES)  # and one picture often
        found.add(rows, np.zeros(PART, bool))
    pictures = found.pictures()
    pictures.group(LEVELS, near_pairs)
    status = Path("/proc/self/status").read_text()
    print(len(pictures), int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
