"""shared_decoder: one last layer for all the experts, so that their features lie in one space.

`decoder.mode` names the function that sets its weights, one of those below (see modes). `random_decoder` is the same
for the experts of the random partition.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch
from torch import nn

from moe_core import threads
from moe_core.engine.context import Context
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
from moe_core.training.posts import Images
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
    study, training = context.study, context.study.expert_training
    index = reading.index(context)
    use_N = index.use("train")
    posts = reading.posts_where(context, index, use_N)
    expert_N = reading.assigned(context, group.column)[use_N]
    features_ND = torch.empty(len(posts), decoder.in_features)
    for number, key in enumerate(context.experts):
        rows = np.flatnonzero(expert_N == number)
        model = reading.embedder(context, context.need(group.stage, key))
        images = Moved(posts.images.subset(rows), moves_of((len(rows),), training, number))
        for first, some_BD in features_in_parts(model, images, training.precision, device):  # reads ahead
            features_ND[rows[first : first + len(some_BD)]] = some_BD
        context.report({"experts": number + 1})
    threads.use(threads.TRAINING * FIT_BATCH * decoder.weight.numel())  # many hashtags are more work than the networks
    refitting = study.decoder
    how = refitting.refit_epochs, refitting.refit_lr, training.loss, training.seed
    loss = refit(decoder, features_ND, posts, *how, device=device)
    return {"loss": round(loss, 4)}
