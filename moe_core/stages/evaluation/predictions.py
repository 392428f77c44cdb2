"""Probabilities of each row of the table for some test posts: the mixture's, and those of its controls.

Letters: N posts, B of a part, V hashtags.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from moe_core.engine.context import Context
from moe_core.evaluation.answers import Answer
from moe_core.evaluation.metrics import cross_entropy
from moe_core.models.resnet import ResNet
from moe_core.serving.bundle import Bundle, decoder_of
from moe_core.settings import Network
from moe_core.stages import reading
from moe_core.stages.evaluation.rows import Networks, controls_of
from moe_core.stages.mixture.calibrate import router_weight
from moe_core.stages.reading import RoutedPosts, read_routed_posts
from moe_core.training.infer import by_expert, features_of, mixed, probabilities_of
from moe_core.training.posts import Images
from moe_core.weights import load_weights


@dataclass(frozen=True)
class Control:
    """Networks to compare with, in memory."""

    networks: Sequence[ResNet]
    layers: Sequence[nn.Linear]  # the one that they answer through, or each its own
    routed_by: str | None  # column that says which network answers a post; None: the one answers all
    router_weight: float | None = None  # of the trunk's logits, where they are mixed in for a second row

    def answer(self, posts: RoutedPosts, precision: str, device: str) -> Answer:
        """Each post by its own network."""

        def own(number: int, images: Images) -> Tensor:
            return features_of(self.networks[number], images, precision, device)

        images = posts.posts.images
        if self.routed_by is None:
            return Answer(own(0, images), self.layers)
        expert_N = posts.expert_by(self.routed_by)
        features_ND = by_expert(expert_N, images, self.networks[0].width, own)
        return Answer(features_ND, self.layers, expert_N if len(self.layers) > 1 else None)


def open_controls(context: Context, bundle: Bundle, device: str) -> dict[str, Control]:
    """Controls of the study, by row; none where it has none."""
    controls = controls_of(context.planner.graph)
    if not controls:
        return {}
    validation = read_routed_posts(context, "validation")
    return {row: open_control(context, bundle, networks, validation, device) for row, networks in controls.items()}


def open_control(context: Context, bundle: Bundle, networks: Networks, validation: RoutedPosts, device: str) -> Control:
    """A control; the router's weight suits its networks, chosen on validation posts as the mixture's is."""
    loaded = load_networks(context, networks)
    layers = [network.fc for network in loaded]
    if networks.decoder:
        layers = [decoder_of(load_weights(context.need(networks.decoder).file("decoder.safetensors"))[0]).to(device)]
    control = Control(loaded, layers, networks.routed_by)
    if networks.routed_by is None:
        return control
    own = control.answer(validation, context.study.expert_training.precision, device)
    router = bundle.router_answer(validation.features_ND, device)
    setting = context.study.expert.router_weight
    return replace(control, router_weight=router_weight(setting, own, router, validation.posts, bundle.loss, device))


def load_networks(context: Context, networks: Networks) -> list[ResNet]:
    """Networks of a control."""
    if networks.routed_by is None:
        artifact = context.need(networks.stage)
        shape = artifact.metadata.get("network")  # where it is not the trunk's
        return [reading.network(context, artifact, Network.model_validate(shape) if shape else None)]
    return [reading.network(context, context.need(networks.stage, key)) for key in context.experts]


Prediction = tuple[str, np.ndarray, Tensor]  # row, places of some posts (B,), probabilities (B, V) on the device


def predictions(
    context: Context, bundle: Bundle, controls: Mapping[str, Control], some: RoutedPosts, device: str
) -> Iterator[Prediction]:
    """Predictions of each row of the table, each post once a row; what every network makes of the posts is features.

    A row that ends in _router mixes the trunk's logits into those of the row before. `most_frequent` predicts the same
    for every image: how often each hashtag is used.
    """
    images, router = some.posts.images, bundle.router_answer(some.features_ND, device)
    experts = [bundle.expert_answer(key, images, device) for key in bundle.published]
    weight_NK = bundle.gate.weights(some.features_ND, context.study.evaluation.topk, bundle.temperature)
    frequency_V = torch.from_numpy(hashtag_frequency(context)).to(device)
    for rows_B in router.parts():
        yield "most_frequent", rows_B, frequency_V.expand(len(rows_B), -1)
        yield from _of_mixture(bundle, router, experts, weight_NK, some, rows_B, device)
    for row, control in controls.items():
        own = control.answer(some, context.study.expert_training.precision, device)
        for rows_B in own.parts():
            logits_BV = own.logits(rows_B, device)
            yield row, rows_B, probabilities_of(logits_BV, bundle.loss)
            if control.router_weight is not None:
                router_BV = router.logits(rows_B, device)
                yield f"{row}_router", rows_B, mixed(logits_BV, router_BV, control.router_weight, bundle.loss)


def _of_mixture(
    bundle: Bundle,
    router: Answer,
    experts: Sequence[Answer],
    weight_NK: np.ndarray,
    some: RoutedPosts,
    rows_B: np.ndarray,
    device: str,
) -> Iterator[Prediction]:
    """Of the trunk, and of all that the experts answer together."""
    tags, expert_B = some.posts.tag_rows(rows_B), torch.from_numpy(some.expert_N[rows_B]).to(device)
    weight_BK = torch.from_numpy(weight_NK[rows_B]).to(device)
    router_BV = router.logits(rows_B, device)
    trunk_BV = bundle.probabilities(router_BV)
    yield "trunk", rows_B, trunk_BV
    top1_BV, topk_BV, oracle_BV = router_BV.clone(), torch.zeros_like(trunk_BV), trunk_BV.clone()
    lowest_B = np.full(len(rows_B), np.inf)
    for number, (published, expert) in enumerate(zip(bundle.published.values(), experts, strict=True)):
        logits_BV = expert.logits(rows_B, device)
        each_BV = bundle.probabilities(logits_BV)
        loss_B = cross_entropy(each_BV, *tags)
        better_B = torch.from_numpy(loss_B < lowest_B).to(device)
        lowest_B = np.minimum(lowest_B, loss_B)
        oracle_BV[better_B] = each_BV[better_B]
        if published:
            routed_B = expert_B == number
            top1_BV[routed_B] = logits_BV[routed_B]
        topk_BV += weight_BK[:, number, None] * (each_BV if published else trunk_BV)
    yield "mixture_top1", rows_B, bundle.probabilities(top1_BV)
    yield "mixture_top1_router", rows_B, bundle.mixed(top1_BV, router_BV)
    yield "mixture_topk", rows_B, topk_BV
    yield "best_expert_oracle", rows_B, oracle_BV


def hashtag_frequency(context: Context) -> np.ndarray:
    """(V,) float32, of sum 1: how often each hashtag is used on the training posts that the vocabulary is from."""
    vocabulary = pl.read_parquet(context.need("vocabulary").file("hashtags.parquet"), glob=False)
    posts_V = vocabulary.sort("id")["posts"].to_numpy()
    return (posts_V / posts_V.sum()).astype(np.float32)
