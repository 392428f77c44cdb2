"""Probabilities of each row of the table for some test posts: the mixture's, and those of its controls.

Letters: N posts, D embedding width, V hashtags.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor

from moe_core.engine.context import Context
from moe_core.evaluation.metrics import per_post
from moe_core.models.resnet import ResNet
from moe_core.serving.bundle import Bundle
from moe_core.settings import Network
from moe_core.stages import reading
from moe_core.stages.evaluation.rows import Networks, controls_of
from moe_core.stages.mixture.calibrate import router_weight
from moe_core.stages.reading import RoutedPosts, read_routed_posts
from moe_core.training.infer import by_expert, features_of, logits_of, mixed, probabilities_of
from moe_core.training.posts import Images
from moe_core.weights import load_weights


@dataclass(frozen=True)
class Control:
    """Networks to compare with, in memory."""

    networks: Sequence[ResNet]
    routed_by: str | None  # column that says which network answers a post; None: the one answers all
    router_weight: float | None = None  # of the trunk's logits, where they are mixed in for a second row

    def logits(self, posts: RoutedPosts, precision: str, device: str) -> Tensor:
        """(N, V): logits of each post by its own network."""

        def own(number: int, images: Images) -> Tensor:
            network = self.networks[number]
            return logits_of(features_of(network, images, precision, device), network.fc)

        images = posts.posts.images
        if self.routed_by is None:
            return own(0, images)
        return by_expert(posts.expert_by(self.routed_by), images, self.networks[0].fc.out_features, own)


def open_controls(context: Context, bundle: Bundle, device: str) -> dict[str, Control]:
    """Controls of the study, by row; none where it has none."""
    controls = controls_of(context.planner.graph)
    if not controls:
        return {}
    validation = read_routed_posts(context, "validation")
    return {row: open_control(context, bundle, networks, validation, device) for row, networks in controls.items()}


def open_control(context: Context, bundle: Bundle, networks: Networks, validation: RoutedPosts, device: str) -> Control:
    """A control; the router's weight suits its networks, chosen on validation posts as the mixture's is."""
    control = Control(load_networks(context, networks), networks.routed_by)
    if networks.routed_by is None:
        return control
    logits_NV = control.logits(validation, context.study.expert_training.precision, device)
    router_NV = bundle.router_logits(torch.from_numpy(validation.features_ND))
    setting = context.study.expert.router_weight
    weight = router_weight(setting, logits_NV, router_NV, validation.posts, bundle.loss)
    return Control(control.networks, networks.routed_by, weight)


def load_networks(context: Context, networks: Networks) -> list[ResNet]:
    """Networks of a control, each with the last layer that it answers through."""
    if networks.routed_by is None:
        artifact = context.need(networks.stage)
        shape = artifact.metadata.get("network")  # where it is not the trunk's
        return [reading.network(context, artifact, Network.model_validate(shape) if shape else None)]
    experts = [reading.network(context, context.need(networks.stage, key)) for key in context.experts]
    if networks.decoder:
        decoder, _ = load_weights(context.need(networks.decoder).file("decoder.safetensors"))
        for expert in experts:
            expert.fc.load_state_dict(decoder)
    return experts


def predictions(
    context: Context, bundle: Bundle, controls: Mapping[str, Control], some: RoutedPosts, device: str
) -> Iterator[tuple[str, Tensor]]:
    """(row, probabilities (N, V)) of each row of the table; one expert's predictions are in memory at a time.

    A row that ends in _router mixes the trunk's logits into those of the row before. `most_frequent` predicts the same
    for every image: how often each hashtag is used.
    """
    posts, precision = some.posts, context.study.expert_training.precision
    router_NV = bundle.router_logits(torch.from_numpy(some.features_ND))
    trunk_NV = bundle.probabilities(router_NV)
    yield "most_frequent", torch.from_numpy(hashtag_frequency(context)).expand_as(trunk_NV)
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
            routed_N = torch.from_numpy(some.expert_N == number)
            top1_NV[routed_N] = logits_NV[routed_N]
        topk_NV += weight_NK[:, number, None] * each_NV
    yield "mixture_top1", bundle.probabilities(top1_NV)
    yield "mixture_top1_router", bundle.mixed(top1_NV, router_NV)
    yield "mixture_topk", topk_NV
    yield "best_expert_oracle", oracle_NV
    for row, control in controls.items():
        logits_NV = control.logits(some, precision, device)
        yield row, probabilities_of(logits_NV, bundle.loss)
        if control.router_weight is not None:
            yield f"{row}_router", mixed(logits_NV, router_NV, control.router_weight, bundle.loss)


def hashtag_frequency(context: Context) -> np.ndarray:
    """(V,) float32, of sum 1: how often each hashtag is used on the training posts that the vocabulary is from."""
    vocabulary = pl.read_parquet(context.need("vocabulary").file("hashtags.parquet"), glob=False)
    posts_V = vocabulary.sort("id")["posts"].to_numpy()
    return (posts_V / posts_V.sum()).astype(np.float32)
