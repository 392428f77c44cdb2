"""trunk: one network trained on all the posts."""

from functools import partial
from pathlib import Path

from moe_core.engine.context import Context
from moe_core.models.resnet import ResNet, build
from moe_core.models.start import load_start
from moe_core.stages import reading
from moe_core.stages.training.device import device_and_threads
from moe_core.stages.training.fit import fit
from moe_core.stages.trunk import frozen
from moe_core.stages.trunk.ranks import device_of_ranks, train_in_ranks
from moe_core.store.artifact import Spec, StageOutput
from moe_core.training.posts import Posts


def make(context: Context, spec: Spec, folder: Path) -> StageOutput:
    study, ranks = context.study, context.study.trunk_setup.ranks
    device = device_and_threads(study, parallel=False)
    model, posts = trunk_start(context)
    train = partial(train_in_ranks, context, ranks) if ranks > 1 else None
    output = fit(context, spec, folder, model, posts, study.trunk, device, train=train, ranks=ranks)
    pointer = frozen.pointer_file(context.planner.graph, study, context.root, "trunk").name
    metadata = dict(output.metadata) | {"pointer": pointer}
    if ranks > 1:
        metadata["device"] = device_of_ranks(context.store.work_folder(spec))
    return StageOutput(metadata, output.content)


def trunk_start(context: Context) -> tuple[ResNet, Posts]:
    """The network before its first step, and the posts it is trained on."""
    context = context.frozen
    posts = reading.training_posts(context)
    model = build(context.study.network, len(reading.vocabulary(context).hashtags), context.study.trunk.seed)
    if start := context.study.trunk_setup.start:
        load_start(model, Path(start))
    return model, posts
