"""The trainings of a pilot, one after the other: each is checkpointed while it runs, and what is needed of its network
is kept as soon as it is trained, so that a pilot that was killed goes on where it stood.

Letters: M validation posts, N of one cluster, B training posts of an expert, D features, W weights of the router,
Q measures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from moe_core.engine.context import Context
from moe_core.evaluation.answers import Answer
from moe_core.evaluation.metrics import per_post
from moe_core.models.resnet import ResNet
from moe_core.settings import Training
from moe_core.stages import reading
from moe_core.stages.experts.experts import start
from moe_core.stages.experts.modes import mode_of
from moe_core.stages.experts.shared_decoder import augmented_features, refit_by_settings
from moe_core.stages.mixture.calibrate import WEIGHTS
from moe_core.stages.pilot.clusters import Cluster
from moe_core.stages.training.fit import training_threads
from moe_core.stages.training.log import TrainingLog
from moe_core.store.work import Work
from moe_core.training import loop
from moe_core.training.infer import features_of, mixed
from moe_core.training.posts import Posts
from moe_core.weights import load_weights, save_weights

Kept = tuple[dict[str, Tensor], float, int]  # tensors, seconds and images of a training


@dataclass(frozen=True)
class Measured:
    """What a network that was trained answers, and what its training took."""

    measures_WQN: np.ndarray  # by each weight of the router, of each post
    seconds: float
    images: int


@dataclass(frozen=True)
class Expert:
    """An expert that was trained: features, and what its training took."""

    validation_ND: Tensor
    training_BD: Tensor  # of its augmented posts, in their order; of none where the decoder stays the trunk's
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

    def of_expert(self, features_ND: Tensor, decoder: nn.Linear, rows_N: np.ndarray) -> np.ndarray:
        """(W, Q, N): of an expert that answers some of the posts, with each weight of the router."""
        router = Answer(self.router.features_ND[torch.from_numpy(rows_N)], self.router.layers)
        return self._measured(Answer(features_ND, [decoder]), router, self.posts.subset(rows_N), self.weights)

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

    def __init__(self, context: Context, index: reading.Index, work: Work, judge: Judge, images: float) -> None:
        """`images`: that all trainings together are to see."""
        self.context, self.index, self.work, self.judge = context, index, work, judge
        self.log = TrainingLog(work.folder / "log.jsonl", context.report)
        self.images, self.seen = images, 0

    def of_trunk(self, share: float, posts: Posts) -> Measured:
        """The trunk, trained on for this share of the epochs on all the posts."""
        training = self.context.study.expert_training
        training = training.model_copy(update={"epochs": training.epochs * share})

        def trained(file: Path) -> Kept:
            model = reading.network(self.context, self.context.need("trunk"))
            took = self._train(model, posts, training, file, train_decoder=True)
            return {"measures": torch.from_numpy(self.judge.of_one(model))}, *took

        state, seconds, images = self._once(f"on-{share:.6g}", trained)
        return Measured(state["measures"].numpy(), seconds, images)

    def of_experts(self, clusters: Sequence[Cluster], share: float) -> list[Measured]:
        """Experts of clusters of one K, each trained on this share of its posts, with the one decoder that the study
        makes for the experts of a mixture. In place of `joint` it is refitted, too."""
        rows = [np.sort(cluster.training_rows[: max(1, round(share * cluster.posts))]) for cluster in clusters]
        experts = [self._of_expert(cluster, share, rows_B) for cluster, rows_B in zip(clusters, rows, strict=True)]
        decoder = reading.last_layer(self.context.need("trunk"))
        if mode_of(self.context.study).own_layer:
            all_B = np.sort(np.concatenate(rows))
            features_BD = torch.empty(len(all_B), decoder.in_features)
            for expert, rows_B in zip(experts, rows, strict=True):
                features_BD[torch.from_numpy(np.searchsorted(all_B, rows_B))] = expert.training_BD
            refit_by_settings(self.context.study, decoder, features_BD, self._posts(all_B), self.judge.device)
        decoder.to(self.judge.device)
        return [
            Measured(
                self.judge.of_expert(expert.validation_ND, decoder, cluster.validation_rows),
                expert.seconds,
                expert.images,
            )
            for cluster, expert in zip(clusters, experts, strict=True)
        ]

    def _of_expert(self, cluster: Cluster, share: float, rows_B: np.ndarray) -> Expert:
        """An expert, trained on these posts of a cluster with the trunk's last layer held fixed."""
        study, device = self.context.study, self.judge.device

        def trained(file: Path) -> Kept:
            model, posts = start(self.context, f"e{cluster.number:03d}", own_decoder=False), self._posts(rows_B)
            took = self._train(model, posts, study.expert_training, file, train_decoder=False)
            validation = self.judge.posts.subset(cluster.validation_rows).images
            state = {"validation": features_of(model, validation, self.judge.precision, device)}
            if mode_of(study).own_layer:
                parts = augmented_features(study, model, posts.images, cluster.number, device)
                state["training"] = torch.cat([some_BD for _, some_BD in parts])
            return state, *took

        state, seconds, images = self._once(f"{cluster.name}-{share:.6g}", trained)
        return Expert(state["validation"], state.get("training", torch.empty(0)), seconds, images)

    def _posts(self, rows_B: np.ndarray) -> Posts:
        """Posts at rising places."""
        wanted_N = np.zeros(len(self.index.split_N), bool)
        wanted_N[rows_B] = True
        return reading.posts_where(self.context, self.index, wanted_N)

    def _once(self, name: str, trained: Callable[[Path], Kept]) -> Kept:
        """What is kept under the name, or else what is trained now."""
        folder = self.work.folder
        kept, checkpoint = folder / f"{name}.safetensors", folder / f"checkpoint-{name}.safetensors"
        if not kept.exists():
            state, seconds, images = trained(checkpoint)
            save_weights(kept, state | {"took": torch.tensor([seconds, images], dtype=torch.float64)}, {})
        checkpoint.unlink(missing_ok=True)
        self.work.publish()
        state, _ = load_weights(kept)
        seconds, images = state.pop("took").tolist()
        self.seen += int(images)
        return state, seconds, int(images)

    def _train(
        self, model: ResNet, posts: Posts, training: Training, checkpoint: Path, train_decoder: bool
    ) -> tuple[float, int]:
        """(seconds that the training takes, measured on what this process trained; images that it sees)."""
        training = training.model_copy(update={"epochs": training.epochs * _times(len(posts), training.batch_size)})
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


def _times(posts: int, batch_size: int) -> float:
    """Epochs for each one that is wanted: the posts beyond the last whole batch of an epoch are left out, which is
    much of a small share and nothing of the whole."""
    batch = min(batch_size, posts)
    return posts / (posts // batch * batch)
