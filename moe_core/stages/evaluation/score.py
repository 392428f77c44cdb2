"""Scores of the rows of the table on the test posts, a chunk of posts at a time.

Letters: N posts, K experts, V hashtags, T tags of all posts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_core.engine.context import Context
from moe_core.stages.evaluation.rows import ROWS, Controls, answers
from moe_core.stages.mixture.routed_posts import RoutedPosts

if TYPE_CHECKING:
    from torch import Tensor

    from moe_core.serving.bundle import Bundle
    from moe_core.training.batches import Posts

CHUNK = 8192  # test posts answered at once: bounds the memory to CHUNK x V numbers a row of the table
CHUNK_BYTES = 256 << 20  # of their pixels
MEASURES = ("p_at_1", "p_at_5", "r_at_5", "r_at_10", "cross_entropy")
PAIRED = ("p_at_1", "r_at_5", "r_at_10")  # of which the published row is set against each other, post by post
LIFTED = 6  # hashtags shown of each expert that gained, and that lost
AP_POSTS, AP_RESAMPLES = 10_000, 50  # mAP sorts posts x hashtags, so it is bounded


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


def score(
    context: Context, bundle: Bundle, controls: Controls, test: RoutedPosts, device: str
) -> tuple[dict[str, Scores], TagCounts]:
    """(scores of each row of the table that has an answer, what became of the tags)."""
    from moe_core.evaluation.metrics import per_post

    found: dict[str, Scores] = {}
    frequent = frequent_tags(test.posts, len(bundle.hashtags))
    tags = TagCounts(len(bundle.published), len(bundle.hashtags))
    chunk = max(1, min(CHUNK, CHUNK_BYTES // (3 * bundle.image_size**2)))
    for first in range(0, len(test), chunk):
        some = test.rows(np.arange(len(test))[first : first + chunk])
        some = replace(some, posts=some.posts.in_memory())  # every network looks at them
        for name, p_NV in answers(context, bundle, controls, some, device):
            scores = found.setdefault(name, Scores())
            scores.chunks.append(per_post(p_NV, some.posts.tags_T, some.posts.starts_N1))
            if name in ("trunk", bundle.answer):
                tags.add(name, p_NV, some.posts, some.expert_N)
            if first < AP_POSTS:
                scores.scores.append(p_NV[: AP_POSTS - first, frequent].numpy().astype(np.float32))
        context.report({"posts": min(first + chunk, len(test)), "of": len(test)})
    return {name: found[name] for name in ROWS if name in found}, tags


def tags_of(posts: Posts) -> tuple[float, float]:
    """(mean number of hashtags a post, share of the posts that carry the most frequent one); of no post (0, 0)."""
    if not len(posts):
        return 0.0, 0.0
    return len(posts.tags_T) / len(posts), float(np.bincount(posts.tags_T.numpy()).max()) / len(posts)


def frequent_tags(posts: Posts, hashtags: int) -> list[int]:
    """At most 1,000 hashtags that mAP is averaged over: the most frequent of those that occur among its posts."""
    last = int(posts.starts_N1[min(len(posts), AP_POSTS)])
    counts = np.bincount(posts.tags_T[:last].numpy(), minlength=hashtags)
    order = np.argsort(-counts, kind="stable")[:1000]
    return [int(tag) for tag in order if counts[tag]]


def measured(scores: Scores, resamples: int) -> dict[str, Any]:
    """Each of MEASURES with its 95 % interval."""
    from moe_core.evaluation.metrics import bootstrap

    row: dict[str, Any] = {}
    for measure in MEASURES:
        found = bootstrap(scores.measure(measure), resamples, seed=0)
        row[measure] = round(found.mean, 5)
        row[f"{measure}_ci95"] = [round(found.low, 5), round(found.high, 5)]
    return row


def row_of(context: Context, name: str, scores: Scores, posts: Posts, frequent: list[int]) -> dict[str, Any]:
    from moe_core.evaluation.metrics import average_precision

    row = {"name": name, "n": len(posts)} | measured(scores, context.study.evaluation.bootstrap)
    found = average_precision(np.concatenate(scores.scores), _relevant(posts, frequent), AP_RESAMPLES, seed=0)
    row |= {"map": round(found.mean, 5), "map_ci95": [round(found.low, 5), round(found.high, 5)], "map_n": found.n}
    return row


def _relevant(posts: Posts, frequent: list[int]) -> np.ndarray:
    """(N, tags) bool: which of the posts of mAP carry which of its hashtags."""
    count = min(len(posts), AP_POSTS)
    wanted = int(posts.tags_T.max()) + 1
    return posts.targets(np.arange(count), wanted)[:, frequent].numpy() > 0


def per_expert(
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


def against(published: str, scores: Mapping[str, Scores], resamples: int) -> dict[str, dict[str, Any]]:
    """The published row less each other on the same posts: of each of PAIRED the mean with its 95 % interval."""
    from moe_core.evaluation.metrics import paired_difference

    found: dict[str, dict[str, Any]] = {}
    for name in scores:
        if name == published:
            continue
        found[name] = {}
        for measure in PAIRED:
            pair = paired_difference(scores[published].measure(measure), scores[name].measure(measure), resamples, 0)
            found[name] |= {
                f"{measure}_gain": round(pair.mean, 5),
                f"{measure}_gain_ci95": [round(pair.low, 5), round(pair.high, 5)],
            }
    return found
