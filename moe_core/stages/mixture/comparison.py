"""published: the comparison of a new mixture with the published one, on the validation posts as they are now; and
publication by hand, without one.

Letters: N validation posts, B of a batch, V hashtags that both know, T tags of all posts.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_core.advice import measure_for
from moe_core.data.images import resized
from moe_core.engine.context import Context
from moe_core.errors import CorruptArtifact, HardmoeError, MissingInput
from moe_core.evaluation.comparison import posts_to_decide
from moe_core.evaluation.measures import MEASURES
from moe_core.evaluation.metrics import interval_of, paired_difference, per_post, tag_statistics
from moe_core.evaluation.ranking import RankedPosts, mean_average_precision
from moe_core.serving import publication
from moe_core.serving.bundle import Bundle
from moe_core.serving.publication import UNPUBLISHED, Decision, PublicationLog
from moe_core.serving.routed import routed
from moe_core.stages import reading
from moe_core.stages.gate.posts import sample
from moe_core.stages.mixture.promotion import NONE, Judgment
from moe_core.stages.training.device import device_and_threads
from moe_core.store.artifact import Spec, StageOutput
from moe_core.training.posts import Posts

MOST_POSTS = 100_000  # validation posts compared, drawn where there are more: a difference of 0.001 shows
BATCH = 256


def make(context: Context, spec: Spec, folder: Path) -> StageOutput:
    publication.read_log(context.store.documents)  # a damaged one is reported here
    inputs = spec.inputs
    context.need("mixture")
    mixture, baseline = inputs["mixture"], UNPUBLISHED if inputs["baseline"] == NONE else inputs["baseline"]
    judgment = judge(context, mixture, baseline)
    comparison = {"publish": judgment.publish, "why": judgment.why, **judgment.scores}
    (folder / "comparison.json").write_text(json.dumps(comparison, indent=1))
    return StageOutput(comparison)


def judge(context: Context, mixture: str, baseline: str) -> Judgment:
    """Compares a version of the mixture with the published one, or with UNPUBLISHED.

    Raises CorruptArtifact for a bundle that is incomplete or of two generations.
    """
    new = open_mixture(context, mixture)
    if mixture == baseline:
        return Judgment(True, "it is published already", {})
    if baseline == UNPUBLISHED:
        return Judgment(True, "nothing was published before", {})
    try:
        old = open_mixture(context, baseline)
    except HardmoeError as why:
        return Judgment(True, f"the published mixture {baseline} cannot be opened any more ({why})", {})
    posts, hashtags = _validation_posts(context, new, old)
    if not set(new.hashtags) & set(old.hashtags):
        return Judgment(False, f"it has no hashtag in common with the published mixture {baseline}", {})
    if not len(posts):
        return Judgment(True, "no validation post carries a hashtag of both: published without a comparison", {})
    judgment = judgment_of(context.study.publish.margin, baseline, _compare(context, posts, hashtags, new, old))
    if not judgment.publish and f"mixture {baseline}" in context.takedowns.saw:
        return replace(judgment, why=f"{judgment.why}; the published one saw posts that were taken down since")
    return judgment


def open_mixture(context: Context, version: str) -> Bundle:
    """Opened and checked. Raises HardmoeError where it is missing, damaged, or not what its artifact says."""
    artifact = context.store.get("mixture", None, version)
    if artifact is None:
        there = ", ".join(a.version for a in context.store.versions("mixture", None)) or "none"
        raise MissingInput(f"no mixture {version} in {context.store.uri}: there are {there}", "mixture")
    bundle = Bundle(artifact)
    for name, version_in_it in bundle.parts.items():
        if artifact.inputs.get(name) != version_in_it:
            raise CorruptArtifact(
                f"{artifact.uri} holds {name} {version_in_it}, it was made from {artifact.inputs.get(name)}: "
                "delete the folder and run again"
            )
    return bundle


def _validation_posts(context: Context, new: Bundle, old: Bundle) -> tuple[Posts, list[str]]:
    """Posts that carry a hashtag which both know, with those hashtags only, and the hashtags."""
    index = reading.index(context)
    wanted_N = sample(reading.held_out(context, index, "validation"), MOST_POSTS, seed=0)
    posts = reading.posts_where(context, index, wanted_N)
    both = set(new.hashtags) & set(old.hashtags)
    current = reading.vocabulary(context).hashtags
    hashtags = [tag for tag in current if tag in both]
    place = {tag: number for number, tag in enumerate(hashtags)}
    place_of = np.array([place.get(tag, -1) for tag in current], np.int64)
    tags_T = place_of[posts.tags_T.numpy()]
    owner_T = np.repeat(np.arange(len(posts)), np.diff(posts.starts_N1.numpy()))[tags_T >= 0]
    counts_N = np.bincount(owner_T, minlength=len(posts))
    starts_N1 = np.concatenate([[0], counts_N.cumsum()]).astype(np.int64)
    posts = Posts(posts.images, torch.from_numpy(tags_T[tags_T >= 0]), torch.from_numpy(starts_N1))
    return posts.subset(np.flatnonzero(counts_N)), hashtags


def _compare(context: Context, posts: Posts, hashtags: list[str], new: Bundle, old: Bundle) -> dict[str, Any]:
    """Measures of both among the hashtags that both know: P@1 and the one that publish.measure says, each with its
    paired difference, and the cross-entropy where both know the same hashtags."""
    tags_a_post, top_share = tag_statistics(posts.tags_T, len(posts))
    measure = measure_for(tags_a_post, top_share, new.loss, context.study.publish.measure)
    device = device_and_threads(context.study, parallel=False, hashtags=len(hashtags))
    ranks = measure == "map"
    both = {n: _scores(context, bundle, posts, hashtags, device, ranks) for n, bundle in (("new", new), ("old", old))}
    scores = {name: measures for name, (measures, _) in both.items()}
    found: dict[str, Any] = {
        "validation_posts": len(posts),
        "hashtags_compared": len(hashtags),
        "measure": measure,
        "tags_a_post": round(tags_a_post, 3),
    }
    same = set(new.hashtags) == set(old.hashtags) == set(hashtags)
    of_posts = dict.fromkeys(("p_at_1", *(() if ranks else (measure,))))
    for name in (*of_posts, *(("cross_entropy",) if same else ())):
        found[f"{name}_new"], found[f"{name}_published"] = (
            round(float(scores[which][name].mean()), 5) for which in ("new", "old")
        )
    resamples = context.study.evaluation.bootstrap
    for name in of_posts:
        gain = paired_difference(scores["new"][name], scores["old"][name], resamples, seed=0)
        found |= gain.as_json(f"{name}_gain")
    return found | _map(both["new"][1], both["old"][1], posts, resamples) if ranks else found


def _map(new: RankedPosts, old: RankedPosts, posts: Posts, resamples: int) -> dict[str, Any]:
    """mAP of both, and its difference."""
    tags_T, starts_N1 = posts.tags_T.numpy(), posts.starts_N1.numpy()
    new_R1, old_R1 = (mean_average_precision(r, tags_T, starts_N1, resamples, seed=0) for r in (new, old))
    found = {"map_new": round(float(new_R1[0]), 5), "map_published": round(float(old_R1[0]), 5)}
    return found | interval_of(new_R1 - old_R1, len(posts)).as_json("map_gain")


def _scores(
    context: Context, bundle: Bundle, posts: Posts, hashtags: list[str], device: str, ranks: bool
) -> tuple[dict[str, np.ndarray], RankedPosts]:
    """(measures of each post, (N,); the posts as its hashtags rank them, where mAP is wanted), by the answer that the
    bundle gives its users, among some of its hashtags."""
    number = {tag: n for n, tag in enumerate(bundle.hashtags)}
    columns_V = torch.tensor([number[tag] for tag in hashtags], device=device)

    def batches() -> Iterator[np.ndarray]:
        for first in range(0, len(posts), BATCH):
            rows_B = np.arange(first, min(first + BATCH, len(posts)))
            yield resized(posts.images.read(rows_B), bundle.image_size)

    chunks: list[dict[str, np.ndarray]] = []
    ranked = RankedPosts(len(posts) if ranks else 0, len(hashtags))
    first = 0
    for answer in routed(bundle, batches(), device=device):
        p_BV: Tensor = answer.probabilities_BV[:, columns_V]
        starts_B1 = posts.starts_N1[first : first + len(p_BV) + 1]
        tags_T = posts.tags_T[starts_B1[0] : starts_B1[-1]]
        chunks.append(per_post(p_BV, tags_T, starts_B1 - starts_B1[0]))
        if ranks:
            ranked.add(np.arange(first, first + len(p_BV)), p_BV, tags_T, starts_B1 - starts_B1[0])
        first += len(p_BV)
        context.report({"posts": first, "of": len(posts)})
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}, ranked


def judgment_of(margin: float, baseline: str, scores: dict[str, Any]) -> Judgment:
    """Publishes where the measure that suits the posts is at most `margin` below that of the published mixture."""
    measure = scores["measure"]
    gain = scores[f"{measure}_gain"]
    publish = gain >= -margin
    new, old = scores[f"{measure}_new"], scores[f"{measure}_published"]
    than = f"{MEASURES[measure].title} {new:.4f} against {old:.4f} of {baseline}"
    beyond = f"within publish.margin {margin}" if publish else f"more than publish.margin {margin} below it"
    why = than + (f", {beyond}" if gain < 0 else "") + f", on {scores['validation_posts']:,} validation posts"
    low, high = scores[f"{measure}_gain_ci95"]
    if not publish and high >= -margin:
        enough = posts_to_decide(gain + margin, low + margin, high + margin, scores["validation_posts"])
        why += (
            f"; that may be chance (95 % of the difference: {low:+.4f} to {high:+.4f}): `hardmoe publish --version V "
            "--force` publishes it, and more validation posts (data.validation) tell better"
            + (f": about {enough:,} would decide" if enough else "")
        )
    entropy, other = (scores.get(f"cross_entropy_{which}") for which in ("new", "published"))
    if publish and entropy is not None and entropy > other:
        why += f"; its cross-entropy is higher, {entropy:.4f} against {other:.4f}"
    return Judgment(publish, why, scores | {"margin": margin})


def force(context: Context, mixture: str) -> PublicationLog:
    """Publishes a version by hand, whatever it scores. Raises HardmoeError for an incomplete bundle."""

    def forced(log: PublicationLog) -> PublicationLog:
        if log.published == mixture:
            return log
        why = "by hand, without a comparison"
        return log.adding(Decision("forced", mixture, log.published, mixture, why, context.by))

    with context.store.keeping():
        open_mixture(context, mixture)
        return publication.change(context.store.documents, forced)


def roll_back(context: Context) -> PublicationLog:
    """Publishes what was published before. Raises HardmoeError where there is none, or its bundle is incomplete."""

    def rolled_back(log: PublicationLog) -> PublicationLog:
        after = log.rolled_back(context.by)
        open_mixture(context, after.published)
        return after

    with context.store.keeping():
        return publication.change(context.store.documents, rolled_back)
