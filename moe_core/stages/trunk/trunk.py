"""trunk: one network trained on all the posts."""

from collections.abc import Iterator
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
from moe_core.training.loop import Measurement
from moe_core.training.posts import Posts


def make(context: Context, spec: Spec, folder: Path) -> StageOutput:
    study, ranks = context.study, context.study.trunk_setup.ranks
    device = device_and_threads(study, parallel=False)
    model, posts = trunk_start(context)
    devices: list[str] = []  # of the first rank: this process may have no GPU

    def train(model: ResNet, checkpoint: Path) -> Iterator[Measurement]:
        yield from train_in_ranks(context, ranks, model, checkpoint)
        devices.append(device_of_ranks(checkpoint.parent))

    in_ranks = train if ranks > 1 else None
    output = fit(context, spec, folder, model, posts, study.trunk, device, train=in_ranks, ranks=ranks)
    metadata = dict(output.metadata)
    metadata["pointer"] = frozen.pointer_name(context.planner.graph, study, "trunk").name
    if ranks > 1:
        (metadata["device"],) = devices
    return StageOutput(metadata, output.content)


def trunk_start(context: Context) -> tuple[ResNet, Posts]:
    """The network before its first step, and the posts it is trained on."""
    context = context.frozen
    posts = reading.training_posts(context)
    model = build(context.study.network, len(reading.vocabulary(context).hashtags), context.study.trunk.seed)
    if start := context.study.trunk_setup.start:
        load_start(model, Path(start))
    return model, posts
