"""Which GPU a run gets: those this process may see, by the names it knows them by, one training on each.

A training holds a lock on its GPU's file, in a folder that all of a user's studies on the machine share, for as long as
it runs. The lock ends with the process that holds it.
"""

import os
import re
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from moe_core.errors import LockHeld
from moe_core.store.locks import exclusive

NAME = re.compile(r"\d+|(GPU|MIG)-[\w/-]+")


def gpu_names() -> list[str]:
    """What CUDA_VISIBLE_DEVICES is to say for each GPU, without loading torch.

    Where it is set already, its entries, as CUDA reads them: up to the first that names no GPU.
    """
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is None:
        return [str(number) for number in range(len(list(Path("/proc/driver/nvidia/gpus").glob("*"))))]
    return list(takewhile(NAME.fullmatch, (part.strip() for part in said.split(","))))


@dataclass
class Lease:
    """GPUs that are this run's until it is released: one, or all of them, or none where the run needs none."""

    gpus: list[str]
    held: ExitStack

    def release(self) -> None:
        self.held.close()


class Leases:
    """Of the GPUs `names`; with more workers than GPUs, so many runs share one as have to."""

    def __init__(self, names: list[str], workers: int) -> None:
        self.names = names
        self.sharers = -(-workers // len(names)) if names else 0

    def one(self, first: str) -> Lease | None:
        """Of `first`, or of another where that is taken; None where all are."""
        for place in range(self.sharers):
            for name in sorted(self.names, key=lambda name: name != first):
                held = ExitStack()
                if _take(held, name, place):
                    return Lease([name], held)
        return None

    def all(self) -> Lease | None:
        """Of every GPU, alone; None where any is taken."""
        held = ExitStack()
        if all(_take(held, name, place) for name in self.names for place in range(self.sharers)):
            return Lease(self.names, held)
        held.close()
        return None


def _take(held: ExitStack, name: str, place: int) -> bool:
    try:
        held.enter_context(exclusive(_folder() / f"{re.sub('[^A-Za-z0-9-]', '_', name)}.{place}", wait=False))
    except LockHeld:
        return False
    return True


def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"hardmoe-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ValueError(f"{folder} belongs to another user: remove it, or set TMPDIR to a folder of yours")
    return folder
