"""dense_same_cost: the control that is one wider network, as dear as the mixture at test time and in training.

A mixture's image passes the trunk and one expert. So this network may cost twice the trunk's multiply-adds, and its
training as many in all as that of the trunk and all the experts. It is trained from the start on one schedule, the
trunk's, which trunk_same_budget is not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moe_core.engine.context import Context, device_and_threads
from moe_core.engine.stage import Stage
from moe_core.settings import Network, Study, Training
from moe_core.stages import reading
from moe_core.stages.training.fit import fit
from moe_core.stages.trunk.trunk import training_settings
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
    written = fit(context, context.plan("dense_same_cost"), folder, model, posts, training, device)
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
    inputs=lambda context, key: {name: context.version(name) for name in ("splits", "vocabulary")},
    make=_make,
    control=True,
    when=lambda study: study.evaluation.dense_control,
    kept=True,
)
