"""What each row of the table answers to some test posts: the mixture, and its controls where they were trained.

Letters: N posts, K experts, D embedding width, V hashtags.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_core.stages import reading
from moe_core.stages.context import Context

if TYPE_CHECKING:
    from torch import Tensor

    from moe_core.serving.bundle import Bundle
    from moe_core.training.batches import Images, Posts

# Rows with a router in them answer with expert.router_share of the trunk's probabilities, the rest the expert's.
ROWS = (
    "trunk",
    "trunk_same_budget",
    "random_partition",
    "random_partition_router",
    "mixture_top1",
    "mixture_top1_router",
    "mixture_topk",
    "separate_decoders_top1",
    "separate_decoders_top1_router",
    "best_expert_oracle",
)
CONTROLS = (
    "trunk_same_budget",
    "random_partition",
    "random_partition_router",
    "separate_decoders_top1",
    "separate_decoders_top1_router",
)


def answers(
    context: Context,
    bundle: Bundle,
    networks: Mapping[str, Any],
    part: Posts,
    features_ND: np.ndarray,
    expert_N: np.ndarray,
    random_N: np.ndarray,
    device: str,
) -> Iterator[tuple[str, Tensor]]:
    """Probabilities (N, V) of each row of the table; one expert's answers are in memory at a time."""
    import torch

    from moe_core.evaluation.metrics import per_post

    settings, share = context.study.evaluation, bundle.router_share
    trunk_NV = bundle.router_probabilities(torch.from_numpy(features_ND))
    yield "trunk", trunk_NV
    top1_NV, topk_NV, oracle_NV = trunk_NV.clone(), torch.zeros_like(trunk_NV), trunk_NV.clone()
    lowest_N = np.full(len(part), np.inf)
    weight_NK = torch.from_numpy(bundle.gate.weights(features_ND, settings.topk, settings.temperature))
    for number, key in enumerate(bundle.published):
        each_NV = bundle.expert_probabilities(key, part.images, device)
        loss_N = per_post(each_NV, part.tags_T, part.starts_N1)["cross_entropy"]
        better_N = torch.from_numpy(loss_N < lowest_N)
        lowest_N = np.minimum(lowest_N, loss_N)
        oracle_NV[better_N] = each_NV[better_N]
        if not bundle.published[key]:
            each_NV = trunk_NV
        mine_N = torch.from_numpy(expert_N == number)
        top1_NV[mine_N] = each_NV[mine_N]
        topk_NV += weight_NK[:, number, None] * each_NV
    yield "mixture_top1", top1_NV
    yield "mixture_top1_router", top1_NV.lerp(trunk_NV, share)
    yield "mixture_topk", topk_NV
    yield "best_expert_oracle", oracle_NV
    if not settings.controls:
        return
    yield "trunk_same_budget", _own_answer(context, networks["trunk_same_budget"], part.images, device)
    for name, which_N, row in (
        ("random_expert", random_N, "random_partition"),
        ("separate_expert", expert_N, "separate_decoders_top1"),
    ):
        routed_NV = trunk_NV.clone()
        for number, model in enumerate(networks[name]):
            rows = np.flatnonzero(which_N == number)
            if len(rows):
                routed_NV[rows] = _own_answer(context, model, part.images.subset(rows), device)
        yield row, routed_NV
        yield f"{row}_router", routed_NV.lerp(trunk_NV, share)


def _own_answer(context: Context, model: Any, images: Images, device: str) -> Tensor:
    """A network's answer through its own last layer."""
    from moe_core.training.infer import features_of, probabilities_of

    training = context.study.expert_training
    features_ND = features_of(model, images, training.precision, device)
    return probabilities_of(features_ND, model.fc.weight.detach().cpu(), model.fc.bias.detach().cpu(), training.loss)


def controls(context: Context) -> dict[str, Any]:
    if not context.study.evaluation.controls:
        return {}
    from moe_core.weights import load_weights

    networks: dict[str, Any] = {
        name: [reading.network(context, context.need(name, k)) for k in context.experts]
        for name in ("random_expert", "separate_expert")
    }
    decoder, _ = load_weights(context.need("random_decoder").file("decoder.safetensors"))
    for network in networks["random_expert"]:
        network.fc.load_state_dict(decoder)
    return networks | {"trunk_same_budget": reading.network(context, context.need("trunk_same_budget"))}
