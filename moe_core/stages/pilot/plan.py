"""What a pilot trains, and what that costs: by the settings and the number of posts, before anything is trained."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from moe_core.engine.context import Context
from moe_core.errors import HardmoeError, TooFewPosts
from moe_core.settings import Study
from moe_core.stages.data.statistics import seen
from moe_core.store.artifact import Artifact
from moe_core.text import format_duration

HALVINGS = 2  # of the largest share
STEPS = 8  # of the smallest training, below which a number of experts is left out: fewer tell nothing of its end
VALIDATION = 10  # validation posts an expert, on average, below which a number of experts is left out
MOST_VALIDATION = 100_000  # validation posts measured on, drawn where there are more


@dataclass(frozen=True)
class PilotPlan:
    """The numbers of experts to compare, and the shares of a cluster's posts that experts are trained on."""

    experts: tuple[int, ...]
    clusters: Mapping[int, int]  # drawn of each number
    shares: tuple[float, ...]  # rising
    left_out: Mapping[int, str]  # number of experts -> why

    @property
    def budgets(self) -> float:
        """Images that the pilot trains on, by those that all experts of a mixture are trained on."""
        of_experts = sum(self.clusters[experts] / experts for experts in self.experts)
        return (1 + of_experts) * sum(self.shares)

    @property
    def trainings(self) -> int:
        return (1 + sum(self.clusters[experts] for experts in self.experts)) * len(self.shares)


def shares_of(study: Study) -> tuple[float, ...]:
    """Shares of a cluster's posts, rising: the largest, its half, its quarter."""
    return tuple(study.pilot.share / 2**halvings for halvings in range(HALVINGS, -1, -1))


def plan_of(study: Study, train: int | None, validation: int | None) -> PilotPlan:
    """The plan for so many posts; None where they are not known yet, and nothing is left out for them.

    Raises TooFewPosts where there is no validation post, or every number of experts is too large.
    """
    wanted, shares = sorted(set(study.pilot.experts)), shares_of(study)
    if validation == 0:
        raise TooFewPosts(
            f"the pilot measures on validation posts, and there is none that carries a hashtag: wanted at least "
            f"{VALIDATION * wanted[0]:,} for {wanted[0]} experts; raise data.validation, or give a split column"
        )
    training, fine, left_out = study.expert_training, study.partition.fine, dict[int, str]()
    for experts in wanted:
        each = math.inf if train is None else train / experts * shares[0]
        steps = training.epochs * each / training.batch_size / training.accumulate
        of_posts = f"{shares[0]:.3g} of the {(train or 0) // experts:,} training posts an expert is"
        if fine and experts > fine:
            left_out[experts] = f"partition.fine is {fine}: so many centroids cannot be packed into more experts"
        elif each < training.batch_size:
            left_out[experts] = f"{of_posts} less than a batch of {training.batch_size}"
        elif steps < STEPS:
            left_out[experts] = f"{of_posts} trained for {steps:.1f} steps, wanted {STEPS}"
        elif validation is not None and validation < VALIDATION * experts:
            left_out[experts] = f"{validation:,} validation posts, wanted {VALIDATION * experts:,}: {VALIDATION} each"
    kept = tuple(experts for experts in wanted if experts not in left_out)
    if not kept:
        why = "; ".join(f"K = {experts}: {reason}" for experts, reason in left_out.items())
        raise TooFewPosts(
            f"the posts are too few for each of pilot.experts ({why}): name smaller numbers, raise pilot.share, or add "
            "posts"
        )
    return PilotPlan(kept, {k: min(k, study.pilot.clusters) for k in kept}, shares, left_out)


def current_plan(context: Context) -> tuple[PilotPlan, int | None]:
    """(the plan, how many training posts there are), as far as posts are counted already.

    Raises TooFewPosts as `plan_of` does.
    """
    try:
        counts = seen(context.frozen)
    except (HardmoeError, OSError):
        return plan_of(context.study, None, None), None
    return plan_of(context.study, counts.train, counts.validation), counts.train


def images_of(context: Context) -> float:
    """Images that the pilot trains on; 0 where posts are not counted yet, or too few."""
    try:
        plan, train = current_plan(context)
    except TooFewPosts:
        return 0.0
    return plan.budgets * context.study.expert_training.epochs * (train or 0)


def cost_lines(context: Context) -> list[str]:
    """What the pilot will train and take. Raises TooFewPosts as `plan_of` does."""
    plan, train = current_plan(context)
    names, parts = ", ".join(map(str, plan.experts)), ", ".join(f"{share:.3g}" for share in plan.shares)
    images = plan.budgets * context.study.expert_training.epochs * (train or 0)
    speed = _speed(context.find("trunk"))
    how_long = f", about {format_duration(images / speed)} at the trunk's {speed:,.0f} images/s" if speed else ""
    found = [
        f"K = {names}: {plan.trainings} trainings on {parts} of the posts of a cluster, and of the epochs of training "
        "the trunk on",
        f"Cost: {100 * plan.budgets:.0f} % of the images that the experts of one mixture are trained on"
        + (f", {images:,.0f} images{how_long}" if train else ""),
        "(to train a mixture of each K, and the trunk on for the budget of one, would be "
        f"{100 * (len(plan.experts) + 1)} %; pilot.share and pilot.experts make it less)",
    ]
    return found + [f"Left out: K = {experts}: {why}" for experts, why in plan.left_out.items()]


def _speed(trunk: Artifact | None) -> float:
    """Images a second of the trunk's training; 0 where it is not known."""
    if trunk is None or not trunk.metadata.get("seconds"):
        return 0.0
    images, seconds = (float(str(trunk.metadata[name])) for name in ("training_images", "seconds"))
    return images / seconds
