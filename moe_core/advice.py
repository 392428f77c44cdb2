"""What the size and tags of a collection suggest: experts, loss, share of validation posts, the measure to judge by.

And warnings before hours of training. Pure functions of a few counts, for `init`, `run` and the comparison alike.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from moe_core.settings import Study

MANY_TAGS = 3.0  # tags a post beyond which softmax, whose target is 1/k, shares one answer, and P@1 says little
SIGMOID_EPOCHS = 20  # of the trunk: with fewer the sigmoid lags behind (docs/history/results.md)
HALF = 0.5  # share of posts that carry one hashtag, beyond which answering with it alone has a high P@1
POSTS_AN_EXPERT = 1000  # training posts: an expert of fewer overfits before it gains on the trunk
MARGIN_POSTS = 3  # validation posts that publish.margin must be worth: of fewer, chance decides
MOST_VALIDATION = 0.2  # of all posts: more is better used for training
DISAGREE = 0.1  # share of posts on which two mixtures differ: assumed (trunk and mixture of the demo: 0.17)


@dataclass(frozen=True)
class Seen:
    """Counts of a collection, as far as they are known: before ingest a sample's, afterwards exact ones.

    `posts` are usable ones of all splits. `users` is 0 where posts have no user. `train` and `validation` are the posts
    of these splits; None: by the study's shares and `given`, the shares of posts whose split the source gives.
    `top_share` is the share of posts that carry the most frequent tag.
    """

    posts: int
    tags_a_post: float  # mean over posts that carry any
    distinct_tags: int
    users: int = 0
    train: int | None = None
    validation: int | None = None
    top_share: float = 0.0
    given: Mapping[str, float] = field(default_factory=dict)

    @property
    def divided(self) -> float:
        """Share of posts that the source does not hold out itself: splits are taken from them by hash."""
        return 1 - sum(self.given.get(name, 0.0) for name in ("test", "validation", "router"))

    def train_of(self, study: Study) -> int:
        if self.train is not None:
            return self.train
        test = 0.0 if self.given.get("test") else study.data.test
        return int(self.posts * self.divided * (1 - test - study.data.router - study.data.validation))

    def validation_of(self, study: Study) -> int:
        if self.validation is not None:
            return self.validation
        return int(self.posts * (self.given.get("validation", 0.0) + self.divided * study.data.validation))


@dataclass(frozen=True)
class Proposal:
    """Settings that suit what was seen, each with its reason where it is not the study's own."""

    experts: int  # partition.experts
    loss: Literal["softmax", "sigmoid"]  # trunk.loss and expert_training.loss
    validation: float  # data.validation
    why: tuple[str, ...] = ()

    def apply(self, study: Study) -> Study:
        """The study with these settings."""
        return study.changed(
            partition={"experts": self.experts},
            trunk={"loss": self.loss},
            expert_training={"loss": self.loss},
            data={"validation": self.validation},
        )


def propose(seen: Seen, study: Study) -> Proposal:
    """K, loss and share of validation posts for a collection; a setting of the study that fits is left as it is.

    K: the largest power of two that gives each expert POSTS_AN_EXPERT training posts, at least 2 and at most the
    study's and the number of distinct tags. Validation: so many posts that publish.margin is MARGIN_POSTS of them, at
    most MOST_VALIDATION. Loss: sigmoid beyond MANY_TAGS a post, where the trunk has the epochs for it.
    """
    why = []
    validation = _validation(seen, study)
    if validation != study.data.validation:
        study = study.changed(data={"validation": validation})
        why.append(f"data.validation {validation:g}: {seen.validation_of(study):,} validation posts to choose by")
    experts = _experts(seen, study)
    if experts != study.partition.experts:
        train = seen.train_of(study)
        why.append(f"partition.experts {experts}: about {train // experts:,} training posts an expert")
    loss = study.trunk.loss
    if _wants_sigmoid(seen, study):
        loss = "sigmoid"
        judged = ", and mAP judges the mixtures" if study.publish.measure == "auto" else ""
        why.append(f'loss "sigmoid": {seen.tags_a_post:.1f} tags a post, softmax suits up to {MANY_TAGS:g}{judged}')
    return Proposal(experts, loss, validation, tuple(why))


