"""mixture: the bundle. Validation posts decide which experts are published and whether the router joins in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from moe_core.stages import reading
from moe_core.stages.context import Context, device_and_threads
from moe_core.stages.stage import Stage
from moe_core.store import Artefact, Written

if TYPE_CHECKING:
    import numpy as np


def _make(context: Context, key: str | None, folder: Path) -> Written:
    from moe_core.serving.bundle import Bundle, Part, write_bundle

    study = context.study
    trunk, partition, decoder = (context.need(name) for name in ("trunk", "partition", "shared_decoder"))
    experts = {k: context.need("expert", k) for k in context.experts}
    chosen = _choose(context, trunk, decoder, experts)
    write_bundle(
        folder,
        study,
        reading.vocabulary(context).hashtags,
        Part(trunk.file("weights.safetensors"), trunk.version),
        Part(partition.file("gate.safetensors"), partition.version, partition.metadata["members"]),
        Part(decoder.file("decoder.safetensors"), decoder.version, decoder.inputs),
        {k: Part(a.file("weights.safetensors"), a.version, a.inputs) for k, a in experts.items()},
        chosen["published"],
        chosen["answer"],
    )
    Bundle(folder)  # refuses what does not belong together, before it is committed
    return Written(chosen | {"unpublished": [k for k, good in chosen["published"].items() if not good]})


def _choose(context: Context, trunk: Artefact, decoder: Artefact, experts: Mapping[str, Artefact]) -> dict:
    """Which experts answer, and whether the router's answer is mixed in, by P@1 on validation posts."""
    import numpy as np
    import torch

    from moe_core.evaluation.metrics import per_post
    from moe_core.training.infer import features_of, probabilities_of
    from moe_core.weights import load_weights

    study = context.study
    device = device_and_threads(parallel=False, experts=study.partition.experts)
    index = reading.index(context)
    use_N = index.use("validation")
    if not use_N.any():
        return {"published": dict.fromkeys(experts, True), "answer": "mixture_top1", "validation_posts": 0}
    posts = reading.posts_where(context, index, use_N)
    loss, precision = study.expert_training.loss, study.expert_training.precision
    own = reading.network(context, trunk).fc
    features_ND = torch.from_numpy(reading.trunk_features_where(context, use_N))
    trunk_NV = probabilities_of(features_ND, own.weight.detach(), own.bias.detach(), loss)
    shared, _ = load_weights(decoder.file("decoder.safetensors"))
    expert_N = reading.assignment(context)["expert"].to_numpy()[use_N]
    top1_NV = trunk_NV.clone()
    trunk_scores = per_post(trunk_NV, posts.tags_T, posts.starts_N1)
    for number, k in enumerate(experts):
        rows = np.flatnonzero(expert_N == number)
        if not len(rows):
            continue
        mine = posts.images.subset(rows)
        feature_ND = features_of(reading.network(context, experts[k]), mine, precision, device)
        top1_NV[rows] = probabilities_of(feature_ND, shared["weight"], shared["bias"], loss)
        context.report({"experts": number + 1})
    # An expert is judged by the answer that would be given with it: alone, or with the router's mixed in.
    candidates = {"mixture_top1": top1_NV, "mixture_top1_router": top1_NV.lerp(trunk_NV, study.expert.router_share)}
    scores, gains = {}, {name: dict[str, float]() for name in candidates}
    for name, answer_NV in candidates.items():
        answer_scores = per_post(answer_NV, posts.tags_T, posts.starts_N1)
        for number, k in enumerate(experts):
            rows = np.flatnonzero(expert_N == number)
            if not len(rows):
                continue
            gains[name][k] = _mean(trunk_scores, "cross_entropy", rows) - _mean(answer_scores, "cross_entropy", rows)
            if study.expert.publish_gate and gains[name][k] <= 0:
                answer_NV[rows] = trunk_NV[rows]
        scores[name] = per_post(answer_NV, posts.tags_T, posts.starts_N1)
    answer = max(scores, key=lambda name: (scores[name]["p_at_1"].mean(), -scores[name]["cross_entropy"].mean()))
    return {
        "published": {k: not study.expert.publish_gate or gains[answer].get(k, 1.0) > 0 for k in experts},
        "answer": answer,
        "validation_posts": len(posts),
        "validation_p_at_1": {name: round(float(s["p_at_1"].mean()), 4) for name, s in scores.items()},
        "validation_gain": {k: round(gain, 4) for k, gain in gains[answer].items()},
    }


def _mean(scores: Mapping[str, np.ndarray], name: str, rows: np.ndarray) -> float:
    return float(scores[name][rows].mean())


MIXTURE = Stage(
    name="mixture",
    keys=None,
    code="3",
    reads=("shared_decoder", "expert", "partition", "trunk", "vocabulary"),
    settings=lambda study: {
        "publish_gate": study.expert.publish_gate,
        "router_share": study.expert.router_share,
        "network": study.network.model_dump(),
        "image_size": study.data.image_size,
    },
    inputs=lambda context, key: (
        {name: context.version(name) for name in ("trunk", "partition", "shared_decoder", "vocabulary")}
        | {k: context.version("expert", k) for k in context.experts}
    ),
    make=_make,
)
