"""What the trunk's stages depend on: the network trained on all the posts, and its features of every post."""

from typing import Any

from moe_core.engine.planner import Planner
from moe_core.engine.stage import Ref, Stage
from moe_core.stages.data.stages import hash_of_named
from moe_core.stages.trunk import frozen
from moe_core.tables.vectors import ids_in


def _trunk_inputs(planner: Planner, key: str | None) -> dict[str, Any]:
    inputs: dict[str, Any] = {name: Ref(name) for name in ("splits", "vocabulary")}
    if start := planner.state.study.trunk_setup.start:
        inputs["start"] = hash_of_named("trunk_setup.start", start, "weights, .safetensors or .pth")
    return inputs


TRUNK = Stage(
    name="trunk",
    code="1",
    reads=("posts", "splits", "vocabulary"),
    settings=lambda study: {
        "network": study.network.model_dump(),
        "trunk": study.trunk.counted(),
        "trunk_setup": {"ranks": study.trunk_setup.ranks},
        **study.data.counted_in_training(),
    },
    inputs=_trunk_inputs,
    make="moe_core.stages.trunk.trunk:make",
    description="One network trained on all the posts, with its decoder: the router, and the start of every expert.",
    trains=True,
    all_gpus=lambda study: study.trunk_setup.ranks > 1,
    ranks=lambda study: study.trunk_setup.ranks,
    frozen=True,
    resolve=frozen.resolve,
    on_commit=frozen.on_commit,
)

TRUNK_FEATURES = Stage(
    name="trunk_features",
    keys="shards",
    code="1",
    reads=("posts", "trunk"),
    settings=lambda study: {},
    inputs=lambda planner, key: {"trunk": Ref("trunk"), "posts": Ref("posts", key)},
    make="moe_core.stages.trunk.features:make",
    description="The trunk's last hidden layer for every post of a shard.",
    post_ids=lambda artifact: ids_in(artifact.folder("features.lance")),
)
