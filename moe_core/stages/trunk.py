"""trunk: one network trained on all the posts. trunk_same_budget: the control that goes on for the experts' budget."""

from pathlib import Path
from typing import Any

from moe_core.settings import Study
from moe_core.stages import reading
from moe_core.stages.context import Context, device_and_threads
from moe_core.stages.fitting import fit
from moe_core.stages.stage import Stage
from moe_core.store import Written


def training_settings(study: Study, which: str) -> Any:
    """Of a training, without what changes only how often it can be resumed."""
    return getattr(study, which).model_dump(exclude={"checkpoint_seconds"})


def _make_trunk(context: Context, key: str | None, folder: Path) -> Written:
    from moe_core.models.resnet import build

    device = device_and_threads(parallel=False, experts=context.study.partition.experts)
    index = reading.index(context)
    posts = reading.posts_where(context, index, index.use("train"))
    model = build(context.study.network, len(reading.vocabulary(context).hashtags), context.study.trunk.seed)
    return fit(context, context.plan("trunk"), folder, model, posts, context.study.trunk, device)


TRUNK = Stage(
    name="trunk",
    keys=None,
    code="1",
    reads=("posts", "vocabulary"),
    settings=lambda study: {"network": study.network.model_dump(), "training": training_settings(study, "trunk")},
    inputs=lambda context, key: {"posts": context.posts_snapshot(), "vocabulary": context.version("vocabulary")},
    make=_make_trunk,
)


def _make_same_budget(context: Context, key: str | None, folder: Path) -> Written:
    device = device_and_threads(parallel=True, experts=context.study.partition.experts)
    index = reading.index(context)
    posts = reading.posts_where(context, index, index.use("train"))
    model = reading.network(context, context.need("trunk"))
    return fit(context, context.plan("trunk_same_budget"), folder, model, posts, context.study.expert_training, device)


TRUNK_SAME_BUDGET = Stage(
    name="trunk_same_budget",
    keys=None,
    code="1",
    reads=("trunk", "posts", "vocabulary"),
    settings=lambda study: {
        "network": study.network.model_dump(),
        "training": training_settings(study, "expert_training"),
    },
    inputs=lambda context, key: {"trunk": context.version("trunk")},
    make=_make_same_budget,
    control=True,
)
