"""Which GPU a step computes on. Each trains one network at a time, however the training was started: by Dagster's UI
or daemon, or by a command on this or another study of the same user on this machine.

A training holds a lock on its GPU's file, in a folder that all of a user's studies share, for as long as it runs; the
lock ends with the process that holds it. Before that it takes the GPU's gate for a moment. A training that wants
several GPUs keeps their gates while it waits and while it runs, so that the trainings that need one cannot starve it.
"""

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from moe_core.errors import BadSetting, LockHeld
from moe_core.store.locks import exclusive

WAIT_SECONDS = 0.2  # between attempts
Waits = Callable[[str], None]


@contextmanager
def one_gpu(names: Sequence[str], sharers: int, first: int, waits: Waits) -> Iterator[int]:
    """Waits for a place on one of the GPUs and yields its index in `names`; `first` is preferred where it is free.

    A GPU has `sharers` places. `waits` is called with what is waited for, again and again until one is free.
    """
    with ExitStack() as held:
        while (index := _place(names, first, sharers, held)) is None:
            waits(f"a GPU: {', '.join(names)} in use")
            time.sleep(WAIT_SECONDS)
        yield index


@contextmanager
def all_gpus(names: Sequence[str], waits: Waits) -> Iterator[int]:
    """Waits until no other training is on any of the GPUs, holds them alone, and yields the index of the first."""
    folder = _folder()
    with ExitStack() as held:
        for name in sorted(set(names)):  # in one order, so that two that want several never wait for each other
            _wait(held, folder / f"{_safe(name)}.gate", name, waits)
            for place in sorted({folder / f"{_safe(name)}.0", *folder.glob(f"{_safe(name)}.[0-9]*")}):
                _wait(held, place, name, waits)
        yield 0


def free_gpu(names: Sequence[str], first: int) -> int:
    """Index of a GPU for a step that trains nothing and so holds none: `first`, or another where that is in use."""
    with ExitStack() as held:
        index = _place(names, first, 1, held)
    return first % len(names) if index is None else index


def _place(names: Sequence[str], first: int, sharers: int, held: ExitStack) -> int | None:
    folder, order = _folder(), sorted(range(len(names)), key=lambda index: (index - first) % len(names))
    for place in range(sharers):  # the second of a GPU only where no GPU has its first free
        for index in order:
            name = _safe(names[index])
            with ExitStack() as gate:
                if _take(gate, folder / f"{name}.gate") and _take(held, folder / f"{name}.{place}"):
                    return index
    return None


def _wait(held: ExitStack, lock: Path, name: str, waits: Waits) -> None:
    while not _take(held, lock):
        waits(f"all GPUs: {name} in use")
        time.sleep(WAIT_SECONDS)


def _take(held: ExitStack, lock: Path) -> bool:
    try:
        held.enter_context(exclusive(lock, wait=False))
    except LockHeld:
        return False
    return True


def _safe(name: str) -> str:
    return re.sub("[^A-Za-z0-9-]", "_", name)


def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"hardmoe-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise BadSetting(f"{folder} belongs to another user: remove it, or set TMPDIR to a folder of yours")
    return folder