def _validation(seen: Seen, study: Study) -> float:
    if not seen.posts or seen.validation_of(study) * study.publish.margin >= MARGIN_POSTS or not study.publish.margin:
        return study.data.validation
    missing = MARGIN_POSTS / study.publish.margin / seen.posts - seen.given.get("validation", 0.0)
    wanted = math.ceil(100 * missing / seen.divided) / 100 if seen.divided > 0 else 0.0
    return max(study.data.validation, min(MOST_VALIDATION, wanted))


def _experts(seen: Seen, study: Study) -> int:
    most = min(study.partition.experts, max(seen.distinct_tags, 1))
    train = seen.train_of(study)
    if train >= most * POSTS_AN_EXPERT:
        return most
    return min(most, max(2, 2 ** int(math.log2(max(train // POSTS_AN_EXPERT, 1)))))


def warnings(seen: Seen, study: Study) -> list[str]:
    """What is likely to disappoint, a line each, with what to do; none where nothing is."""
    found = []
    better = propose(seen, study)
    if warning := _few_validation_posts(seen, study, better):
        found.append(warning)
    train, experts = seen.train_of(study), study.partition.experts
    if train < experts * POSTS_AN_EXPERT:
        fewer = (
            f"set partition.experts = {better.experts}"
            if better.experts < experts
            else f"below {2 * POSTS_AN_EXPERT:,} in all, expect no gain over the trunk"
        )
        found.append(
            f"{train:,} training posts are {train // experts:,} for each of {experts} experts; below "
            f"{POSTS_AN_EXPERT:,} an expert overfits: {fewer}, or add posts"
        )
    if _wants_sigmoid(seen, study):
        found.append(
            f"{seen.tags_a_post:.1f} tags a post: softmax shares one answer among them; set trunk.loss and "
            f'expert_training.loss to "sigmoid" (softmax suits up to {MANY_TAGS:g})'
        )
    if seen.top_share > HALF:
        found.append(
            f"one hashtag is on {100 * seen.top_share:.0f} % of the training posts: answering with it alone has a P@1 "
            f"of about {seen.top_share:.2f}; look at the row most_frequent, and consider data.stop_tags"
        )
    return found


def _wants_sigmoid(seen: Seen, study: Study) -> bool:
    trunk = study.trunk
    return trunk.loss == "softmax" and seen.tags_a_post > MANY_TAGS and trunk.epochs >= SIGMOID_EPOCHS


def _few_validation_posts(seen: Seen, study: Study, better: Proposal) -> str:
    posts, margin = seen.validation_of(study), study.publish.margin
    if posts * margin >= MARGIN_POSTS or not margin:
        return ""
    if not posts:
        return "no validation post: answers, experts and publication are decided unseen; set data.validation"
    raised = (
        f"set data.validation = {better.validation:g}"
        if better.validation > study.data.validation
        else "add posts, or widen publish.margin"
    )
    worth = f"{posts * margin:.1f} {'of a post' if posts * margin < 1 else 'posts'}"
    return (
        f"{posts:,} validation posts: publish.margin {margin:g} is {worth}, and differences below about "
        f"{smallest_difference(posts):.2f} may be chance: {raised}"
    )


def smallest_difference(posts: int) -> float:
    """The difference of two mixtures' P@1 that so many posts tell from zero (95 %), when they differ on DISAGREE of
    them: 1.96 standard errors of a paired difference of proportions."""
    return 1.96 * math.sqrt(DISAGREE / posts)


def measure_for(tags_a_post: float, top_share: float = 0.0, loss: str = "softmax", wanted: str = "auto") -> str:
    """The measure to compare mixtures by: the `wanted` one of publish.measure; or by itself mAP with the sigmoid loss,
    which is for posts of many tags; else P@1 up to MANY_TAGS tags a post, unless one hashtag is on more than HALF of
    the posts; else R@5 up to five tags a post, and R@10 beyond."""
    if wanted != "auto":
        return wanted
    if loss == "sigmoid":
        return "map"
    if tags_a_post <= MANY_TAGS and top_share <= HALF:
        return "p_at_1"
    return "r_at_5" if tags_a_post <= 5 else "r_at_10"
