"""One training inside a stage: resumed after a killed attempt, logged line by line, saved with a description."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_core import threads
from moe_core.engine.context import Context
from moe_core.store.artifact import Artifact, Spec, StageOutput
from moe_core.store.hashing import file_hash

if TYPE_CHECKING:
    from moe_core.models.resnet import ResNet
    from moe_core.settings import Training
    from moe_core.training.batches import Posts
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


def fit(
    context: Context,
    spec: Spec,
    folder: Path,
    model: ResNet,
    posts: Posts,
    training: Training,
    device: str,
    train_decoder: bool = True,
    train: Callable[[ResNet, Path], Iterator[Measurement]] | None = None,
    ranks: int = 1,
) -> StageOutput:
    """Trains and writes weights.safetensors and log.jsonl into `folder`; checkpoints lie in the spec's work folder.

    `train`, called with the model and the checkpoint's path, trains in place of the one loop: by `ranks` processes.
    """
    from moe_core.training import loop
    from moe_core.weights import save_weights

    training_threads(model, context.study.data.image_size, training, len(posts), ranks)
    work = context.store.work_folder(spec)
    work.mkdir(parents=True, exist_ok=True)
    log = work / "log.jsonl"
    started = reported = time.monotonic()
    checkpoint = work / "checkpoint.safetensors"
    speed = Speed()
    with open(log, "a", encoding="utf-8") as lines:
        measurements = (
            train(model, checkpoint)
            if train
            else loop.train(model, posts, training, train_decoder=train_decoder, checkpoint=checkpoint, device=device)
        )
        for measurement in measurements:
            lines.write(json.dumps(asdict(measurement)) + "\n")
            lines.flush()
            averaged = speed.averaged(measurement)
            if time.monotonic() - reported >= REPORT_SECONDS or measurement.step == measurement.steps:
                reported = time.monotonic()
                context.report(asdict(averaged))
    end = copy_log(log, folder / "log.jsonl")
    weights = folder / "weights.safetensors"
    save_weights(weights, model.state_dict(), {"asset": spec.asset, "key": spec.key or "", "version": spec.version})
    return StageOutput(
        metadata={
            "training_posts": len(posts),
            "training_images": end["images_seen"],
            "steps": end["steps"],
            "loss": round(end["loss"], 4),
            "seconds": round(time.monotonic() - started, 1),
            "device": device,
        },
        content={"weights": file_hash(weights)},
    )


def training_threads(model: ResNet, image_size: int, training: Training, posts: int, ranks: int = 1) -> None:
    """Sets the threads of a training of a network on so many posts; with `ranks`, those of each."""
    from moe_core.models.cost import multiply_adds

    batch = min(training.batch_size, max(1, posts // ranks))
    threads.use(threads.TRAINING * batch * multiply_adds(model, image_size), max(1, threads.share() // ranks))


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


def _lines(path: Path) -> list[dict[str, float]]:
    """Measurements in a log, whose last line may be incomplete."""
    measurements = []
    for line in path.read_text("utf-8").splitlines():
        try:
            measurements.append(json.loads(line))
        except ValueError:
            continue
    return measurements
