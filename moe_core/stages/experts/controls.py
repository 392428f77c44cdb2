"""Controls that are one network: trunk_same_budget, the trunk trained on for the experts' budget, and dense_same_cost.

dense_same_cost is one wider network, as dear as the mixture at test time and in training.

A mixture's image passes the trunk and one expert. So this network may cost twice the trunk's multiply-adds, and its
training as many in all as that of the trunk and all the experts. It is trained from the start on one schedule, the
trunk's, which trunk_same_budget is not.
"""

from pathlib import Path

from moe_core.engine.context import Context
from moe_core.models.cost import multiply_adds, parameters
from moe_core.models.resnet import build, build_on_meta
from moe_core.settings import Network, Study, Training
from moe_core.stages import reading
from moe_core.stages.training.device import device_and_threads
from moe_core.stages.training.fit import fit
from moe_core.store.artifact import Spec, StageOutput

HALVINGS = 20  # of the interval of factors: finer than a channel in half a million


def widened(network: Network, hashtags: int, image_size: int, times: float) -> Network:
    """The network with all widths scaled by one factor, the largest with at most `times` its multiply-adds.

    Widths are rounded to whole channels. The embedding, the stem of "imagenet" and the last layer stay as they are: it
    is the body that grows, and what is decoded has the width of the trunk's features.
    """

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


def make_dense_same_cost(context: Context, spec: Spec, folder: Path) -> StageOutput:
    study = context.study
    device = device_and_threads(study, parallel=True)
    posts = reading.training_posts(context)
    hashtags, size = len(reading.vocabulary(context).hashtags), study.data.image_size
    network = widened(study.network, hashtags, size, times=2)
    model = build(network, hashtags, study.trunk.seed)
    costs = {"parameters": parameters(model), "multiply_adds": multiply_adds(model, size)}
    training = training_of(study, costs["multiply_adds"] / multiply_adds(build_on_meta(study.network, hashtags), size))
    written = fit(context, spec, folder, model, posts, training, device)
    shape = {"network": network.model_dump(mode="json"), "epochs": round(training.epochs, 3)}
    return StageOutput(dict(written.metadata) | costs | shape, written.content)


def make_trunk_same_budget(context: Context, spec: Spec, folder: Path) -> StageOutput:
    device = device_and_threads(context.study, parallel=True)
    posts = reading.training_posts(context)
    model = reading.network(context, context.need("trunk"))
    return fit(context, spec, folder, model, posts, context.study.expert_training, device)
