"""evaluation: the mixture against its controls on held-out posts, every figure with its interval and its n.

Letters: N test posts, K experts, V hashtags.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_core.settings import Study
from moe_core.stages import reading
from moe_core.stages.context import Context, device_and_threads
from moe_core.stages.stage import Stage
from moe_core.store import Written

if TYPE_CHECKING:
    from torch import Tensor

    from moe_core.serving.bundle import Bundle
    from moe_core.training.batches import Images, Posts

CHUNK = 8192  # test posts answered at once: bounds the memory to CHUNK x V numbers a row of the table
CHUNK_BYTES = 256 << 20  # of their pixels
MEASURES = ("p_at_1", "p_at_5", "r_at_5", "r_at_10", "cross_entropy")
LIFTED = 6  # hashtags shown of each expert that gained, and that lost
AP_POSTS, AP_RESAMPLES = 10_000, 50  # mAP sorts posts x hashtags, so it is bounded
UNITY_POSTS, UNITY_NEIGHBOURS = 4_000, 10  # the neighbours of some test posts among them
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


class TagCounts:
    """Tags of each expert's test posts, and how many of them an answer has among its first five."""

    def __init__(self, experts: int, hashtags: int) -> None:
        self.tags_KV = np.zeros((experts, hashtags), np.int32)
        self.found_KV: dict[str, np.ndarray] = {}  # by row of the table

    def add(self, name: str, p_NV: Tensor, part: Posts, expert_N: np.ndarray) -> None:
        from moe_core.evaluation.metrics import found_tags

        expert_T = np.repeat(expert_N, np.diff(part.starts_N1.numpy()))
        found_T = found_tags(p_NV, part.tags_T, part.starts_N1)
        found_KV = self.found_KV.setdefault(name, np.zeros_like(self.tags_KV))
        np.add.at(found_KV, (expert_T, part.tags_T.numpy()), found_T)
        if name == "trunk":
            np.add.at(self.tags_KV, (expert_T, part.tags_T.numpy()), 1)

    def changed(self, expert: int, answer: str, hashtags: list[str]) -> dict[str, list[dict[str, Any]]]:
        """Hashtags of the expert's posts that `answer` finds more often, and less often, than the trunk; most first."""
        tags_V, trunk_V, mixture_V = self.tags_KV[expert], self.found_KV["trunk"][expert], self.found_KV[answer][expert]
        gain_V = mixture_V - trunk_V
        order = np.argsort(-gain_V, kind="stable")

        def said(tags: list[int]) -> list[dict[str, Any]]:
            return [
                {"tag": hashtags[v], "n": int(tags_V[v]), "trunk": int(trunk_V[v]), "mixture": int(mixture_V[v])}
                for v in tags
            ]

        return {
            "lifted": said([v for v in order[:LIFTED] if gain_V[v] > 0]),
            "lowered": said([v for v in order[::-1][:LIFTED] if gain_V[v] < 0]),
        }


@dataclass
class Scores:
    """Per-post measures of one row, chunk by chunk, and the scores that mAP needs."""

    chunks: list[dict[str, np.ndarray]] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)

    def measure(self, name: str) -> np.ndarray:
        return np.concatenate([chunk[name] for chunk in self.chunks])


def _make(context: Context, key: str | None, folder: Path) -> Written:
    from moe_core.evaluation.metrics import paired_difference
    from moe_core.serving.bundle import Bundle

    device = device_and_threads(parallel=False, experts=context.study.partition.experts)
    bundle = Bundle(context.need("mixture").path)
    index = reading.index(context)
    use_N = index.use("test")
    if not use_N.any():
        raise ValueError("no test post carries a hashtag of the vocabulary: raise data.test, or give a split column")
    posts = reading.posts_where(context, index, use_N)
    scores, expert_N, tags = _score(context, bundle, posts, use_N, device)
    frequent = _frequent(posts, len(bundle.hashtags))
    rows = [_row(context, name, scores[name], posts, frequent) for name in scores]
    costs = _costs(context, bundle)
    for row in rows:
        row |= costs[row["name"]]
    resamples = context.study.evaluation.bootstrap
    published = bundle.answer
    against = {}
    for name in scores:
        if name != published:
            pair = paired_difference(
                scores[published].measure("p_at_1"), scores[name].measure("p_at_1"), resamples, seed=0
            )
            against[name] = {"p_at_1_gain": round(pair.mean, 5), "ci95": [round(pair.low, 5), round(pair.high, 5)]}
    table = {
        "published": published,
        "n": len(posts),
        "hashtags": len(bundle.hashtags),
        "hashtags_in_map": len(frequent),
        "map_posts": min(len(posts), AP_POSTS),
        "published_against": against,
        "per_expert": _per_expert(bundle, scores, expert_N, tags, resamples),
        "unity": _unity(context, bundle, posts, use_N, expert_N, device),
        "rows": rows,
    }
    (folder / "table.json").write_text(json.dumps(table, indent=1))
    best = {row["name"]: row["p_at_1"] for row in rows}
    return Written({"published": published, "n": len(posts), "p_at_1": best})


