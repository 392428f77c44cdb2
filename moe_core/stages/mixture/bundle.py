"""mixture: the bundle. Validation posts decide which experts are published and whether the router joins in."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_core.clustering.gate import load_gate
from moe_core.engine.context import Context
from moe_core.evaluation.metrics import per_post
from moe_core.serving.bundle import Bundle, BundlePart, decoder_of, write_bundle
from moe_core.stages import reading
from moe_core.stages.mixture import calibrate
from moe_core.stages.reading import RoutedPosts, read_routed_posts
from moe_core.stages.training.device import device_and_threads
from moe_core.store.artifact import Artifact, Spec, StageOutput
from moe_core.training.infer import features_of, logits_of, mixed, probabilities_of
from moe_core.training.posts import Images
from moe_core.weights import load_weights


def make(context: Context, spec: Spec, folder: Path) -> StageOutput:
    study = context.study
    trunk, partition, decoder = (context.need(name) for name in ("trunk", "partition", "shared_decoder"))
    experts = {k: context.need("expert", k) for k in context.experts}
    chosen = choose(context, trunk, decoder, experts)
    write_bundle(
        folder,
        study,
        reading.vocabulary(context).hashtags,
        BundlePart(trunk.file("weights.safetensors"), trunk.version),
        BundlePart(partition.file("gate.safetensors"), partition.version, partition.metadata["members"]),
        BundlePart(decoder.file("decoder.safetensors"), decoder.version, decoder.inputs),
        {k: BundlePart(a.file("weights.safetensors"), a.version, a.inputs) for k, a in experts.items()},
        chosen["published"],
        chosen["answer"],
        chosen["router_weight"],
        chosen["temperature"],
    )
    Bundle(folder)  # refuses what does not belong together, before it is committed
    return StageOutput(chosen | {"unpublished": [k for k, good in chosen["published"].items() if not good]})


def choose(context: Context, trunk: Artifact, decoder: Artifact, experts: Mapping[str, Artifact]) -> dict[str, Any]:
    """Chooses, by cross-entropy on validation posts, which experts answer, and whether and how the router joins in."""
    study = context.study
    device = device_and_threads(study, parallel=False, hashtags=len(reading.vocabulary(context).hashtags))
    validation = read_routed_posts(context, "validation")
    if not len(validation):
        return {
            "published": dict.fromkeys(experts, True),
            "answer": "mixture_top1",
            "router_weight": calibrate.fixed(study.expert.router_weight, calibrate.WEIGHT),
            "temperature": calibrate.fixed(study.evaluation.temperature, calibrate.TEMPERATURE),
            "validation_posts": 0,
        }
    posts, loss, precision = validation.posts, study.expert_training.loss, study.expert_training.precision
    own = reading.network(context, trunk).fc
    shared = decoder_of(load_weights(decoder.file("decoder.safetensors"))[0])

    def router(some: RoutedPosts) -> Tensor:
        return logits_of(torch.from_numpy(some.features_ND), own)

    def expert(key: str, images: Images) -> Tensor:
        return logits_of(features_of(reading.network(context, experts[key]), images, precision, device), shared)

    router_NV = router(validation)
    top1_NV = router_NV.clone()
    for number, k in enumerate(experts):
        rows = np.flatnonzero(validation.expert_N == number)
        if len(rows):
            top1_NV[rows] = expert(k, posts.images.subset(rows))
        context.report({"experts": number + 1})
    weight = calibrate.router_weight(study.expert.router_weight, top1_NV, router_NV, posts, loss)
    # An expert is judged by the answer that would be given with it: alone, or with the router's mixed in.
    trunk_NV = probabilities_of(router_NV, loss)
    candidates = {
        "mixture_top1": probabilities_of(top1_NV, loss),
        "mixture_top1_router": mixed(top1_NV, router_NV, weight, loss),
    }
    trunk_loss_N = per_post(trunk_NV, posts.tags_T, posts.starts_N1)["cross_entropy"]
    scores, gains = {}, {name: dict[str, float]() for name in candidates}
    for name, answer_NV in candidates.items():
        loss_N = per_post(answer_NV, posts.tags_T, posts.starts_N1)["cross_entropy"]
        for number, k in enumerate(experts):
            rows = np.flatnonzero(validation.expert_N == number)
            if not len(rows):
                continue
            gains[name][k] = float(trunk_loss_N[rows].mean()) - float(loss_N[rows].mean())
            if study.expert.use_trunk_where_better and gains[name][k] <= 0:
                answer_NV[rows] = trunk_NV[rows]
        scores[name] = per_post(answer_NV, posts.tags_T, posts.starts_N1)
    answer = calibrate.answer(scores)
    published = {k: not study.expert.use_trunk_where_better or gains[answer].get(k, 1.0) > 0 for k in experts}

    def answer_of(key: str) -> Callable[[RoutedPosts], Tensor]:
        return lambda some: probabilities_of(expert(key, some.posts.images) if published[key] else router(some), loss)

    gate, _ = load_gate(context.need("partition").file("gate.safetensors"))
    soft = study.evaluation
    return {
        "published": published,
        "answer": answer,
        "router_weight": weight,
        "temperature": calibrate.temperature(
            soft.temperature, gate, soft.topk, validation, [answer_of(key) for key in experts]
        ),
        "validation_posts": len(posts),
        "validation_p_at_1": {name: round(float(s["p_at_1"].mean()), 4) for name, s in scores.items()},
        "validation_cross_entropy": {name: round(float(s["cross_entropy"].mean()), 4) for name, s in scores.items()},
        "validation_gain": {k: round(gain, 4) for k, gain in gains[answer].items()},
    }
