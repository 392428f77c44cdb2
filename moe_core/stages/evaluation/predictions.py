"""Probabilities of each row of the table for some test posts: the mixture's, and those of its controls.

Letters: N posts, B of a part, V hashtags.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from moe_core.engine.context import Context
from moe_core.evaluation.answers import Answer, ReadLayers
from moe_core.evaluation.metrics import cross_entropy
from moe_core.models.resnet import ResNet
from moe_core.serving.bundle import Bundle, decoder_of
from moe_core.stages import reading
from moe_core.stages.evaluation.rows import Networks, controls_of
from moe_core.stages.mixture.calibrate import router_weight
from moe_core.stages.reading import RoutedPosts, read_routed_posts
from moe_core.training.infer import by_expert, features_of, mixed, probabilities_of
from moe_core.training.posts import Images, Posts
from moe_core.weights import load_weights


@dataclass(frozen=True)
class Control:
    """Networks to compare with. Each is read when it is wanted, and none is kept: K of them with V hashtags each may
    be larger than memory."""

    network: Callable[[int], ResNet]  # without its last layer
    layer: Callable[[int], nn.Linear]  # through which that network answers
    layers: int  # 1 where they share it
    width: int  # of their features, where posts are routed
    routed_by: str | None  # column that says which network answers a post; None: the one answers all
    router_weight: float | None = None  # of the trunk's logits, where they are mixed in for a second row

    def features(self, posts: Posts, expert_N: np.ndarray | None, precision: str, device: str) -> Tensor:
        """(N, D) on the CPU: of each post by its own network."""

        def own(number: int, images: Images) -> Tensor:
            return features_of(self.network(number), images, precision, device)

        return own(0, posts.images) if expert_N is None else by_expert(expert_N, posts.images, self.width, own)

    def answer(self, some: RoutedPosts, precision: str, device: str) -> Answer:
        """Each post by its own network; the layer that answers lies on the device."""
        expert_N = some.expert_by(self.routed_by) if self.routed_by else None
        layers = ReadLayers(self.layers, lambda number: self.layer(number).to(device))
        features_ND = self.features(some.posts, expert_N, precision, device)
        return Answer(features_ND, layers, expert_N if self.layers > 1 else None)


def open_controls(context: Context, bundle: Bundle, device: str) -> dict[str, Control]:
    """Controls of the study, by row; none where it has none."""
    controls = controls_of(context.planner.graph)
    if not controls:
        return {}
    validation = read_routed_posts(context, "validation")
    return {row: open_control(context, bundle, networks, validation, device) for row, networks in controls.items()}


def open_control(context: Context, bundle: Bundle, networks: Networks, validation: RoutedPosts, device: str) -> Control:
    """A control; the router's weight suits its networks, chosen on validation posts as the mixture's is."""
    keys: Sequence[str | None] = context.experts if networks.routed_by else (None,)
    artifacts = [context.need(networks.stage, key) for key in keys]

    def layer(number: int) -> nn.Linear:
        if not networks.decoder:
            return reading.last_layer(artifacts[number])
        return decoder_of(load_weights(context.need(networks.decoder).file("decoder.safetensors"))[0])

    control = Control(
        lambda number: reading.embedder(context, artifacts[number]),
        layer,
        1 if networks.decoder else len(artifacts),
        bundle.router.width,
        networks.routed_by,
    )
    if networks.routed_by is None:
        return control
    own = control.answer(validation, context.study.expert_training.precision, device)
    router = bundle.router_answer(validation.features_ND, device)
    setting = context.study.expert.router_weight
    return replace(control, router_weight=router_weight(setting, own, router, validation.posts, bundle.loss, device))


Prediction = tuple[str, np.ndarray, Tensor]  # row, places of some posts (B,), probabilities (B, V) on the device


def mixture_predictions(context: Context, bundle: Bundle, some: RoutedPosts, device: str) -> Iterator[Prediction]:
    """Predictions of the rows that the bundle's own networks give, each post once a row; what every network makes of
    the posts is features.

    `most_frequent` predicts the same for every image: how often each hashtag is used.
    """
    images, router = some.posts.images, bundle.router_answer(some.features_ND, device)
    features: dict[str, Tensor] = {}

    def compute(key: str, network: ResNet) -> None:
        features[key] = features_of(network, images, bundle.precision, device)

    bundle.each_expert(bundle.published, compute, device)
    experts = [Answer(features[key], [bundle.decoder_on(device)]) for key in bundle.published]
    weight_NK = bundle.gate.weights(some.features_ND, context.study.evaluation.topk, bundle.temperature, device)
    frequency_V = torch.from_numpy(hashtag_frequency(context)).to(device)
    for rows_B in router.parts():
        yield "most_frequent", rows_B, frequency_V.expand(len(rows_B), -1)
        yield from _of_mixture(bundle, router, experts, weight_NK, some, rows_B, device)


def control_predictions(
    context: Context, bundle: Bundle, row: str, control: Control, some: RoutedPosts, device: str
) -> Iterator[Prediction]:
    """Predictions of a control's row; and of that row's name with _router, which mixes the trunk's logits in."""
    router = bundle.router_answer(some.features_ND, device)
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
