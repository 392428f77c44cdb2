"""trunk: one network trained on all the posts. trunk_same_budget: the control that goes on for the experts' budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_core.engine.context import Context, device_and_threads
from moe_core.engine.stage import Stage
from moe_core.settings import Study
from moe_core.stages import reading
from moe_core.stages.training.fit import fit
from moe_core.stages.trunk import frozen
from moe_core.store.artifact import StageOutput
from moe_core.store.hashing import file_hash

if TYPE_CHECKING:
    from moe_core.models.resnet import ResNet
    from moe_core.training.batches import Posts


def training_settings(study: Study, which: str) -> Any:
    """Of a training, without what changes only how often it can be resumed or where its images lie."""
    return getattr(study, which).model_dump(exclude={"checkpoint_seconds", "device_mib"})


def trunk_start(context: Context) -> tuple[ResNet, Posts]:
    """The network before its first step, and the posts it is trained on."""
    from moe_core.models.resnet import build
    from moe_core.models.start import load_start

    context = context.basis
    index = reading.index(context)
    posts = reading.posts_where(context, index, index.use("train"))
    model = build(context.study.network, len(reading.vocabulary(context).hashtags), context.study.trunk.seed)
    if context.study.trunk_setup.start:
        load_start(model, _start_file(context))
    return model, posts


def _make_trunk(context: Context, key: str | None, folder: Path) -> StageOutput:
    ranks = context.study.trunk_setup.ranks
    device = device_and_threads(context.study, parallel=False)
    model, posts = trunk_start(context)
    return fit(context, context.plan("trunk"), folder, model, posts, context.study.trunk, device, ranks=ranks)


def _start_file(context: Context) -> Path:
    return context.root / context.study.trunk_setup.start


def _inputs(context: Context, key: str | None) -> dict[str, str]:
    found = {name: context.version(name) for name in ("splits", "vocabulary")}
    if not context.study.trunk_setup.start:
        return found
    if not _start_file(context).is_file():
        raise ValueError(f"trunk_setup.start: no file {_start_file(context)}: wanted weights, .safetensors or .pth")
    return found | {"start": file_hash(_start_file(context))}


TRUNK = Stage(
    name="trunk",
    keys=None,
    code="1",
    reads=("posts", "splits", "vocabulary"),
    settings=lambda study: {
        "network": study.network.model_dump(),
        "training": training_settings(study, "trunk"),
        "ranks": study.trunk_setup.ranks,
    },
    inputs=_inputs,
    make=_make_trunk,
    kept=True,
    settle=frozen.settle,
)


def _make_same_budget(context: Context, key: str | None, folder: Path) -> StageOutput:
    device = device_and_threads(context.study, parallel=True)
    index = reading.index(context)
    posts = reading.posts_where(context, index, index.use("train"))
    model = reading.network(context, context.need("trunk"))
    return fit(context, context.plan("trunk_same_budget"), folder, model, posts, context.study.expert_training, device)


TRUNK_SAME_BUDGET = Stage(
    name="trunk_same_budget",
    keys=None,
    code="1",
    reads=("trunk", "posts", "splits", "vocabulary"),
    settings=lambda study: {
        "network": study.network.model_dump(),
        "training": training_settings(study, "expert_training"),
    },
    inputs=lambda context, key: {"trunk": context.version("trunk")},
    make=_make_same_budget,
    control=True,
    kept=True,
)
