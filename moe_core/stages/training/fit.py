"""One training inside a stage: resumed where an attempt was killed, logged line by line, saved with what it is."""

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
SPEED_SECONDS = 180.0  # over which a speed is a mean: a stretch of ten steps varies with whatever else runs


class Speed:
    """Images a second as a mean over the last minutes, from a training's measurements."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.seen: deque[tuple[float, int]] = deque()  # (seconds, images), a second apart at least

    def averaged(self, one: Measurement) -> Measurement:
        """The measurement with the mean in its speed's place; its own at the start."""
        now = self.clock()
        if not self.seen or now - self.seen[-1][0] >= 1:
            self.seen.append((now, one.images_seen))
        while len(self.seen) > 1 and now - self.seen[0][0] > SPEED_SECONDS:
            self.seen.popleft()
        then, images = self.seen[0]
        if one.images_seen <= images or now - then < 1:
            return one
        return replace(one, images_per_second=(one.images_seen - images) / (now - then))


def fit(
    context: Context,
    plan: Spec,
    folder: Path,
    model: ResNet,
    posts: Posts,
    training: Training,
    device: str,
    train_decoder: bool = True,
    train: Callable[[ResNet, Path], Iterator[Measurement]] | None = None,
    ranks: int = 1,
) -> StageOutput:
    """Trains and writes weights.safetensors and log.jsonl into `folder`; checkpoints lie in the plan's work folder.

    `train`, called with the model and the checkpoint's path, trains in place of the one loop: by `ranks` processes.
    """
    from moe_core.training import loop
    from moe_core.weights import save_weights

    training_threads(model, context.study.data.image_size, training, len(posts), ranks)
    work = context.store.work_folder(plan)
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
        for one in measurements:
            lines.write(json.dumps(asdict(one)) + "\n")
            lines.flush()
            averaged = speed.averaged(one)
            if time.monotonic() - reported >= REPORT_SECONDS or one.step == one.steps:
                reported = time.monotonic()
                context.report(asdict(averaged))
    end = copy_log(log, folder / "log.jsonl")
    weights = folder / "weights.safetensors"
    save_weights(weights, model.state_dict(), {"asset": plan.asset, "key": plan.key or "", "version": plan.version})
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


def seconds_left(said: Mapping[str, Any]) -> float:
    """Of a training, from a report of it that has `steps` and `images_per_second`."""
    images_a_step = said["images_seen"] / said["step"]
    return float((said["steps"] - said["step"]) * images_a_step / said["images_per_second"])


def log_of(artifact: Artifact) -> list[dict[str, float]]:
    """What was measured while a network was trained, in the order of the steps."""
    return _lines(artifact.file("log.jsonl"))


def copy_log(log: Path, to: Path) -> dict[str, float]:
    """Copies it without the steps that an attempt which was killed had logged before they were done again.

    Returns the last line. Raises RuntimeError for a log without lines.
    """
    kept = {line["step"]: line for line in _lines(log)}
    if not kept:
        raise RuntimeError(f"{log}: training ended without a step")
    to.write_text("".join(json.dumps(kept[step]) + "\n" for step in sorted(kept)))
    return kept[max(kept)]


def _lines(path: Path) -> list[dict[str, float]]:
    """The last line may be half of one."""
    found = []
    for line in path.read_text("utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
