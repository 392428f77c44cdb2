"""What each row of the table answers to some test posts: the mixture, and its controls where they were trained.

Letters: N posts, D embedding width, V hashtags.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from moe_core.engine.context import Context
from moe_core.settings import Network, Study
from moe_core.stages import reading
from moe_core.stages.mixture.calibrate import router_weight
from moe_core.stages.mixture.routed_posts import RoutedPosts, read_routed_posts

if TYPE_CHECKING:
    from torch import Tensor

    from moe_core.models.resnet import ResNet
    from moe_core.serving.bundle import Bundle
    from moe_core.training.batches import Images

ROWS = (
    "most_frequent",
    "trunk",
    "trunk_same_budget",
    "dense_same_cost",
    "random_partition",
    "random_partition_router",
    "mixture_top1",
    "mixture_top1_router",
    "mixture_topk",
    "separate_decoders_top1",
    "separate_decoders_top1_router",
    "best_expert_oracle",
)
ONE_NETWORK = ("trunk_same_budget", "dense_same_cost")  # controls, each a stage of this name


def one_network_controls(study: Study) -> tuple[str, ...]:
    """Those of ONE_NETWORK that the study has."""
    return ONE_NETWORK if study.evaluation.dense_control else ONE_NETWORK[:1]


@dataclass(frozen=True)
class Routed:
    """Networks of which each answers for its own posts."""

    networks: Sequence[ResNet]
    random: bool  # whose posts are whose, by the random partition
    share: float  # of the router's answer, where it is mixed in

    def expert_of(self, some: RoutedPosts) -> np.ndarray:
        return some.random_N if self.random else some.expert_N


@dataclass(frozen=True)
class Controls:
    """Networks to compare with, by their row; each has its own last layer in it."""

    one: Mapping[str, ResNet] = field(default_factory=dict)
    routed: Mapping[str, Routed] = field(default_factory=dict)


def answers(
    context: Context, bundle: Bundle, controls: Controls, some: RoutedPosts, device: str
) -> Iterator[tuple[str, Tensor]]:
    """Probabilities (N, V) of each row of the table; one expert's answers are in memory at a time.

    In a row that ends in _router the trunk's logits are mixed into those of the row before. `most_frequent` says the
    same to every image: how often each hashtag is used.
    """
    import torch

    from moe_core.evaluation.metrics import per_post
    from moe_core.training.infer import mixed, probabilities_of

    posts, precision = some.posts, context.study.expert_training.precision
    router_NV = bundle.router_logits(torch.from_numpy(some.features_ND))
    trunk_NV = bundle.probabilities(router_NV)
    yield "most_frequent", torch.from_numpy(frequency(context)).expand_as(trunk_NV)
    yield "trunk", trunk_NV
    top1_NV, topk_NV, oracle_NV = router_NV.clone(), torch.zeros_like(trunk_NV), trunk_NV.clone()
    lowest_N = np.full(len(posts), np.inf)
    topk = context.study.evaluation.topk
    weight_NK = torch.from_numpy(bundle.gate.weights(some.features_ND, topk, bundle.temperature))
    for number, key in enumerate(bundle.published):
        logits_NV = bundle.expert_logits(key, posts.images, device)
        each_NV = bundle.probabilities(logits_NV)
        loss_N = per_post(each_NV, posts.tags_T, posts.starts_N1)["cross_entropy"]
        better_N = torch.from_numpy(loss_N < lowest_N)
        lowest_N = np.minimum(lowest_N, loss_N)
        oracle_NV[better_N] = each_NV[better_N]
        if not bundle.published[key]:
            each_NV = trunk_NV
        else:
            mine_N = torch.from_numpy(some.expert_N == number)
            top1_NV[mine_N] = logits_NV[mine_N]
        topk_NV += weight_NK[:, number, None] * each_NV
    yield "mixture_top1", bundle.probabilities(top1_NV)
    yield "mixture_top1_router", bundle.mixed(top1_NV, router_NV)
    yield "mixture_topk", topk_NV
    yield "best_expert_oracle", oracle_NV
    for row, network in controls.one.items():
        yield row, probabilities_of(own_logits(network, posts.images, precision, device), bundle.loss)
    for row, routed in controls.routed.items():
        logits_NV = routed_logits(routed.networks, routed.expert_of(some), posts.images, precision, device)
        yield row, probabilities_of(logits_NV, bundle.loss)
        yield f"{row}_router", mixed(logits_NV, router_NV, routed.share, bundle.loss)


def frequency(context: Context) -> np.ndarray:
    """(V,) float32, of sum 1: how often each hashtag is used on the training posts that the vocabulary is from."""
    import polars as pl

    posts_V = (
        pl.read_parquet(context.need("vocabulary").file("hashtags.parquet"), glob=False).sort("id")["posts"].to_numpy()
    )
    return (posts_V / posts_V.sum()).astype(np.float32)


def own_logits(network: ResNet, images: Images, precision: str, device: str) -> Tensor:
    """(N, V): what a network says through its own last layer."""
    from moe_core.training.infer import features_of, logits_of

    return logits_of(features_of(network, images, precision, device), network.fc)


def routed_logits(
    networks: Sequence[ResNet], expert_N: np.ndarray, images: Images, precision: str, device: str
) -> Tensor:
    """(N, V): what each image's own network says of it."""
    import torch

    out_NV = torch.empty(len(images), networks[0].fc.out_features)
    for number, network in enumerate(networks):
        rows = np.flatnonzero(expert_N == number)
        if len(rows):
            out_NV[rows] = own_logits(network, images.subset(rows), precision, device)
    return out_NV


def controls_of(context: Context, bundle: Bundle, device: str) -> Controls:
    """All the controls of the study; none where it has none. A mixture's share is chosen as the published one's is."""
    if not context.study.evaluation.controls:
        return Controls()
    validation = read_routed_posts(context, "validation")
    separate = [reading.network(context, context.need("separate_expert", key)) for key in context.experts]
    return Controls(
        {name: one_network(context, name) for name in one_network_controls(context.study)},
        {
            "random_partition": with_share(context, bundle, random_experts(context), True, validation, device),
            "separate_decoders_top1": with_share(context, bundle, separate, False, validation, device),
        },
    )


def one_network(context: Context, name: str) -> ResNet:
    """A control that is one network, of the trunk's shape or of its own."""
    artifact = context.need(name)
    network = artifact.metadata.get("network")
    return reading.network(context, artifact, Network.model_validate(network) if network else None)


def random_experts(context: Context) -> list[ResNet]:
    """Experts of the random partition, their decoder in each."""
    from moe_core.weights import load_weights

    decoder, _ = load_weights(context.need("random_decoder").file("decoder.safetensors"))
    networks = [reading.network(context, context.need("random_expert", key)) for key in context.experts]
    for network in networks:
        network.fc.load_state_dict(decoder)
    return networks


def with_share(
    context: Context, bundle: Bundle, networks: Sequence[ResNet], random: bool, validation: RoutedPosts, device: str
) -> Routed:
    """The networks, and how much of the router's answer suits theirs."""
    import torch

    expert_N = validation.random_N if random else validation.expert_N
    precision = context.study.expert_training.precision
    logits_NV = routed_logits(networks, expert_N, validation.posts.images, precision, device)
    router_NV = bundle.router_logits(torch.from_numpy(validation.features_ND))
    said = context.study.expert.router_weight
    return Routed(networks, random, router_weight(said, logits_NV, router_NV, validation.posts, bundle.loss))