def _score(
    context: Context, bundle: Bundle, posts: Posts, use_N: np.ndarray, device: str
) -> tuple[dict[str, Scores], np.ndarray, TagCounts]:
    """(scores of each row of the table, expert of each test post, what became of its tags)."""
    from moe_core.evaluation.metrics import per_post

    assignment = reading.assignment(context)
    expert_N = assignment["expert"].to_numpy()[use_N]
    random_N = assignment["random"].to_numpy()[use_N]
    features_ND = reading.trunk_features_where(context, use_N)
    networks = _controls(context)
    wanted = [name for name in ROWS if context.study.evaluation.controls or name not in CONTROLS]
    scores = {name: Scores() for name in wanted}
    frequent = _frequent(posts, len(bundle.hashtags))
    tags = TagCounts(len(bundle.published), len(bundle.hashtags))
    chunk = max(1, min(CHUNK, CHUNK_BYTES // (3 * bundle.image_size**2)))
    for first in range(0, len(posts), chunk):
        rows = slice(first, first + chunk)
        part = posts.subset(np.arange(len(posts))[rows]).in_memory()  # every network looks at them
        answers = _answers(context, bundle, networks, part, features_ND[rows], expert_N[rows], random_N[rows], device)
        for name, p_NV in answers:
            scores[name].chunks.append(per_post(p_NV, part.tags_T, part.starts_N1))
            if name in ("trunk", bundle.answer):
                tags.add(name, p_NV, part, expert_N[rows])
            if first < AP_POSTS:
                scores[name].scores.append(p_NV[: AP_POSTS - first, frequent].numpy().astype(np.float32))
        context.report({"posts": min(first + chunk, len(posts)), "of": len(posts)})
    return {name: scores[name] for name in wanted}, expert_N, tags


def _answers(
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


def _controls(context: Context) -> dict[str, Any]:
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


def _frequent(posts: Posts, hashtags: int) -> list[int]:
    """At most 1,000 hashtags that mAP is averaged over: the most frequent of those that occur among its posts."""
    last = int(posts.starts_N1[min(len(posts), AP_POSTS)])
    counts = np.bincount(posts.tags_T[:last].numpy(), minlength=hashtags)
    order = np.argsort(-counts, kind="stable")[:1000]
    return [int(tag) for tag in order if counts[tag]]


def _row(context: Context, name: str, scores: Scores, posts: Posts, frequent: list[int]) -> dict[str, Any]:
    from moe_core.evaluation.metrics import average_precision, bootstrap

    row: dict[str, Any] = {"name": name, "n": len(posts)}
    for measure in MEASURES:
        found = bootstrap(scores.measure(measure), context.study.evaluation.bootstrap, seed=0)
        row[measure] = round(found.mean, 5)
        row[f"{measure}_ci95"] = [round(found.low, 5), round(found.high, 5)]
    found = average_precision(np.concatenate(scores.scores), _relevant(posts, frequent), AP_RESAMPLES, seed=0)
    row |= {"map": round(found.mean, 5), "map_ci95": [round(found.low, 5), round(found.high, 5)], "map_n": found.n}
    return row


def _relevant(posts: Posts, frequent: list[int]) -> np.ndarray:
    """(N, tags) bool: which of the posts of mAP carry which of its hashtags."""
    count = min(len(posts), AP_POSTS)
    wanted = int(posts.tags_T.max()) + 1
    return posts.targets(np.arange(count), wanted)[:, frequent].numpy() > 0


def _costs(context: Context, bundle: Bundle) -> dict[str, dict[str, Any]]:
    """Parameters in all, those used for one image, multiply-adds for one image and training images, of each row."""
    from moe_core.models.cost import multiply_adds, parameters

    count = len(bundle.published)
    whole = parameters(bundle.router)
    decoder = parameters(bundle.router.fc)
    own = whole - decoder - sum(parameters(module) for module in bundle.router.early(context.study.expert.branch_at))
    once = multiply_adds(bundle.router, bundle.image_size)
    k = min(context.study.evaluation.topk, count)
    trunk_images = context.need("trunk").metadata["training_images"]
    seen = {
        name: sum(context.need(name, key).metadata["training_images"] for key in context.experts)
        for name in ("expert", *(("random_expert", "separate_expert") if context.study.evaluation.controls else ()))
    }

    def cost(total: int, used: int, forwards: int, images: int) -> dict[str, Any]:
        return {
            "parameters": total,
            "parameters_used": used,
            "multiply_adds": forwards * once,
            "training_images": images,
        }

    extra = 0 if context.study.decoder.mode == "frozen" else decoder  # a decoder beside the router's own
    mixture = whole + extra + count * own
    found = {
        "trunk": cost(whole, whole, 1, trunk_images),
        "mixture_top1": cost(mixture, whole + extra + own, 2, trunk_images + seen["expert"]),
        "mixture_topk": cost(mixture, whole + extra + k * own, 1 + k, trunk_images + seen["expert"]),
        "best_expert_oracle": cost(mixture, whole + extra + count * own, 1 + count, trunk_images + seen["expert"]),
    }
    found["mixture_top1_router"] = found["mixture_top1"]
    if context.study.evaluation.controls:
        more = context.need("trunk_same_budget").metadata["training_images"]
        found["trunk_same_budget"] = cost(whole, whole, 1, trunk_images + more)
        found["random_partition"] = cost(mixture, whole + extra + own, 2, trunk_images + seen["random_expert"])
        found["separate_decoders_top1"] = cost(
            whole + count * (own + decoder), whole + own + decoder, 2, trunk_images + seen["separate_expert"]
        )
        for name in ("random_partition", "separate_decoders_top1"):
            found[f"{name}_router"] = found[name]
    return found


def _per_expert(
    bundle: Bundle, scores: Mapping[str, Scores], expert_N: np.ndarray, tags: TagCounts, resamples: int
) -> list[dict[str, Any]]:
    """P@1 of the trunk and of the mixture on the test posts of each expert, and the tags that gained and lost."""
    from moe_core.evaluation.metrics import paired_difference

    found = []
    trunk_N, mixture_N = (scores[name].measure("p_at_1") for name in ("trunk", bundle.answer))
    for number, (key, published) in enumerate(bundle.published.items()):
        mine_N = expert_N == number
        count = int(mine_N.sum())
        row = {"expert": key, "n": count, "published": published}
        if count:
            gain = paired_difference(mixture_N[mine_N], trunk_N[mine_N], resamples, seed=0)
            row |= {
                "trunk_p_at_1": round(float(trunk_N[mine_N].mean()), 5),
                "mixture_p_at_1": round(float(mixture_N[mine_N].mean()), 5),
                "p_at_1_gain": round(gain.mean, 5),
                "p_at_1_gain_ci95": [round(gain.low, 5), round(gain.high, 5)],
            } | tags.changed(number, bundle.answer, bundle.hashtags)
        found.append(row)
    return found


def _unity(
    context: Context, bundle: Bundle, posts: Posts, use_N: np.ndarray, expert_N: np.ndarray, device: str
) -> dict[str, Any]:
    """Agreement of hashtags among neighbours within an expert and across experts, of a sample of the test posts.

    The trunk is one network: its row is what one space gives on these clusters. Experts with decoders of their own,
    where the controls are there, share no space but that of the trunk they started from.
    """
    import torch

    from moe_core.evaluation.metrics import bootstrap
    from moe_core.evaluation.unity import tag_agreement
    from moe_core.training.infer import features_of

    rows = np.sort(np.random.default_rng(0).permutation(len(posts))[:UNITY_POSTS])
    part, mine_N = posts.subset(rows), expert_N[rows]
    starts = part.starts_N1.tolist()
    tags_N = [set(part.tags_T[a:b].tolist()) for a, b in pairwise(starts)]

    def embedded(features: Callable[[str, Images], Tensor]) -> Tensor:
        found_ND = torch.zeros(len(rows), bundle.router.width)
        for number, key in enumerate(bundle.published):
            of_expert = np.flatnonzero(mine_N == number)
            if len(of_expert):
                found_ND[of_expert] = features(key, part.images.subset(of_expert))
        return found_ND

    def separate(key: str, images: Images) -> Tensor:
        model = reading.network(context, context.need("separate_expert", key))
        return features_of(model, images, context.study.expert_training.precision, device)

    spaces = {
        "trunk": torch.from_numpy(reading.trunk_features_where(context, use_N)[rows]),
        "mixture": embedded(lambda key, images: bundle.expert_features(key, images, device)),
    }
    if context.study.evaluation.controls:
        spaces["separate_decoders"] = embedded(separate)
    found: dict[str, Any] = {"n": len(rows), "neighbours": UNITY_NEIGHBOURS, "rows": []}
    for name, features_ND in spaces.items():
        row: dict[str, Any] = {"name": name}
        for where, values_N in tag_agreement(features_ND, mine_N, tags_N, UNITY_NEIGHBOURS).items():
            values_N = values_N[~np.isnan(values_N)]
            if len(values_N):  # one expert alone has nothing across
                mean = bootstrap(values_N, context.study.evaluation.bootstrap, seed=0)
                row |= {where: round(mean.mean, 5), f"{where}_ci95": [round(mean.low, 5), round(mean.high, 5)]}
        found["rows"].append(row)
    return found


def _inputs(context: Context, key: str | None) -> dict[str, str]:
    found = {"mixture": context.version("mixture"), "splits": context.version("splits")}
    if context.study.evaluation.controls:
        found |= {name: context.version(name) for name in ("trunk_same_budget", "random_decoder")}
        for name in ("random_expert", "separate_expert"):
            found |= {f"{name} {k}": context.version(name, k) for k in context.experts}
    return found


def _settings(study: Study) -> Any:
    return study.evaluation.model_dump()


EVALUATION = Stage(
    name="evaluation",
    keys=None,
    code="2",
    reads=("mixture", "trunk_same_budget", "random_expert", "random_decoder", "separate_expert", "posts", "splits"),
    settings=_settings,
    inputs=_inputs,
    make=_make,
)
