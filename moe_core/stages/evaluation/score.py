"""Scores of the rows of the table on the test posts, a chunk of posts at a time.

Letters: N posts, K experts, V hashtags, T tags of all posts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from moe_core.engine.context import Context
from moe_core.evaluation.measures import MEASURES, PAIRED
from moe_core.evaluation.metrics import (
    average_precision,
    bootstrap,
    found_tags,
    paired_difference,
    per_post,
)
from moe_core.serving.bundle import Bundle
from moe_core.stages.evaluation.predictions import Control, predictions
from moe_core.stages.evaluation.rows import ROWS
from moe_core.stages.reading import RoutedPosts
from moe_core.training.posts import Posts

CHUNK = 8192  # test posts at a time: bounds the memory to CHUNK x V numbers a row of the table
CHUNK_BYTES = 256 << 20  # of their pixels
LIFTED = 6  # hashtags shown of each expert that gained, and that lost
AP_POSTS, AP_RESAMPLES = 10_000, 50  # mAP sorts posts x hashtags, so it is bounded


class TagCounts:
    """Counts, by expert, of the tags of its test posts, and of those that a row finds: has among its first five."""

    def __init__(self, experts: int, hashtags: int) -> None:
        self.tags_KV = np.zeros((experts, hashtags), np.int32)
        self.found_KV: dict[str, np.ndarray] = {}  # by row of the table

    def add(self, name: str, p_NV: Tensor, posts: Posts, expert_N: np.ndarray) -> None:
        expert_T = np.repeat(expert_N, np.diff(posts.starts_N1.numpy()))
        found_T = found_tags(p_NV, posts.tags_T, posts.starts_N1)
        found_KV = self.found_KV.setdefault(name, np.zeros_like(self.tags_KV))
        np.add.at(found_KV, (expert_T, posts.tags_T.numpy()), found_T)
        if name == "trunk":
            np.add.at(self.tags_KV, (expert_T, posts.tags_T.numpy()), 1)

    def changed(self, expert: int, row: str, hashtags: list[str]) -> dict[str, list[dict[str, Any]]]:
        """Hashtags of the expert's posts that a row finds more often, and less often, than the trunk; most first."""
        tags_V, trunk_V, mixture_V = self.tags_KV[expert], self.found_KV["trunk"][expert], self.found_KV[row][expert]
        gain_V = mixture_V - trunk_V
        order = np.argsort(-gain_V, kind="stable")

        def counts(tags: list[int]) -> list[dict[str, Any]]:
            return [
                {"tag": hashtags[v], "n": int(tags_V[v]), "trunk": int(trunk_V[v]), "mixture": int(mixture_V[v])}
                for v in tags
            ]

        return {
            "lifted": counts([v for v in order[:LIFTED] if gain_V[v] > 0]),
            "lowered": counts([v for v in order[::-1][:LIFTED] if gain_V[v] < 0]),
        }


@dataclass
class Scores:
    """Per-post measures of one row, chunk by chunk, and the scores that mAP needs."""

    chunks: list[dict[str, np.ndarray]] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)

    def measure(self, name: str) -> np.ndarray:
        return np.concatenate([chunk[name] for chunk in self.chunks])


