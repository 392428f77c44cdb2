"""What a study's training has cost so far."""

from dataclasses import dataclass

from moe_core.engine.context import Context

MEMBERS_KEPT = {"expert": "expert", "separate_expert": "expert", "random_expert": "random"}  # stage -> column


@dataclass(frozen=True)
class TrainingCost:
    """Of the networks of one asset that are in the store, superseded ones too."""

    asset: str
    networks: int
    seconds: float  # of the attempts that ended; one that was killed is not counted
    training_images: int


def training_cost(context: Context) -> list[TrainingCost]:
    """Of each asset that trains networks and has any."""
    found = []
    for name in (name for name, stage in context.planner.graph.items() if stage.trains):
        said = [a.metadata for a in context.store.everything(name) if "generation" not in a.metadata]  # counted there
        if said:
            seconds, images = (sum(one[what] for one in said) for what in ("seconds", "training_images"))
            found.append(TrainingCost(name, len(said), round(seconds, 1), images))
    return found
