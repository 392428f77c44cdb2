"""What a step prints, mirrored into the log of its run by a process that ends with the step's, however that ends.

Dagster starts a `tail` and, against its being orphaned, a second process that watches it: twice a step, 0.1 s of a core
each, and a kill between the two leaves the `tail` for good. GNU's `tail` watches by itself.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from dagster._core.execution import compute_logs


@contextmanager
def mirrored(path: str, stream: IO[str] | int) -> Iterator[tuple[int, None]]:
    """Copies what is written to `path` to `stream` meanwhile; yields the number of the process that does."""
    number = stream if isinstance(stream, int) else stream.fileno()
    tail = subprocess.Popen(["tail", "-F", "-c", "+0", f"--pid={os.getpid()}", path], stdout=number)
    try:
        yield tail.pid, None
    finally:
        tail.terminate()
        tail.wait()


def mirror_by_tail_alone() -> None:
    """From here on Dagster mirrors so, on Linux."""
    if sys.platform == "linux":
        compute_logs.execute_posix_tail = mirrored