def score(
    context: Context, bundle: Bundle, controls: Mapping[str, Control], test: RoutedPosts, device: str
) -> tuple[dict[str, Scores], TagCounts]:
    """(scores of each row that the study has, in the order of the table; counts of the tags found)."""
    scored: dict[str, Scores] = {}
    frequent = frequent_tags(test.posts, len(bundle.hashtags))
    tags = TagCounts(len(bundle.published), len(bundle.hashtags))
    chunk = max(1, min(CHUNK, CHUNK_BYTES // (3 * bundle.image_size**2)))
    for first in range(0, len(test), chunk):
        some = test.rows(np.arange(len(test))[first : first + chunk])
        some = replace(some, posts=some.posts.in_memory())  # every network reads them
        for name, p_NV in predictions(context, bundle, controls, some, device):
            scores = scored.setdefault(name, Scores())
            scores.chunks.append(per_post(p_NV, some.posts.tags_T, some.posts.starts_N1))
            if name in ("trunk", bundle.answer):
                tags.add(name, p_NV, some.posts, some.expert_N)
            if first < AP_POSTS:
                scores.scores.append(p_NV[: AP_POSTS - first, frequent].numpy().astype(np.float32))
        context.report({"posts": min(first + chunk, len(test)), "of": len(test)})
    return {name: scored[name] for name in ROWS if name in scored}, tags


def frequent_tags(posts: Posts, hashtags: int) -> list[int]:
    """Hashtags that mAP is averaged over: the most frequent of those that occur among its posts, at most 1,000."""
    last = int(posts.starts_N1[min(len(posts), AP_POSTS)])
    counts = np.bincount(posts.tags_T[:last].numpy(), minlength=hashtags)
    order = np.argsort(-counts, kind="stable")[:1000]
    return [int(tag) for tag in order if counts[tag]]


def measure_posts(scores: Scores, resamples: int) -> dict[str, Any]:
    """The mean over posts of each measure of single posts, with its 95 % interval."""
    columns: dict[str, Any] = {}
    for measure in MEASURES.values():
        if measure.of_posts:
            columns |= bootstrap(scores.measure(measure.name), resamples, seed=0).as_json(measure.name)
    return columns


def row_of(context: Context, name: str, scores: Scores, posts: Posts, relevant_NV: np.ndarray) -> dict[str, Any]:
    """A row of the table without its costs."""
    row = {"name": name, "title": ROWS[name].title, "role": ROWS[name].role, "n": len(posts)}
    precision = average_precision(np.concatenate(scores.scores), relevant_NV, AP_RESAMPLES, seed=0)
    of_posts = measure_posts(scores, context.study.evaluation.bootstrap)
    return row | of_posts | precision.as_json("map") | {"map_n": precision.n}


def relevant_tags(posts: Posts, frequent: list[int]) -> np.ndarray:
    """(N, V) bool: which of the posts of mAP carry which of its hashtags."""
    count = min(len(posts), AP_POSTS)
    wanted = int(posts.tags_T.max()) + 1
    return posts.targets(np.arange(count), wanted)[:, frequent].numpy() > 0


def per_expert(
    bundle: Bundle, scores: Mapping[str, Scores], expert_N: np.ndarray, tags: TagCounts, resamples: int
) -> list[dict[str, Any]]:
    """P@1 of the trunk and of the mixture on the test posts of each expert, and the tags that gained and lost."""
    rows = []
    trunk_N, mixture_N = (scores[name].measure("p_at_1") for name in ("trunk", bundle.answer))
    for number, (key, published) in enumerate(bundle.published.items()):
        own_N = expert_N == number
        count = int(own_N.sum())
        row = {"expert": key, "n": count, "published": published}
        if count:
            gain = paired_difference(mixture_N[own_N], trunk_N[own_N], resamples, seed=0)
            row |= {
                "trunk_p_at_1": round(float(trunk_N[own_N].mean()), 5),
                "mixture_p_at_1": round(float(mixture_N[own_N].mean()), 5),
            }
            row |= gain.as_json("p_at_1_gain") | tags.changed(number, bundle.answer, bundle.hashtags)
        rows.append(row)
    return rows


def gains_over_rows(published: str, scores: Mapping[str, Scores], resamples: int) -> dict[str, dict[str, Any]]:
    """Paired difference of the published row to each other on the same posts: mean and 95 % interval, by measure."""
    gains: dict[str, dict[str, Any]] = {}
    for name in scores:
        if name == published:
            continue
        gains[name] = {}
        for measure in (paired.name for paired in PAIRED):
            pair = paired_difference(scores[published].measure(measure), scores[name].measure(measure), resamples, 0)
            gains[name] |= pair.as_json(f"{measure}_gain")
    return gains
