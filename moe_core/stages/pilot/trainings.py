"""The trainings of a pilot, one after the other: each is checkpointed while it runs, and what its network answers on
validation posts is kept as soon as it is trained, so that a pilot that was killed goes on where it stood.

Letters: M validation posts, N of one cluster, W weights of the router, Q measures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from moe_core.engine.context import Context
from moe_core.evaluation.answers import Answer
from moe_core.evaluation.metrics import per_post
from moe_core.models.resnet import ResNet
from moe_core.settings import Training
from moe_core.stages import reading
from moe_core.stages.experts.experts import start
from moe_core.stages.mixture.calibrate import WEIGHTS
from moe_core.stages.pilot.clusters import Cluster
from moe_core.stages.training.fit import training_threads
from moe_core.stages.training.log import TrainingLog
from moe_core.store.work import Work
from moe_core.training import loop
from moe_core.training.infer import features_of, mixed
from moe_core.training.posts import Posts
from moe_core.weights import load_weights, save_weights


@dataclass(frozen=True)
class Measured:
    """What a network that was trained answers, and what its training took."""

    measures_WQN: np.ndarray  # by each weight of the router, of each post
    seconds: float
    images: int


@dataclass(frozen=True)
class Judge:
    """The validation posts, and how the answers on them are measured."""

    posts: Posts  # M of them
    router: Answer  # on them
    weights: Sequence[float]  # of the router's logits in an expert's answer
    measures: Sequence[str]
    loss: str
    precision: str
    device: str

    def of_trunk(self) -> np.ndarray:
        """(Q, M): the measures of the trunk's own answer."""
        return self._measured(self.router, self.router, self.posts, [0.0])[0]

    def of_one(self, model: ResNet) -> np.ndarray:
        """(1, Q, M): of a network that answers alone, through its own last layer."""
        own = Answer(features_of(model, self.posts.images, self.precision, self.device), [model.fc])
        return self._measured(own, own, self.posts, [0.0])

    def of_expert(self, model: ResNet, rows_N: np.ndarray) -> np.ndarray:
        """(W, Q, N): of an expert that answers some of the posts, with each weight of the router."""
        posts = self.posts.subset(rows_N)
        own = Answer(features_of(model, posts.images, self.precision, self.device), [model.fc])
        router = Answer(self.router.features_ND[torch.from_numpy(rows_N)], self.router.layers)
        return self._measured(own, router, posts, self.weights)

    def _measured(self, own: Answer, router: Answer, posts: Posts, weights: Sequence[float]) -> np.ndarray:
        out_WQN = np.zeros((len(weights), len(self.measures), len(posts)), np.float32)
        for rows_B in own.parts():
            logits_BV, router_BV = own.logits(rows_B, self.device), router.logits(rows_B, self.device)
            tags = posts.tag_rows(rows_B)
            for number, weight in enumerate(weights):
                found = per_post(mixed(logits_BV, router_BV, weight, self.loss), *tags)
                for place, name in enumerate(self.measures):
                    out_WQN[number, place, rows_B] = found[name]
        return out_WQN


def weights_of(setting: float | str) -> Sequence[float]:
    """The weights of the router to choose from."""
    return WEIGHTS if isinstance(setting, str) else (setting,)


class Trainings:
    """Trains networks in a work folder, and reports how far all of them are."""

    def __init__(self, context: Context, work: Work, judge: Judge, images: float) -> None:
        """`images`: that all trainings together are to see."""
        self.context, self.work, self.judge = context, work, judge
        self.log = TrainingLog(work.folder / "log.jsonl", context.report)
        self.images, self.seen = images, 0

    def of_trunk(self, share: float, posts: Posts) -> Measured:
        """The trunk, trained on for this share of the epochs on all the posts."""
        training = self.context.study.expert_training
        training = training.model_copy(update={"epochs": training.epochs * share})

        def trained(file: Path) -> Measured:
            model = reading.network(self.context, self.context.need("trunk"))
            took = self._train(model, posts, training, file, train_decoder=True)
            return Measured(self.judge.of_one(model), *took)

        return self._once(f"on-{share:.6g}", trained)

    def of_expert(self, cluster: Cluster, share: float, posts: Posts) -> Measured:
        """An expert of a cluster, trained on these of its posts with the trunk's last layer held fixed."""

        def trained(file: Path) -> Measured:
            model = start(self.context, f"e{cluster.number:03d}", own_decoder=False)
            took = self._train(model, posts, self.context.study.expert_training, file, train_decoder=False)
            return Measured(self.judge.of_expert(model, cluster.validation_rows), *took)

        return self._once(f"{cluster.name}-{share:.6g}", trained)

    def _once(self, name: str, trained: Callable[[Path], Measured]) -> Measured:
        """What is kept under the name, or else what is trained now."""
        folder = self.work.folder
        kept, checkpoint = folder / f"{name}.safetensors", folder / f"checkpoint-{name}.safetensors"
        if not kept.exists():
            found = trained(checkpoint)
            took = torch.tensor([found.seconds, found.images], dtype=torch.float64)
            save_weights(kept, {"measures": torch.from_numpy(found.measures_WQN), "took": took}, {})
        checkpoint.unlink(missing_ok=True)
        self.work.publish()
        state, _ = load_weights(kept)
        seconds, images = state["took"].tolist()
        self.seen += int(images)
        return Measured(state["measures"].numpy(), seconds, int(images))

    def _train(
        self, model: ResNet, posts: Posts, training: Training, checkpoint: Path, train_decoder: bool
    ) -> tuple[float, int]:
        """(seconds that the training takes, measured on what this process trained; images that it sees)."""
        training_threads(model, self.context.study.data.image_size, training, len(posts))
        seconds, trained, seen = 0.0, 0.0, 0  # what a checkpoint was resumed from takes as long an image
        steps = loop.train(
            model, posts, training, train_decoder=train_decoder, checkpoint=checkpoint, device=self.judge.device
        )
        for measurement in steps:
            seen = measurement.images_seen
            each = seen / measurement.step
            images = (1 + (measurement.step - 1) % loop.CHECK_EVERY) * each
            trained += images
            seconds += images / measurement.images_per_second
            left = max(self.images - self.seen - seen, (measurement.steps - measurement.step) * each)
            step = round((self.seen + seen) / each)
            so_far = replace(measurement, step=step, steps=step + round(left / each), images_seen=self.seen + seen)
            self.log.add(so_far)
            self.work.publish()
        return seconds * seen / trained, seen
