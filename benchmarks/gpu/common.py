"""What the parts of a GPU day share: results as JSON lines, a time limit, and the rate of a training step.

Without a CUDA device every part runs at tiny sizes, which checks the scripts and measures nothing.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from unittest import mock

import torch
from torch import nn

from moe_core.models import resnet

OUT = Path(os.environ.get("OUT", "build/gpu-results"))
START = time.monotonic()
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
NEEDS_CUDA = "needs a CUDA device"
EPOCHS = 1e5  # the most that the settings allow: the loop never ends by itself

Result = TypeVar("Result")


class Results:
    """One JSON line per measurement, written at once: a time limit cuts off only what is not measured yet."""

    def __init__(self, part: str, seconds: float) -> None:
        OUT.mkdir(parents=True, exist_ok=True)
        self.part = part
        self.end = START + seconds

    def seconds_left(self) -> float:
        return self.end - time.monotonic()

    def record(self, what: str, **fields: object) -> None:
        """Writes and prints one measurement."""
        line = {"part": self.part, "what": what, "at": round(time.monotonic() - START, 1)} | fields
        with open(OUT / "results.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")
        print(self.part, what, *(f"{key}={value}" for key, value in fields.items()), flush=True)

    def skip(self, what: str, why: str) -> None:
        """Records that a measurement is left out, and why."""
        self.record(what, skipped=why)

    def attempt(self, what: str, work: Callable[[], Result], least: float = 5.0) -> Result | None:
        """`work()` where at least `least` seconds are left; an error is recorded and the part continues."""
        if self.seconds_left() < least:
            self.skip(what, f"{self.seconds_left():.0f} s left")
            return None
        try:
            return work()
        except Exception as error:
            self.record(what, error=f"{type(error).__name__}: {str(error)[:300]}")
            if CUDA:
                torch.cuda.empty_cache()
            return None


def parser(description: str | None, seconds: float) -> argparse.ArgumentParser:
    """A command line whose first argument is the part's time limit in seconds."""
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("seconds", nargs="?", type=float, default=seconds, help="time limit of the part")
    return arguments


def sync() -> None:
    """Waits for the device."""
    if CUDA:
        torch.cuda.synchronize()


def rate(
    call: Callable[[], object],
    images: int,
    seconds: float = 2.0,
    warm: int = 10,
    least: int = 10,
    steps_per_call: int = 1,
) -> dict[str, float]:
    """Images/s of `call()`, which processes `images` in `steps_per_call` steps: the median of five stretches.

    `warm` calls come first and are not timed; a stretch lasts about a fifth of `seconds`, `least` calls at least. The
    spread is that of the five rates, as a share of their median.
    """
    for _ in range(warm):
        call()
    sync()
    began = time.perf_counter()
    for _ in range(least):
        call()
    sync()
    calls = max(least, int(seconds / 5 / max((time.perf_counter() - began) / least, 1e-6)))
    rates = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(calls):
            call()
        sync()
        rates.append(calls * images / (time.perf_counter() - began))
    median = statistics.median(rates)
    return {
        "images_per_s": round(median),
        "spread": round((max(rates) - min(rates)) / median, 3),
        "ms_per_step": round(1000 * images / median / steps_per_call, 4),
    }


@contextmanager
def strided_shortcuts() -> Iterator[None]:
    """Takes the stride in the shortcut's convolution, as torchvision does, instead of slicing before it.

    On CUDA only: on a CPU, oneDNN's strided 1x1 convolution writes out of bounds (see `resnet.Pointwise`).
    """
    if not CUDA:
        yield
        return
    with mock.patch.object(resnet.Pointwise, "forward", nn.Conv2d.forward):
        yield
