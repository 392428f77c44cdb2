"""expert: one network trained on one cluster alone. random_expert and separate_expert are its controls.

`random_expert` differs in its members only, `separate_expert` in having a decoder of its own. Where the decoder is
trained jointly, experts are trained together with it (joint_experts), and each is drawn from that one generation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_core.engine.context import Context
from moe_core.engine.planner import Planner
from moe_core.engine.stage import Recorded, Ref, Stage
from moe_core.errors import MissingInput
from moe_core.settings import Study
from moe_core.stages import reading
from moe_core.stages.experts.decoder import mode_of
from moe_core.stages.gate import membership
from moe_core.stages.training.device import device_and_threads
from moe_core.stages.training.fit import fit
from moe_core.stages.training.settings import training_settings
from moe_core.store.artifact import Artifact, Spec, StageOutput
from moe_core.store.hashing import file_hash

if TYPE_CHECKING:
    from moe_core.models.resnet import ResNet
    from moe_core.training.batches import Posts

MEMBERS = {"expert": "members", "random": "random_members"}  # column of the assignment -> metadata of the partition


def _stage(name: str, column: str, own_decoder: bool, generation: str | None, control: str = "") -> Stage:
    """`column` of the assignment says whose posts an expert is trained on; `generation` is the stage that trains it
    where the decoder is trained jointly; `control` describes a control."""

    def joint(study: Study) -> str | None:
        return generation if mode_of(study).joint else None

    def make(context: Context, key: str | None, folder: Path) -> StageOutput:
        assert key is not None
        study = context.study
        if stage := joint(study):
            return _draw(context, stage, name, key, folder)
        device = device_and_threads(study, parallel=True)
        posts = training_posts(context, column, [key])[key]
        spec, training = context.spec(name, key), study.expert_training
        before = _before(context, spec)
        model = start(context, key, own_decoder, before)
        done = fit(context, spec, folder, model, posts, training, device, train_decoder=own_decoder)
        if before is None:
            return done
        said = {"continued_from": before.version, "images_before": images_of(before)}
        return StageOutput(dict(done.metadata) | said, done.content)

    def inputs(planner: Planner, key: str | None) -> dict[str, Any]:
        found = {"members": Recorded("partition", lambda a: a.metadata[MEMBERS[column]][key]), "trunk": Ref("trunk")}
        return found | ({stage: Ref(stage)} if (stage := joint(planner.state.study)) else {})

    def resolve(planner: Planner, spec: Spec) -> Spec:
        return spec if joint(planner.state.study) else continued(planner, spec, column)

    def settings(study: Study) -> Any:
        found = expert_settings(study)
        return found | {"mode": "joint"} if joint(study) else found

    shards = f"{column}_shard"
    reads = (shards, "trunk", generation) if generation else (shards, "trunk")
    return Stage(
        name,
        "experts",
        "1",
        reads,
        settings,
        inputs,
        make,
        control=bool(control),
        description=control,
        trains=True,
        resolve=resolve,
    )


def training_posts(context: Context, column: str, keys: Sequence[str]) -> dict[str, Posts]:
    """Of each of these experts, as its digest names them; the column of the assignment says whose a post is.

    Raises ValueError where a kept expert is to be trained again on posts of which some are gone.
    """
    rows = reading.assignment(context)
    index = reading.index(context)
    use_N, expert_N = index.use("train"), rows[column].to_numpy()
    trained = reading.trained(context)
    if trained is None:
        number = {key: k for k, key in enumerate(context.experts)}
        return {key: reading.posts_where(context, index, use_N & (expert_N == number[key])) for key in keys}
    found, digests, lines = {}, members(context, column), membership.lines(context, rows, index)
    for key in keys:
        mine_N = np.zeros(len(use_N), bool)
        mine_N[membership.rows_of(trained, column, key, lines, digests[key])] = True
        found[key] = reading.posts_where(context, index, mine_N)
    return found


def continued(planner: Planner, spec: Spec, column: str) -> Spec:
    """With the input "from", the version of the expert whose weights it continues from, where there is one.

    An expert goes on from the last one of its lineage that was trained with the same settings and trunk, as long as the
    store has it. Which one that was stays an input of what was made: it is found again when the older is gone.
    """
    lineage = planner.recorded("partition").metadata.get("lineage", {}).get(column, {}).get(spec.key, [])
    if len(lineage) < 2:
        return spec
    trained: dict[str, list[Artifact]] = {}
    for artifact in planner.store.versions(spec.asset, spec.key):
        same = replace(spec, inputs=artifact.inputs)
        if artifact.inputs.get("trunk") == spec.inputs["trunk"] and same.version == artifact.version:
            trained.setdefault(artifact.inputs["members"], []).append(artifact)
    for artifact in trained.get(lineage[-1], []):
        return artifact.spec
    if planner.state.study.repartition.start == "usual":
        return spec
    for older_members in reversed(lineage[:-1]):
        for older in trained.get(older_members, []):
            return replace(spec, inputs={**spec.inputs, "from": older.version})
    return spec


def _before(context: Context, spec: Spec) -> Artifact | None:
    """The expert that it goes on from. Raises ValueError where that is gone."""
    if "from" not in spec.inputs:
        return None
    found = context.store.get(spec.asset, spec.key, spec.inputs["from"])
    if found is None:
        raise MissingInput(
            f"{spec.name}: the weights that it continues from ({spec.inputs['from']}) are gone: run again, and it "
            "starts as a new expert does"
        )
    return found


def images_of(artifact: Artifact) -> int:
    """Images that an expert was trained on in its life."""
    found: int = artifact.metadata["training_images"] + artifact.metadata.get("images_before", 0)
    return found


def start(context: Context, key: str, own_decoder: bool, before: Artifact | None = None) -> ResNet:
    """An expert before its first step: as `before` ended, or with the trunk's decoder unless it starts from scratch
    with one of its own."""
    from moe_core.models.resnet import build

    study = context.study
    if before is not None:
        model = reading.network(context, before)
        model.freeze_stages(study.expert.branch_at)
        return model
    model = reading.network(context, context.need("trunk"))
    if study.expert.start == "scratch":
        decoder = model.fc.state_dict()
        model = build(study.network, model.fc.out_features, study.expert_training.seed + 1 + int(key[1:]))
        if not own_decoder:
            model.fc.load_state_dict(decoder)
    model.freeze_stages(study.expert.branch_at)
    return model


def members(context: Context, column: str) -> Mapping[str, str]:
    """Hash of the training posts of each expert."""
    found: Mapping[str, str] = context.need("partition").metadata[MEMBERS[column]]
    return found


def expert_settings(study: Study) -> dict[str, Any]:
    found = {
        "network": study.network.model_dump(),
        "training": training_settings(study, "expert_training"),
        "start": study.expert.start,
    }
    return found | ({"branch_at": study.expert.branch_at} if study.expert.branch_at else {})


def _draw(context: Context, generation: str, name: str, key: str, folder: Path) -> StageOutput:
    """One expert of a generation, under its own name."""
    import shutil

    from moe_core.weights import load_weights, save_weights

    artifact = context.need(generation)
    state, _ = load_weights(artifact.file(f"experts/{key}.safetensors"))
    weights = folder / "weights.safetensors"
    about = {"asset": name, "key": key, "version": context.version(name, key), "generation": artifact.version}
    save_weights(weights, state, about)
    shutil.copyfile(artifact.file(f"logs/{key}.jsonl"), folder / "log.jsonl")
    return StageOutput(
        metadata=artifact.metadata["trained"][key] | {"generation": artifact.version},
        content={"weights": file_hash(weights)},
    )


EXPERT = _stage("expert", "expert", own_decoder=False, generation="joint_experts")
RANDOM_EXPERT = _stage(
    "random_expert",
    "random",
    own_decoder=False,
    generation="random_joint_experts",
    control="an expert of a random partition of the same sizes; all else as for `expert`",
)
SEPARATE_EXPERT = _stage(
    "separate_expert",
    "expert",
    own_decoder=True,
    generation=None,
    control="an expert with a decoder of its own; all else as for `expert`",
)
