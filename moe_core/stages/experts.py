"""expert: one network trained on one cluster alone. random_expert and separate_expert are its controls.

`random_expert` differs in its members only, `separate_expert` in having a decoder of its own. Where the decoder is
trained jointly, experts are trained together with it (joint_experts), and each is drawn from that one generation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_core.settings import Study
from moe_core.stages import reading
from moe_core.stages.context import Context, device_and_threads
from moe_core.stages.fitting import fit
from moe_core.stages.stage import Stage
from moe_core.stages.trunk import training_settings
from moe_core.store import Written, file_digest

if TYPE_CHECKING:
    from moe_core.models.resnet import ResNet
    from moe_core.training.batches import Posts


def _stage(name: str, column: str, own_decoder: bool, control: bool, generation: str | None) -> Stage:
    """`column` of the assignment says whose posts an expert is trained on; `generation` is the stage that trains it
    where the decoder is trained jointly."""

    def joint(study: Study) -> str | None:
        return generation if study.decoder.mode == "joint" else None

    def make(context: Context, key: str | None, folder: Path) -> Written:
        assert key is not None
        study = context.study
        if stage := joint(study):
            return _draw(context, stage, name, key, folder)
        device = device_and_threads(parallel=True, experts=study.partition.experts)
        posts = training_posts(context, column, [key])[key]
        model = start(context, key, own_decoder)
        training = study.expert_training
        return fit(context, context.plan(name, key), folder, model, posts, training, device, train_decoder=own_decoder)

    def inputs(context: Context, key: str | None) -> Mapping[str, str]:
        assert key is not None
        found = {"members": members(context, column)[key], "trunk": context.version("trunk")}
        if stage := joint(context.study):
            found[stage] = context.version(stage)
        return found

    def settings(study: Study) -> Any:
        found = expert_settings(study)
        return found | {"mode": "joint"} if joint(study) else found

    shards = "expert_shard" if column == "expert" else "partition"
    reads = (shards, "trunk", generation) if generation else (shards, "trunk")
    return Stage(name, "experts", "1", reads, settings, inputs, make, control)


def training_posts(context: Context, column: str, keys: Sequence[str]) -> dict[str, Posts]:
    """Of each of these experts; the column of the assignment says whose a post is."""
    expert_N = reading.assignment(context)[column].to_numpy()
    index = reading.index(context)
    use_N = index.use("train")
    return {key: reading.posts_where(context, index, use_N & (expert_N == int(key[1:]))) for key in keys}


def start(context: Context, key: str, own_decoder: bool) -> ResNet:
    """An expert before its first step, with the trunk's decoder unless it starts from scratch with one of its own."""
    from moe_core.models.resnet import build

    study = context.study
    model = reading.network(context, context.need("trunk"))
    if study.expert.start == "scratch":
        decoder = model.fc.state_dict()
        model = build(study.network, model.fc.out_features, study.expert_training.seed + 1 + int(key[1:]))
        if not own_decoder:
            model.fc.load_state_dict(decoder)
    model.hold(study.expert.branch_at)
    return model


def members(context: Context, column: str) -> Mapping[str, str]:
    """Digest of the training posts of each expert."""
    found: Mapping[str, str] = context.need("partition").metadata["members" if column == "expert" else "random_members"]
    return found


def expert_settings(study: Study) -> dict[str, Any]:
    found = {
        "network": study.network.model_dump(),
        "training": training_settings(study, "expert_training"),
        "start": study.expert.start,
    }
    return found | ({"branch_at": study.expert.branch_at} if study.expert.branch_at else {})


def _draw(context: Context, generation: str, name: str, key: str, folder: Path) -> Written:
    """One expert of a generation, under its own name."""
    import shutil

    from moe_core.weights import load_weights, save_weights

    artefact = context.need(generation)
    state, _ = load_weights(artefact.file(f"experts/{key}.safetensors"))
    weights = folder / "weights.safetensors"
    about = {"asset": name, "key": key, "version": context.version(name, key), "generation": artefact.version}
    save_weights(weights, state, about)
    shutil.copyfile(artefact.file(f"logs/{key}.jsonl"), folder / "log.jsonl")
    return Written(
        metadata=artefact.metadata["trained"][key] | {"generation": artefact.version},
        content={"weights": file_digest(weights)},
    )


EXPERT = _stage("expert", "expert", own_decoder=False, control=False, generation="joint_experts")
RANDOM_EXPERT = _stage("random_expert", "random", own_decoder=False, control=True, generation="random_joint_experts")
SEPARATE_EXPERT = _stage("separate_expert", "expert", own_decoder=True, control=True, generation=None)
