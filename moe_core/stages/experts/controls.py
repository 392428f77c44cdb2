"""Controls that are one network: trunk_same_budget, the trunk trained on for the experts' budget, and dense_same_cost.

dense_same_cost is one wider network, as dear as the mixture at test time and in training.

A mixture's image passes the trunk and one expert. So this network may cost twice the trunk's multiply-adds, and its
training as many in all as that of the trunk and all the experts. It is trained from the start on one schedule, the
trunk's, which trunk_same_budget is not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moe_core.engine.context import Context
from moe_core.engine.stage import Ref, Stage
from moe_core.settings import Network, Study, Training
from moe_core.stages import reading
from moe_core.stages.training.device import device_and_threads
from moe_core.stages.training.fit import fit
from moe_core.stages.training.settings import training_settings
from moe_core.store.artifact import StageOutput

HALVINGS = 20  # of the interval of factors: finer than a channel in half a million


def widened(network: Network, hashtags: int, image_size: int, times: float) -> Network:
    """The network with all widths scaled by one factor, the largest with at most `times` its multiply-adds.

    Widths are rounded to whole channels. The embedding, the stem of "imagenet" and the last layer stay as they are: it
    is the body that grows, and what is decoded has the width of the trunk's features.
    """
    from moe_core.models.cost import multiply_adds
    from moe_core.models.resnet import build_on_meta

    def scaled(factor: float) -> Network:
        return network.model_copy(update={"widths": tuple(max(1, round(factor * width)) for width in network.widths)})

    def cost(factor: float) -> int:
        return multiply_adds(build_on_meta(scaled(factor), hashtags), image_size)

    budget, low, high = times * cost(1), 1.0, 2.0
    while cost(high) <= budget:
        low, high = high, 2 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle)
    return scaled(low)


def training_of(study: Study, times: float) -> Training:
    """The trunk's, for as many multiply-adds as trunk and experts take, of a network that costs `times` the trunk's."""
    epochs = (study.trunk.epochs + study.expert_training.epochs) / times
    together = study.trunk.accumulate * study.trunk_setup.ranks  # the trunk's ranks share a step, here one does all
    return study.trunk.model_copy(update={"epochs": epochs, "accumulate": together})


def _make(context: Context, key: str | None, folder: Path) -> StageOutput:
    from moe_core.models.cost import multiply_adds, parameters
    from moe_core.models.resnet import build

    study = context.study
    device = device_and_threads(study, parallel=True)
    index = reading.index(context)
    posts = reading.posts_where(context, index, index.use("train"))
    hashtags, size = len(reading.vocabulary(context).hashtags), study.data.image_size
    network = widened(study.network, hashtags, size, times=2)
    model = build(network, hashtags, study.trunk.seed)
    costs = {"parameters": parameters(model), "multiply_adds": multiply_adds(model, size)}
    training = training_of(study, costs["multiply_adds"] / multiply_adds(build(study.network, hashtags, 0), size))
    written = fit(context, context.spec("dense_same_cost"), folder, model, posts, training, device)
    said = {"network": network.model_dump(mode="json"), "epochs": round(training.epochs, 3)}
    return StageOutput(dict(written.metadata) | costs | said, written.content)


def _settings(study: Study) -> dict[str, Any]:
    return {
        "network": study.network.model_dump(),
        "training": training_settings(study, "trunk"),
        "ranks": study.trunk_setup.ranks,
        "expert_epochs": study.expert_training.epochs,
        "image_size": study.data.image_size,
    }


DENSE_SAME_COST = Stage(
    name="dense_same_cost",
    keys=None,
    code="1",
    reads=("posts", "splits", "vocabulary"),
    settings=_settings,
    inputs=lambda planner, key: {name: Ref(name) for name in ("splits", "vocabulary")},
    make=_make,
    control=True,
    description="one wider network that costs an image and in training what the mixture costs",
    when=lambda study: study.evaluation.dense_control,
    frozen=True,
    trains=True,
)


def _make_same_budget(context: Context, key: str | None, folder: Path) -> StageOutput:
    device = device_and_threads(context.study, parallel=True)
    index = reading.index(context)
    posts = reading.posts_where(context, index, index.use("train"))
    model = reading.network(context, context.need("trunk"))
    return fit(context, context.spec("trunk_same_budget"), folder, model, posts, context.study.expert_training, device)


TRUNK_SAME_BUDGET = Stage(
    name="trunk_same_budget",
    keys=None,
    code="1",
    reads=("trunk", "posts", "splits", "vocabulary"),
    settings=lambda study: {
        "network": study.network.model_dump(),
        "training": training_settings(study, "expert_training"),
    },
    inputs=lambda planner, key: {"trunk": Ref("trunk")},
    make=_make_same_budget,
    control=True,
    description="the trunk trained on for as many images as all the experts together",
    trains=True,
    frozen=True,
)
