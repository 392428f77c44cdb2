"""One training inside a stage: resumed after a killed attempt, logged line by line, saved with a description."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from moe_core import threads
from moe_core.engine.context import Context
from moe_core.models.cost import multiply_adds
from moe_core.models.resnet import ResNet
from moe_core.settings import Training
from moe_core.stages.training.log import TrainingLog, copy_log
from moe_core.store.artifact import Spec, StageOutput
from moe_core.store.hashing import file_hash
from moe_core.training import loop
from moe_core.training.loop import Measurement
from moe_core.training.posts import Posts
from moe_core.weights import save_weights


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
    """Trains and writes weights.safetensors and log.jsonl into `folder`; checkpoints lie in the store's work folder.

    `train`, called with the model and the checkpoint's path, trains in place of the one loop: by `ranks` processes.
    """
    training_threads(model, context.study.data.image_size, training, len(posts), ranks)
    started = time.monotonic()
    with context.store.work(spec) as work:
        log, checkpoint = TrainingLog(work.folder / "log.jsonl", context.report), work.folder / "checkpoint.safetensors"
        measurements = (
            train(model, checkpoint)
            if train
            else loop.train(model, posts, training, train_decoder=train_decoder, checkpoint=checkpoint, device=device)
        )
        for measurement in measurements:
            log.add(measurement)
            work.publish()
        recorded = copy_log(log.path, folder / "log.jsonl", len(posts))
    weights = folder / "weights.safetensors"
    save_weights(weights, model.state_dict(), {"asset": spec.asset, "key": spec.key or "", "version": spec.version})
    return StageOutput(
        recorded | {"seconds": round(time.monotonic() - started, 3), "device": device},
        content={"weights": file_hash(weights)},
    )


def training_threads(model: ResNet, image_size: int, training: Training, posts: int, ranks: int = 1) -> None:
    """Sets the threads of a training of a network on so many posts; with `ranks`, those of each."""
    batch = min(training.batch_size, max(1, posts // ranks))
    threads.use(threads.TRAINING * batch * multiply_adds(model, image_size), max(1, threads.share() // ranks))
