"""The log of a training, line by line: its speed, the time left, and what remains of it after a killed attempt."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_core.store.artifact import Artifact

if TYPE_CHECKING:
    from moe_core.training.loop import Measurement

REPORT_SECONDS = 2.0
SPEED_SECONDS = 180.0  # over which a speed is a mean: ten steps alone vary with other programs


class Speed:
    """Images a second as a mean over the last minutes, from a training's measurements."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.seen: deque[tuple[float, int]] = deque()  # (seconds, images), a second apart at least

    def averaged(self, latest: Measurement) -> Measurement:
        """The measurement with the mean speed in place of its own, which it keeps at the start."""
        now = self.clock()
        if not self.seen or now - self.seen[-1][0] >= 1:
            self.seen.append((now, latest.images_seen))
        while len(self.seen) > 1 and now - self.seen[0][0] > SPEED_SECONDS:
            self.seen.popleft()
        first, images = self.seen[0]
        if latest.images_seen <= images or now - first < 1:
            return latest
        return replace(latest, images_per_second=(latest.images_seen - images) / (now - first))


def seconds_left(report: Mapping[str, Any]) -> float:
    """Time left of a training, from a report of it that has `steps` and `images_per_second`."""
    images_a_step = report["images_seen"] / report["step"]
    return float((report["steps"] - report["step"]) * images_a_step / report["images_per_second"])


def log_of(artifact: Artifact) -> list[dict[str, float]]:
    """Measurements of a network's training, in the order of the steps."""
    return _lines(artifact.file("log.jsonl"))


def copy_log(log: Path, to: Path) -> dict[str, float]:
    """Copies a log with each step once: a killed attempt may have logged steps that were repeated.

    Returns the last line. Raises RuntimeError for a log without lines.
    """
    kept = {line["step"]: line for line in _lines(log)}
    if not kept:
        raise RuntimeError(f"{log}: training ended without a step")
    to.write_text("".join(json.dumps(kept[step]) + "\n" for step in sorted(kept)))
    return kept[max(kept)]


def recorded(posts: int, end: Mapping[str, float]) -> dict[str, Any]:
    """What an artifact records of a training on so many posts, from the last line of its log."""
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
