"""shared_decoder: one last layer for all the experts, so that their features lie in one space.

`frozen`: the trunk's, against which the experts were trained. `refit`: fitted once, from the trunk's, on the experts'
features of augmented training posts (those of clean ones are cleaner than the features of unseen posts). `joint`: the
one that was trained with the experts, of their generation.
`random_decoder` is the same for the experts of the random partition, so that the control lacks nothing but the gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_core import threads
from moe_core.engine.context import Context
from moe_core.engine.planner import Planner
from moe_core.engine.stage import Ref, Stage
from moe_core.settings import Study
from moe_core.stages import reading
from moe_core.stages.training.device import device_and_threads
from moe_core.store.artifact import Artifact, Spec, StageOutput
from moe_core.store.hashing import file_hash

if TYPE_CHECKING:
    from torch import nn


def _stage(name: str, experts: str, column: str, control: bool, generation: str) -> Stage:
    """`experts`: the stage whose networks share it; `column` of the assignment: which posts are whose; `generation`:
    the stage that trains it where that is done jointly."""

    def make(context: Context, key: str | None, folder: Path) -> StageOutput:
        from moe_core.weights import load_weights, save_weights

        study = context.study
        device = device_and_threads(study, parallel=control)
        artifacts = {k: context.need(experts, k) for k in context.experts}  # complete, and of one partition
        trunk = reading.network(context, context.need("trunk"))
        metadata: dict[str, object] = {"mode": study.decoder.mode, "experts": len(artifacts), "width": trunk.width}
        if study.decoder.mode == "refit":
            metadata["loss"] = round(_refit(context, artifacts, column, trunk.fc, device), 4)
        path = folder / "decoder.safetensors"
        about = {"asset": name, "version": context.version(name), "trunk": context.version("trunk")}
        if study.decoder.mode == "joint":
            joint = context.need(generation)
            decoder, _ = load_weights(joint.file("decoder.safetensors"))
            trunk.fc.load_state_dict(decoder)
            metadata["generation"] = about["generation"] = joint.version
        save_weights(path, {"weight": trunk.fc.weight, "bias": trunk.fc.bias}, about)
        return StageOutput(metadata, content={"decoder": file_hash(path)})

    def inputs(planner: Planner, key: str | None) -> dict[str, Any]:
        found = {"trunk": Ref("trunk")} | {k: Ref(experts, k) for k in planner.state.experts}
        if planner.state.study.decoder.mode == "refit":
            partition = planner.spec("partition")
            if isinstance(partition, Spec) and {"previous", "splits"} & set(partition.inputs):
                found["partition"] = Ref("partition")  # its posts are more than those of trunk and experts
        return found

    def settings(study: Study) -> Any:
        used = {"mode", "refit_epochs", "refit_lr"} if study.decoder.mode == "refit" else {"mode"}
        return study.decoder.model_dump(include=used)

    return Stage(name, None, "1", (experts, generation, "partition", "trunk"), settings, inputs, make, control)


def _refit(context: Context, artifacts: Mapping[str, Artifact], column: str, decoder: nn.Linear, device: str) -> float:
    """Fits `decoder` in place; returns the loss at the end."""
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
    expert_N = reading.assignment(context)[column].to_numpy()[use_N]
    features_ND = torch.empty(len(posts), decoder.in_features)
    for number, artifact in enumerate(artifacts.values()):
        rows = np.flatnonzero(expert_N == number)
        model = reading.network(context, artifact)
        for first in range(0, len(rows), BATCH):
            some = rows[first : first + BATCH]
            seen = augment(posts.images.read(some), training.flip, training.crop, training.seed, first)
            features_ND[some] = features_of(model, ImagesInMemory(seen), training.precision, device)
        context.report({"experts": number + 1})
    threads.use(threads.TRAINING * FIT_BATCH * decoder.weight.numel())  # many hashtags are more work than the networks
    refitting = study.decoder
    return refit(decoder, features_ND, posts, refitting.refit_epochs, refitting.refit_lr, training.loss, training.seed)


SHARED_DECODER = _stage("shared_decoder", "expert", "expert", control=False, generation="joint_experts")
RANDOM_DECODER = _stage("random_decoder", "random_expert", "random", control=True, generation="random_joint_experts")
