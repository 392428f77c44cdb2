"""What the pilot depends on: the trunk, its features, and the settings of gate and experts, but not their number."""

from typing import Any

from moe_core.engine.planner import Planner
from moe_core.engine.stage import Ref, Stage
from moe_core.settings import Study


def _settings(study: Study) -> dict[str, Any]:
    return {
        "pilot": study.pilot.model_dump(mode="json"),
        "network": study.network.model_dump(),
        "expert_training": study.expert_training.counted(),
        "expert": study.expert.model_dump(include={"start", "branch_at", "router_weight"}),
        "publish": study.publish.model_dump(include={"measure"}),
        "decoder": study.decoder.model_dump(include={"mode", "refit_epochs", "refit_lr"}),
        "partition": study.partition.model_dump(exclude={"experts"}),
        **study.data.counted_in_training(),
    }


def _inputs(planner: Planner, key: str | None) -> dict[str, Ref]:
    features = {f"features {shard.key}": Ref("trunk_features", shard.key) for shard in planner.state.shards}
    return features | {name: Ref(name) for name in ("trunk", "splits", "vocabulary")}


PILOT = Stage(
    name="pilot",
    code="3",
    reads=("trunk_features", "trunk", "splits", "vocabulary", "posts"),
    settings=_settings,
    inputs=_inputs,
    make="moe_core.stages.pilot.pilot:make",
    description="What a mixture would gain over training the trunk on, with an interval, for several numbers of "
    "experts: by a few experts trained on samples. Made on request: `hardmoe pilot`, or by materializing it here.",
    on_request=True,
    trains=True,
    frozen=True,  # the posts that the trunk was trained on
)
