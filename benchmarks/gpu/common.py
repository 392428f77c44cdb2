"""What the parts of a GPU day share: results as JSON lines, a time limit, and the rate of a training step.

Without a CUDA device every part runs at tiny sizes, which checks the scripts and measures nothing.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from unittest import mock

import torch

from moe_core.training import loop
from moe_core.training.loop import Measurement

NO_CARD = "no card"
OUT = Path(os.environ.get("OUT", "build/gpu-results"))
START = time.monotonic()
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
ON = f"{torch.cuda.get_device_name() if CUDA else NO_CARD}, torch {torch.__version__}"
NEEDS_CUDA = "needs a CUDA device"
WARM_READINGS = 2
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
        about = {"part": self.part, "what": what, "on": ON, "at": round(time.monotonic() - START, 1)}
        with open(OUT / "results.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(about | fields, default=str) + "\n")
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
    return measured_rate(rates, images // steps_per_call)


def project_rate(steps: Iterator[Measurement], batch: int, seconds: float = 2.0) -> dict[str, float]:
    """Images/s of the project's loop: the median of what it measures itself, over some of its readings.

    On a GPU it reads the losses about once in READ_SECONDS, and a reading gives many measurements of one speed. The
    first readings, in which algorithms are tried and graphs captured, do not count.
    """
    rates: list[float] = []
    began = time.perf_counter()
    with mock.patch.object(loop, "READ_SECONDS", seconds / 5):
        for measurement in steps:
            if rates and measurement.images_per_second == rates[-1]:
                continue  # of the same reading
            rates.append(measurement.images_per_second)
            if len(rates) == WARM_READINGS:
                began = time.perf_counter()
            if len(rates) >= WARM_READINGS + 3 and time.perf_counter() - began >= seconds:
                break
    steps.close()  # type: ignore[attr-defined]
    return measured_rate(rates[WARM_READINGS:], batch)


def measured_rate(rates: list[float], images: int) -> dict[str, float]:
    """The median of images/s, their spread as a share of it, and ms of a step of so many images."""
    median = statistics.median(rates)
    return {
        "images_per_s": round(median),
        "spread": round((max(rates) - min(rates)) / median, 3),
        "ms_per_step": round(1000 * images / median, 4),
    }
