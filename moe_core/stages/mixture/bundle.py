"""mixture: the bundle. Validation posts decide which experts are published and whether the router joins in."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_core.clustering.gate import load_gate
from moe_core.engine.context import Context
from moe_core.evaluation.answers import Answer
from moe_core.evaluation.card import render
from moe_core.serving.bundle import Bundle, BundlePart, decoder_of, write_bundle
from moe_core.serving.manifest import entries_of, read_manifest
from moe_core.stages import reading
from moe_core.stages.mixture import calibrate
from moe_core.stages.mixture.card import card_of
from moe_core.stages.mixture.thresholds import Measured, PublishedAnswer, measure
from moe_core.stages.reading import RoutedPosts, read_routed_posts
from moe_core.stages.training.device import device_and_threads
from moe_core.store.artifact import Artifact, Spec, StageOutput
from moe_core.store.files import write_text
from moe_core.store.hashing import file_hash
from moe_core.store.layout import CARD
from moe_core.training.infer import by_expert, features_of
from moe_core.training.posts import Images
from moe_core.weights import load_weights


def make(context: Context, spec: Spec, folder: Path) -> StageOutput:
    study = context.study
    trunk, partition, decoder = (context.need(name) for name in ("trunk", "partition", "shared_decoder"))
    experts = {k: context.need("expert", k) for k in context.experts}
    chosen, measured = choose(context, trunk, decoder, experts)
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
        measured.curves if measured else None,
        measured.calibration_temperature if measured else None,
    )
    Bundle(folder)  # refuses what does not belong together, before it is committed
    content = content_of(folder)
    write_text(folder / CARD, render(card_of(context, spec, chosen)))  # no result: a license changes none
    unpublished = [k for k, good in chosen["published"].items() if not good]
    return StageOutput(chosen | {"unpublished": unpublished}, content)


def content_of(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a bundle: for its parts that of the manifest, for which they were read already."""
    known = {entry.file: entry.sha256 for entry in entries_of(read_manifest(folder)).values()}
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    return {name: known.get(name) or file_hash(folder / name) for name in names}


def choose(
    context: Context, router: Artifact, decoder: Artifact, experts: Mapping[str, Artifact]
) -> tuple[dict[str, Any], Measured | None]:
    """Chooses, by cross-entropy on validation posts, which experts answer, and whether and how the router joins in; and
    measures on them how precise that answer is. None where there are none."""
    study = context.study
    device = device_and_threads(study, parallel=False, hashtags=len(reading.vocabulary(context).hashtags))
    validation = read_routed_posts(context, "validation")
    if not len(validation):
        unmeasured = {
            "published": dict.fromkeys(experts, True),
            "answer": "mixture_top1",
            "router_weight": calibrate.fixed(study.expert.router_weight, calibrate.WEIGHT),
            "temperature": calibrate.fixed(study.evaluation.temperature, calibrate.TEMPERATURE),
            "validation_posts": 0,
        }
        return unmeasured, None
    posts, loss = validation.posts, study.expert_training.loss
    shared = decoder_of(load_weights(decoder.file("decoder.safetensors"))[0]).to(device)
    own = reading.last_layer(router).to(device)

    def by_router(some: RoutedPosts) -> Answer:
        return Answer(torch.from_numpy(some.features_ND), [own])

    def features(key: str, images: Images) -> Tensor:
        return features_of(reading.embedder(context, experts[key]), images, study.expert_training.precision, device)

    keys = list(experts)

    def routed(number: int, images: Images) -> Tensor:
        context.report({"experts": number + 1})
        return features(keys[number], images)

    of_router = by_router(validation)
    top1 = Answer(by_expert(validation.expert_N, posts.images, own.in_features, routed), [shared])
    weight = calibrate.router_weight(study.expert.router_weight, top1, of_router, posts, loss, device)
    scored = calibrate.measures(top1, of_router, weight, posts, loss, device)
    # An expert is judged by the answer that would be given with it: alone, or with the router's mixed in.
    trunk = scored.pop("trunk")
    gains = {name: dict[str, float]() for name in scored}
    for name, scores in scored.items():
        for number, key in enumerate(keys):
            rows = np.flatnonzero(validation.expert_N == number)
            if not len(rows):
                continue
            gains[name][key] = float(trunk["cross_entropy"][rows].mean()) - float(scores["cross_entropy"][rows].mean())
            if study.expert.use_trunk_where_better and gains[name][key] <= 0:
                for name_of_measure, values_N in scores.items():
                    values_N[rows] = trunk[name_of_measure][rows]
    answer = calibrate.answer(scored)
    published = {k: not study.expert.use_trunk_where_better or gains[answer].get(k, 1.0) > 0 for k in experts}

    def answer_of(key: str) -> Callable[[RoutedPosts], Answer]:
        return lambda some: Answer(features(key, some.posts.images), [shared]) if published[key] else by_router(some)

    gate, _ = load_gate(context.need("partition").file("gate.safetensors"))
    soft = study.evaluation
    answers = [answer_of(key) for key in keys]
    used_N = np.array([published[key] for key in keys])[validation.expert_N]
    with_router = weight if answer == "mixture_top1_router" else None
    given = PublishedAnswer(top1, of_router, used_N, with_router, loss)
    measured = measure(given, posts, of_router.hashtags, device)
    chosen = {
        "published": published,
        "answer": answer,
        "router_weight": weight,
        "temperature": calibrate.temperature(soft.temperature, gate, soft.topk, validation, answers, loss, device),
        "validation_posts": len(posts),
        "validation_p_at_1": {name: round(float(s["p_at_1"].mean()), 4) for name, s in scored.items()},
        "validation_cross_entropy": {name: round(float(s["cross_entropy"].mean()), 4) for name, s in scored.items()},
        "validation_gain": {k: round(gain, 4) for k, gain in gains[answer].items()},
    }
    return chosen | measured.as_metadata(), measured
