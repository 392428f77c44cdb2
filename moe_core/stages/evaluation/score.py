"""Scores of the rows of the table on the test posts, a chunk of posts at a time.

Letters: N posts, K experts, V hashtags, T tags of all posts.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from moe_core.engine.context import Context
from moe_core.evaluation.measures import MEASURES, PAIRED
from moe_core.evaluation.metrics import (
    BEST,
    best_hashtags,
    bootstrap,
    found_tags,
    interval_of,
    paired_difference,
    per_post,
)
from moe_core.serving.bundle import Bundle
from moe_core.stages.evaluation.confidence import Confidence
from moe_core.stages.evaluation.hashtags import Hashtags
from moe_core.stages.evaluation.predictions import (
    Control,
    Prediction,
    control_predictions,
    mixture_predictions,
)
from moe_core.stages.evaluation.rows import ROWS
from moe_core.stages.reading import RoutedPosts
from moe_core.training.posts import Posts

CHUNK = 8192  # test posts at a time, at most
CHUNK_BYTES = 256 << 20  # of their pixels
FEATURE_BYTES = 1 << 30  # of their features by all the experts
LIFTED = 6  # hashtags shown of each expert that gained, and that lost

Measures = dict[str, np.ndarray]  # of one row, (N,) each


class TagCounts:
    """Counts, by expert, of the tags of its test posts, and of those that a row finds: has among its first five."""

    def __init__(self, experts: int, hashtags: int) -> None:
        self.tags_KV = np.zeros((experts, hashtags), np.int32)
        self.found_KV: dict[str, np.ndarray] = {}  # by row of the table

    def add(self, name: str, tags_T: Tensor, expert_T: np.ndarray, found_T: np.ndarray) -> None:
        """Counts tags of posts of these experts."""
        found_KV = self.found_KV.setdefault(name, np.zeros_like(self.tags_KV))
        np.add.at(found_KV, (expert_T, tags_T.numpy()), found_T)
        if name == "trunk":
            np.add.at(self.tags_KV, (expert_T, tags_T.numpy()), 1)

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


def score(
    context: Context, bundle: Bundle, controls: Mapping[str, Control], test: RoutedPosts, device: str
) -> tuple[dict[str, Measures], TagCounts, Confidence, Hashtags]:
    """(measures of each row that the study has, in the order of the table; counts of the tags found; what is kept of
    the published answer's probabilities; of each hashtag)."""

    def nothing() -> Measures:
        return {measure: np.full(len(test), np.nan) for measure, each in MEASURES.items() if each.of_posts}

    scored = defaultdict[str, Measures](nothing)
    tags, confidence = TagCounts(len(bundle.published), len(bundle.hashtags)), Confidence(bundle, len(test))
    hashtags = Hashtags(bundle.answer, len(bundle.hashtags), test.posts)
    pixels, features = 3 * bundle.image_size**2, 4 * bundle.router.width * (1 + len(bundle.published))
    chunk = max(1, min(CHUNK, CHUNK_BYTES // pixels, FEATURE_BYTES // features))

    def add(predicted: Iterable[Prediction], posts: Posts, expert_N: np.ndarray, first: int = 0) -> None:
        for name, rows_B, p_BV in predicted:
            tags_T, starts_B1 = posts.tag_rows(rows_B)
            best_BK, places_B = best_hashtags(p_BV, BEST), first + rows_B
            for measure, values_B in per_post(p_BV, tags_T, starts_B1, best_BK).items():
                scored[name][measure][places_B] = values_B
            if name == bundle.answer:
                right_B = scored[name]["p_at_1"][places_B]
                confidence.add(places_B, p_BV, right_B, tags_T, starts_B1)
            if name in ("trunk", bundle.answer):
                expert_T = np.repeat(expert_N[rows_B], starts_B1.diff().numpy())
                tags.add(name, tags_T, expert_T, found_tags(best_BK, tags_T, starts_B1))
            hashtags.add(name, places_B, p_BV, best_BK, tags_T, starts_B1)

    for first in range(0, len(test), chunk):
        some = test.rows(np.arange(first, min(first + chunk, len(test))))
        some = replace(some, posts=some.posts.in_memory())  # every expert reads them
        add(mixture_predictions(context, bundle, some, device), some.posts, some.expert_N, first)
        context.report({"posts": first + len(some), "of": len(test)})
    for row, control in controls.items():  # all posts at once: each of its networks is read once
        context.report({"control": row})
        add(control_predictions(context, bundle, row, control, test, device), test.posts, test.expert_N)
    return {name: scored[name] for name in ROWS if name in scored}, tags, confidence, hashtags


def measure_posts(scores: Measures, resamples: int) -> dict[str, Any]:
    """The mean over posts of each measure of single posts, with its 95 % interval."""
    columns: dict[str, Any] = {}
    for measure in MEASURES.values():
        if measure.of_posts:
            columns |= bootstrap(scores[measure.name], resamples, seed=0).as_json(measure.name)
    return columns


def row_of(
    context: Context, name: str, scores: Measures, posts: int, map_R1: np.ndarray, map_posts: int
) -> dict[str, Any]:
    """A row of the table without its costs; `map_R1`: its mAP, and that of resamples."""
    row = {"name": name, "title": ROWS[name].title, "role": ROWS[name].role, "n": posts}
    of_posts = measure_posts(scores, context.study.evaluation.bootstrap)
    return row | of_posts | interval_of(map_R1, map_posts).as_json("map") | {"map_n": map_posts}


def per_expert(
    bundle: Bundle, scores: Mapping[str, Measures], expert_N: np.ndarray, tags: TagCounts, resamples: int
) -> list[dict[str, Any]]:
    """P@1 of the trunk and of the mixture on the test posts of each expert, and the tags that gained and lost."""
    rows = []
    trunk_N, mixture_N = (scores[name]["p_at_1"] for name in ("trunk", bundle.answer))
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


def gains_over_rows(
    published: str, scores: Mapping[str, Measures], resamples: int, map_R1: Mapping[str, np.ndarray] | None = None
) -> dict[str, dict[str, Any]]:
    """Paired difference of the published row to each other on the same posts: mean and 95 % interval, by measure; of
    mAP, too, where it was computed."""
    gains: dict[str, dict[str, Any]] = {}
    for name in scores:
        if name == published:
            continue
        gains[name] = {}
        for measure in (paired.name for paired in PAIRED):
            pair = paired_difference(scores[published][measure], scores[name][measure], resamples, 0)
            gains[name] |= pair.as_json(f"{measure}_gain")
        if map_R1:
            gains[name] |= interval_of(map_R1[published] - map_R1[name], 0).as_json("map_gain")
    return gains
