"""shared_decoder: one last layer for all the experts, so that their features lie in one space.

`decoder.mode` names the function that sets its weights, one of those below (see modes). `random_decoder` is the same
for the experts of the random partition.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moe_core import threads
from moe_core.engine.context import Context
from moe_core.models.resnet import ResNet
from moe_core.settings import Study
from moe_core.stages import reading
from moe_core.stages.experts.groups import RANDOM, Group, group_of
from moe_core.stages.experts.modes import mode_of
from moe_core.stages.training.device import device_and_threads
from moe_core.store.artifact import Spec, StageOutput
from moe_core.store.hashing import file_hash
from moe_core.training.infer import features_in_parts
from moe_core.training.last_layer import BATCH as FIT_BATCH
from moe_core.training.last_layer import refit
from moe_core.training.moves import Moves
from moe_core.training.order import moves_of
from moe_core.training.posts import Images, Posts
from moe_core.weights import load_weights, save_weights

Fit = Callable[[Context, nn.Linear, Group, str], dict[str, Any]]
"""Sets the weights of a last layer, which is the trunk's so far, on a device; returns what is recorded about it."""


@dataclass(frozen=True)
class Moved:
    """Images, each read with a move of its own."""

    images: Images
    moves: Moves

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows_B: np.ndarray, moves: Moves | None = None) -> np.ndarray:
        assert moves is None  # they are moved already
        return self.images.read(rows_B, self.moves[rows_B])

    def subset(self, rows_N: np.ndarray) -> Images:
        return Moved(self.images.subset(rows_N), self.moves[rows_N])

    def fetched(self, rows_N: np.ndarray) -> Images:
        return Moved(self.images.fetched(rows_N), self.moves[rows_N])


def make(context: Context, spec: Spec, folder: Path) -> StageOutput:
    study, group = context.study, group_of(spec.asset)
    device = device_and_threads(study, parallel=group is RANDOM)
    for expert in context.experts:
        context.need(group.stage, expert)  # complete, and of one partition
    trunk = reading.network(context, context.need("trunk"))
    fit: Fit = resolve_name(mode_of(study).fit)
    recorded = fit(context, trunk.fc, group, device)
    path = folder / "decoder.safetensors"
    about = {"asset": spec.asset, "version": spec.version, "trunk": context.version("trunk")}
    about |= {"generation": recorded["generation"]} if "generation" in recorded else {}
    save_weights(path, {"weight": trunk.fc.weight, "bias": trunk.fc.bias}, about)
    metadata = {"mode": study.decoder.mode, "experts": len(context.experts), "width": trunk.width}
    return StageOutput(metadata | recorded, content={"decoder": file_hash(path)})


def keep_trunks(context: Context, decoder: nn.Linear, group: Group, device: str) -> dict[str, Any]:
    """Keeps the trunk's layer, against which the experts were trained."""
    return {}


def take_generations(context: Context, decoder: nn.Linear, group: Group, device: str) -> dict[str, Any]:
    """Takes the layer that was trained with the experts, of their generation."""
    generation = context.need(group.generation)
    state, _ = load_weights(generation.file("decoder.safetensors"))
    decoder.load_state_dict(state)
    return {"generation": generation.version}


def refit_on_posts(context: Context, decoder: nn.Linear, group: Group, device: str) -> dict[str, Any]:
    """Fits the layer once, from the trunk's, on the experts' features of augmented training posts: those of clean ones
    are cleaner than the features of unseen posts."""
    index = reading.index(context)
    use_N = index.use("train")
    posts = reading.posts_where(context, index, use_N)
    expert_N = reading.assigned(context, group.column)[use_N]
    features_ND = torch.empty(len(posts), decoder.in_features)
    for number, key in enumerate(context.experts):
        rows = np.flatnonzero(expert_N == number)
        model = reading.embedder(context, context.need(group.stage, key))
        images = posts.images.subset(rows)
        for first, some_BD in augmented_features(context.study, model, images, number, device):  # reads ahead
            features_ND[rows[first : first + len(some_BD)]] = some_BD
        context.report({"experts": number + 1})
    return {"loss": round(refit_by_settings(context.study, decoder, features_ND, posts, device), 4)}


def augmented_features(
    study: Study, model: ResNet, images: Images, number: int, device: str
) -> Iterator[tuple[int, Tensor]]:
    """(place of the first, (B, D) float32 on the CPU), of images that are moved as in training, by seed and number."""
    training = study.expert_training
    moved = Moved(images, moves_of((len(images),), training, number))
    return features_in_parts(model, moved, training.precision, device)


def refit_by_settings(study: Study, decoder: nn.Linear, features_ND: Tensor, posts: Posts, device: str) -> float:
    """Fits the layer in place on features of posts, row for row; returns the mean loss of the last steps."""
    threads.use(threads.TRAINING * FIT_BATCH * decoder.weight.numel())  # many hashtags are more work than the networks
    training = study.expert_training
    how = study.decoder.refit_epochs, study.decoder.refit_lr, training.loss, training.seed
    return refit(decoder, features_ND, posts, *how, device=device)
