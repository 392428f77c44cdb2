"""Arrays in files that the processes of a machine map, so that memory holds them once and only as it is needed.

    <folder>/<key>/<name>    int64, one after the other, as the machine writes them

Derived from artifacts: a key is a hash of what an array is made from, and what is gone is made again. A folder is
written under a hidden name and renamed. Short arrays are made where they are wanted, and leave no file.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from moe_core.store.files import errors_with_path, temporary_folder
from moe_core.store.locks import exclusive

SHORT_BYTES = 64 << 20  # of the arrays of a key together

Parts = Callable[[], Iterable[Sequence[np.ndarray]]]  # a part of each array; called again where files are written


def mapped(folder: Path, key: str, names: Sequence[str], parts: Parts) -> list[np.ndarray]:
    """(.,) int64 each: the arrays of a key, from the files that another process wrote, or from their parts.

    Memory holds one part at a time, and SHORT_BYTES. Writing to them changes no file.
    """
    entry = folder / key
    while True:
        try:
            return [_map(entry / name) for name in names]
        except FileNotFoundError:
            short = _short(parts(), len(names))
            if short is not None:
                return short
            with exclusive(folder / ".lock"):
                if not entry.is_dir():
                    _write(entry, names, parts())


def _map(path: Path) -> np.ndarray:
    size = path.stat().st_size
    return np.memmap(path, np.int64, "c") if size else np.empty(0, np.int64)


def _short(parts: Iterable[Sequence[np.ndarray]], count: int) -> list[np.ndarray] | None:
    """The arrays; None where they are not short."""
    found: list[list[np.ndarray]] = [[np.empty(0, np.int64)] for _ in range(count)]
    left = SHORT_BYTES
    for part in parts:
        left -= sum(array.nbytes for array in part)
        if left < 0:
            return None
        for its, array in zip(found, part, strict=True):
            its.append(array)
    return [np.concatenate(its) for its in found]


def _write(entry: Path, names: Sequence[str], parts: Iterable[Sequence[np.ndarray]]) -> None:
    with temporary_folder(entry.parent) as temporary:
        with errors_with_path(temporary), ExitStack() as opened:
            files = [opened.enter_context(open(temporary / name, "xb")) for name in names]
            for part in parts:
                for file, array in zip(files, part, strict=True):
                    file.write(np.ascontiguousarray(array, np.int64).data)
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        temporary.rename(entry)
