"""What the experts' stages depend on: the experts, the decoder that they share, and the controls.

`random_expert` differs from `expert` in its members only, `separate_expert` in having a decoder of its own. Where the
decoder is trained jointly, experts are trained together with it (`joint_experts`), and each is extracted from that one
generation. The experts of the random partition have a decoder and generation too, so that they lack nothing but the
gate.
"""

from dataclasses import replace
from typing import Any

from moe_core.engine.planner import Planner
from moe_core.engine.stage import Recorded, Ref, Stage
from moe_core.settings import Study
from moe_core.stages.experts.groups import CLUSTERED, MEMBERS, RANDOM, Group
from moe_core.stages.experts.modes import mode_of
from moe_core.store.artifact import Artifact, Spec


def _expert_settings(study: Study) -> dict[str, Any]:
    return {
        "network": study.network.model_dump(),
        "expert_training": study.expert_training.counted(),
        "expert": study.expert.model_dump(include={"start", "branch_at"}),
        **study.data.counted_in_training(),
    }


def _expert(
    name: str, column: str, generation: str | None, description: str, make: str = "make", control: bool = False
) -> Stage:
    """`generation` is the stage that trains it where the decoder is trained jointly."""

    def joint(study: Study) -> str | None:
        return generation if mode_of(study).joint else None

    def inputs(planner: Planner, key: str | None) -> dict[str, Any]:
        found = {"members": Recorded("partition", lambda a: a.metadata[MEMBERS[column]][key]), "trunk": Ref("trunk")}
        return found | ({stage: Ref(stage)} if (stage := joint(planner.state.study)) else {})

    def resolve(planner: Planner, spec: Spec) -> Spec:
        return spec if joint(planner.state.study) else continued(planner, spec, column)

    def settings(study: Study) -> Any:
        return _expert_settings(study) | ({"decoder": {"mode": "joint"}} if joint(study) else {})

    return Stage(
        name=name,
        keys="experts",
        code="1",
        reads=(f"{column}_shard", "trunk", *([generation] if generation else [])),
        settings=settings,
        inputs=inputs,
        make=f"moe_core.stages.experts.experts:{make}",
        description=description,
        control=control,
        trains=True,
        resolve=resolve,
    )


def continued(planner: Planner, spec: Spec, column: str) -> Spec:
    """With the input "from", the version of the expert whose weights it continues from, where there is one.

    An expert continues from the last one of its lineage that was trained with the same settings and trunk, as long as
    the store has it. Which one that was stays an input of what was made: it is found again when the older is gone.
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


def _generation(group: Group, description: str, control: bool = False) -> Stage:
    def inputs(planner: Planner, key: str | None) -> dict[str, Any]:
        def hash_of(expert: str) -> Recorded:
            return Recorded("partition", lambda a: a.metadata[MEMBERS[group.column]][expert])

        return {"trunk": Ref("trunk")} | {expert: hash_of(expert) for expert in planner.state.experts}

    def settings(study: Study) -> Any:
        used = {"rounds", "settle_rounds", "outer_lr", "outer_momentum"}
        return _expert_settings(study) | {"decoder": study.decoder.model_dump(include=used)}

    return Stage(
        name=group.generation,
        code="1",
        reads=("partition", "trunk"),
        settings=settings,
        inputs=inputs,
        make="moe_core.stages.experts.joint:make",
        description=description,
        control=control,
        when=lambda study: mode_of(study).joint,
        trains=True,
        all_gpus=lambda study: True,
    )


def _decoder(group: Group, description: str, control: bool = False) -> Stage:
    def inputs(planner: Planner, key: str | None) -> dict[str, Any]:
        found = {"trunk": Ref("trunk")} | {k: Ref(group.stage, k) for k in planner.state.experts}
        if mode_of(planner.state.study).reads_posts:
            partition = planner.spec("partition")
            if isinstance(partition, Spec) and {"previous", "splits"} & set(partition.inputs):
                found["partition"] = Ref("partition")  # its posts are more than those of trunk and experts
        return found

    return Stage(
        name=group.decoder,
        code="1",
        reads=(group.stage, group.generation, "partition", "trunk"),
        settings=lambda study: {"decoder": study.decoder.model_dump(include={"mode", *mode_of(study).settings})},
        inputs=inputs,
        make="moe_core.stages.experts.shared_decoder:make",
        description=description,
        control=control,
    )


def _dense_settings(study: Study) -> dict[str, Any]:
    return {
        "network": study.network.model_dump(),
        "trunk": study.trunk.counted(),
        "trunk_setup": {"ranks": study.trunk_setup.ranks},
        "expert_training": {"epochs": study.expert_training.epochs},
        "data": {"image_size": study.data.image_size} | study.data.counted_in_training().get("data", {}),
    }


STAGES = (
    _generation(
        CLUSTERED,
        "All the experts and their one decoder, trained together: one generation. `expert` is extracted from it.",
    ),
    _generation(
        RANDOM,
        "Control: the experts of the random partition and their decoder, trained together as `joint_experts` are.",
        control=True,
    ),
    _expert(
        "expert",
        "expert",
        CLUSTERED.generation,
        "One network trained on one cluster alone, against the trunk's decoder held fixed or one trained jointly.",
    ),
    _expert(
        "random_expert",
        "random",
        RANDOM.generation,
        "Control: an expert of a random partition of the same sizes; all else as for `expert`.",
        control=True,
    ),
    _expert(
        "separate_expert",
        "expert",
        None,
        "Control: an expert with a decoder of its own; all else as for `expert`.",
        make="make_separate",
        control=True,
    ),
    Stage(
        name="trunk_same_budget",
        code="1",
        reads=("trunk", "posts", "splits", "vocabulary"),
        settings=lambda study: {
            "network": study.network.model_dump(),
            "expert_training": study.expert_training.counted(),
            **study.data.counted_in_training(),
        },
        inputs=lambda planner, key: {"trunk": Ref("trunk")},
        make="moe_core.stages.experts.controls:make_trunk_same_budget",
        description="Control: the trunk trained on for as many images as all the experts together.",
        control=True,
        trains=True,
        frozen=True,
    ),
    Stage(
        name="dense_same_cost",
        code="1",
        reads=("posts", "splits", "vocabulary"),
        settings=_dense_settings,
        inputs=lambda planner, key: {name: Ref(name) for name in ("splits", "vocabulary")},
        make="moe_core.stages.experts.controls:make_dense_same_cost",
        description="Control: one wider network that costs an image and in training what the mixture costs.",
        control=True,
        when=lambda study: study.evaluation.dense_control,
        frozen=True,
        trains=True,
    ),
    _decoder(
        CLUSTERED,
        "One last layer for all the experts: one embedding space. Needs every expert of the current partition.",
    ),
    _decoder(
        RANDOM,
        "Control: the shared decoder of the random partition's experts, built as `shared_decoder` is.",
        control=True,
    ),
)
