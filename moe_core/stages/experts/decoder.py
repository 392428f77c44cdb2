"""shared_decoder: one last layer for all the experts, so that their features lie in one space.

`decoder.mode` decides how its weights come about; MODES has all that depends on it. `random_decoder` is the same for
the experts of the random partition, so that the control lacks nothing but the gate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_core import threads
from moe_core.engine.context import Context
from moe_core.engine.planner import Planner
from moe_core.engine.stage import Ref, Stage
from moe_core.settings import Study
from moe_core.stages import reading
from moe_core.stages.training.device import device_and_threads
from moe_core.store.artifact import Spec, StageOutput
from moe_core.store.hashing import file_hash

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Sharing:
    """The experts that share a decoder."""

    stage: str  # that trains them
    column: str  # of the assignment, which says whose a post is
    generation: str  # the stage that trains them together with their decoder, in a joint mode


Fit = Callable[[Context, "nn.Linear", Sharing, str], dict[str, Any]]
"""Sets the weights of a last layer, which is the trunk's so far, on a device; returns what is recorded about it."""


@dataclass(frozen=True)
class Mode:
    """A value of `decoder.mode`: a mode is added there and in MODES."""

    fit: Fit
    settings: tuple[str, ...] = ()  # of [decoder] that change the weights
    reads_posts: bool = False  # weights depend on the training posts, beside trunk and experts
    joint: bool = False  # experts are trained together with it, all of a generation at once
    own_layer: bool = True  # it is another layer than the trunk's


def mode_of(study: Study) -> Mode:
    """The decoder mode of a study."""
    return MODES[study.decoder.mode]


def _stage(name: str, sharing: Sharing, control: str = "") -> Stage:
    """`control` describes a control."""

    def make(context: Context, key: str | None, folder: Path) -> StageOutput:
        from moe_core.weights import save_weights

        study = context.study
        device = device_and_threads(study, parallel=bool(control))
        for expert in context.experts:
            context.need(sharing.stage, expert)  # complete, and of one partition
        trunk = reading.network(context, context.need("trunk"))
        recorded = mode_of(study).fit(context, trunk.fc, sharing, device)
        path = folder / "decoder.safetensors"
        about = {"asset": name, "version": context.version(name), "trunk": context.version("trunk")}
        about |= {"generation": recorded["generation"]} if "generation" in recorded else {}
        save_weights(path, {"weight": trunk.fc.weight, "bias": trunk.fc.bias}, about)
        metadata = {"mode": study.decoder.mode, "experts": len(context.experts), "width": trunk.width}
        return StageOutput(metadata | recorded, content={"decoder": file_hash(path)})

    def inputs(planner: Planner, key: str | None) -> dict[str, Any]:
        found = {"trunk": Ref("trunk")} | {k: Ref(sharing.stage, k) for k in planner.state.experts}
        if mode_of(planner.state.study).reads_posts:
            partition = planner.spec("partition")
            if isinstance(partition, Spec) and {"previous", "splits"} & set(partition.inputs):
                found["partition"] = Ref("partition")  # its posts are more than those of trunk and experts
        return found

    def settings(study: Study) -> Any:
        return study.decoder.model_dump(include={"mode", *mode_of(study).settings})

    reads = (sharing.stage, sharing.generation, "partition", "trunk")
    return Stage(name, None, "1", reads, settings, inputs, make, control=bool(control), description=control)


def _trunks(context: Context, decoder: nn.Linear, sharing: Sharing, device: str) -> dict[str, Any]:
    """Keeps the trunk's layer, against which the experts were trained."""
    return {}


def _generations(context: Context, decoder: nn.Linear, sharing: Sharing, device: str) -> dict[str, Any]:
    """Takes the layer that was trained with the experts, of their generation."""
    from moe_core.weights import load_weights

    generation = context.need(sharing.generation)
    state, _ = load_weights(generation.file("decoder.safetensors"))
    decoder.load_state_dict(state)
    return {"generation": generation.version}


def _refit(context: Context, decoder: nn.Linear, sharing: Sharing, device: str) -> dict[str, Any]:
    """Fits the layer once, from the trunk's, on the experts' features of augmented training posts: those of clean ones
    are cleaner than the features of unseen posts."""
    import numpy as np
    import torch

    from moe_core.training.batches import ImagesInMemory, augment
    from moe_core.training.decoder import BATCH as FIT_BATCH
    from moe_core.training.decoder import refit
    from moe_core.training.infer import BATCH, features_of

    study, training = context.study, context.study.expert_training
    index = reading.index(context)
    use_N = index.use("train")
    posts = reading.posts_where(context, index, use_N)
    expert_N = reading.assignment(context)[sharing.column].to_numpy()[use_N]
    features_ND = torch.empty(len(posts), decoder.in_features)
    for number, key in enumerate(context.experts):
        rows = np.flatnonzero(expert_N == number)
        model = reading.network(context, context.need(sharing.stage, key))
        for first in range(0, len(rows), BATCH):
            some = rows[first : first + BATCH]
            seen = augment(posts.images.read(some), training.flip, training.crop, training.seed, first)
            features_ND[some] = features_of(model, ImagesInMemory(seen), training.precision, device)
        context.report({"experts": number + 1})
    threads.use(threads.TRAINING * FIT_BATCH * decoder.weight.numel())  # many hashtags are more work than the networks
    refitting = study.decoder
    loss = refit(decoder, features_ND, posts, refitting.refit_epochs, refitting.refit_lr, training.loss, training.seed)
    return {"loss": round(loss, 4)}


MODES = {
    "frozen": Mode(_trunks, own_layer=False),
    "refit": Mode(_refit, settings=("refit_epochs", "refit_lr"), reads_posts=True),
    "joint": Mode(_generations, joint=True),
}

SHARED_DECODER = _stage("shared_decoder", Sharing("expert", "expert", "joint_experts"))
RANDOM_DECODER = _stage(
    "random_decoder",
    Sharing("random_expert", "random", "random_joint_experts"),
    control="the shared decoder of the random partition's experts, built as `shared_decoder` is",
)
