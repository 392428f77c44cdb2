"""The log of a training, line by line: its speed, the time left, and what remains of it after a killed attempt."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_core.engine.context import Report
from moe_core.store.artifact import Artifact

if TYPE_CHECKING:
    from moe_core.training.loop import Measurement

REPORT_SECONDS = 2.0
SPEED_SECONDS = 180.0  # over which a speed is a mean: ten steps alone vary with other programs


class TrainingLog:
    """Writes what a training measures, line by line, and reports it now and then with the speed of the last minutes."""

    def __init__(self, path: Path, report: Report, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self.report, self.clock = path, report, clock
        self.reported = clock()
        self.seen: deque[tuple[float, int]] = deque()  # (seconds, images), a second apart at least

    def add(self, measurement: Measurement, **more: Any) -> None:
        """The report says `more`, too; the last step is reported in any case."""
        with open(self.path, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(measurement)) + "\n")
        now = self.clock()
        speed = self._mean_speed(measurement, now)
        if now - self.reported >= REPORT_SECONDS or measurement.step == measurement.steps:
            self.reported = now
            self.report(asdict(measurement) | {"images_per_second": speed} | more)

    def _mean_speed(self, latest: Measurement, now: float) -> float:
        """Images a second over SPEED_SECONDS; those of the measurement at the start."""
        if not self.seen or now - self.seen[-1][0] >= 1:
            self.seen.append((now, latest.images_seen))
        while len(self.seen) > 1 and now - self.seen[0][0] > SPEED_SECONDS:
            self.seen.popleft()
        first, images = self.seen[0]
        if latest.images_seen <= images or now - first < 1:
            return latest.images_per_second
        return (latest.images_seen - images) / (now - first)


def seconds_left(report: Mapping[str, Any]) -> float:
    """Time left of a training, from a report of it that has `steps` and `images_per_second`."""
    images_a_step = report["images_seen"] / report["step"]
    return float((report["steps"] - report["step"]) * images_a_step / report["images_per_second"])


def log_of(artifact: Artifact) -> list[dict[str, float]]:
    """Measurements of a network's training, in the order of the steps."""
    return _lines(artifact.file("log.jsonl"))


def copy_log(log: Path, to: Path, posts: int) -> dict[str, Any]:
    """Copies a log with each step once: a killed attempt may have logged steps that were repeated.

    Returns what an artifact records of a training on so many posts. Raises RuntimeError for a log without lines.
    """
    kept = {line["step"]: line for line in _lines(log)}
    if not kept:
        raise RuntimeError(f"{log}: training ended without a step")
    to.write_text("".join(json.dumps(kept[step]) + "\n" for step in sorted(kept)))
    end = kept[max(kept)]
    loss = round(end["loss"], 4)
    return {"training_posts": posts, "training_images": end["images_seen"], "steps": end["steps"], "loss": loss}


def _lines(path: Path) -> list[dict[str, float]]:
    """Measurements in a log, whose last line may be incomplete."""
    measurements = []
    for line in path.read_text("utf-8").splitlines():
        try:
            measurements.append(json.loads(line))
        except ValueError:
            continue
    return measurements
