"""expert: one network trained on one cluster alone. random_expert and separate_expert are its controls.

`random_expert` differs in its members only, `separate_expert` in having a decoder of its own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_core.settings import Study
from moe_core.stages import reading
from moe_core.stages.context import Context, device_and_threads
from moe_core.stages.fitting import fit
from moe_core.stages.stage import Stage
from moe_core.stages.trunk import training_settings
from moe_core.store import Written


def _stage(name: str, column: str, own_decoder: bool, control: bool) -> Stage:
    """`column` of the assignment says whose posts an expert is trained on."""

    def make(context: Context, key: str | None, folder: Path) -> Written:
        from moe_core.models.resnet import build

        assert key is not None
        study = context.study
        device = device_and_threads(parallel=True, experts=study.partition.experts)
        mine = reading.assignment(context)[column].to_numpy() == int(key[1:])
        index = reading.index(context)
        posts = reading.posts_where(context, index, index.use("train") & mine)
        model = reading.network(context, context.need("trunk"))
        if study.expert.start == "scratch":
            decoder = model.fc.state_dict()
            model = build(study.network, model.fc.out_features, study.expert_training.seed + 1 + int(key[1:]))
            if not own_decoder:
                model.fc.load_state_dict(decoder)
        model.hold(study.expert.branch_at)
        training = study.expert_training
        return fit(context, context.plan(name, key), folder, model, posts, training, device, train_decoder=own_decoder)

    def inputs(context: Context, key: str | None) -> Mapping[str, str]:
        assert key is not None
        members = context.need("partition").metadata["members" if column == "expert" else "random_members"]
        return {"members": members[key], "trunk": context.version("trunk")}

    def settings(study: Study) -> Any:
        found = {
            "network": study.network.model_dump(),
            "training": training_settings(study, "expert_training"),
            "start": study.expert.start,
        }
        return found | ({"branch_at": study.expert.branch_at} if study.expert.branch_at else {})

    reads = ("expert_shard", "trunk") if column == "expert" else ("partition", "trunk")
    return Stage(name, "experts", "1", reads, settings, inputs, make, control)


EXPERT = _stage("expert", "expert", own_decoder=False, control=False)
RANDOM_EXPERT = _stage("random_expert", "random", own_decoder=False, control=True)
SEPARATE_EXPERT = _stage("separate_expert", "expert", own_decoder=True, control=True)
