"""trunk: one network trained on all the posts."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_core.engine.context import Context
from moe_core.engine.planner import Planner
from moe_core.engine.stage import Ref, Stage
from moe_core.errors import MissingInput
from moe_core.settings import Study
from moe_core.stages import reading
from moe_core.stages.training.device import device_and_threads
from moe_core.stages.training.fit import fit
from moe_core.stages.training.settings import training_settings
from moe_core.stages.trunk import frozen
from moe_core.stages.trunk.ranks import train_in_ranks
from moe_core.store.artifact import StageOutput
from moe_core.store.hashing import file_hash
from moe_core.store.layout import Layout

if TYPE_CHECKING:
    from moe_core.models.resnet import ResNet
    from moe_core.training.batches import Posts


def trunk_start(context: Context) -> tuple[ResNet, Posts]:
    """The network before its first step, and the posts it is trained on."""
    from moe_core.models.resnet import build
    from moe_core.models.start import load_start

    context = context.frozen
    index = reading.index(context)
    posts = reading.posts_where(context, index, index.use("train"))
    model = build(context.study.network, len(reading.vocabulary(context).hashtags), context.study.trunk.seed)
    if context.study.trunk_setup.start:
        load_start(model, _start_file(context.study, context.root))
    return model, posts


def _make(context: Context, key: str | None, folder: Path) -> StageOutput:
    study, ranks = context.study, context.study.trunk_setup.ranks
    device = device_and_threads(study, parallel=False)
    model, posts = trunk_start(context)
    train = partial(train_in_ranks, context, ranks) if ranks > 1 else None
    output = fit(context, context.spec("trunk"), folder, model, posts, study.trunk, device, train=train, ranks=ranks)
    pointer = frozen.pointer_file(context.planner.graph, study, context.root, "trunk").name
    return StageOutput(dict(output.metadata) | {"pointer": pointer}, output.content)


def _start_file(study: Study, root: Path) -> Path:
    return Layout(root).named(study.trunk_setup.start)


def _inputs(planner: Planner, key: str | None) -> dict[str, Any]:
    inputs: dict[str, Any] = {name: Ref(name) for name in ("splits", "vocabulary")}
    if not planner.state.study.trunk_setup.start:
        return inputs
    start = _start_file(planner.state.study, planner.store.root)
    if not start.is_file():
        raise MissingInput(f"trunk_setup.start: no file {start}: wanted weights, .safetensors or .pth")
    return inputs | {"start": file_hash(start)}


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
    make=_make,
    trains=True,
    all_gpus=lambda study: study.trunk_setup.ranks > 1,
    frozen=True,
    resolve=frozen.resolve,
    on_commit=frozen.on_commit,
)
