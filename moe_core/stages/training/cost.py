"""Cost of a study's training so far."""

from dataclasses import dataclass

from moe_core.engine.context import Context

MEMBERS_KEPT = {"expert": "expert", "separate_expert": "expert", "random_expert": "random"}  # stage -> column


@dataclass(frozen=True)
class TrainingCost:
    """Cost of the networks of one asset that are in the store, superseded ones too."""

    asset: str
    networks: int
    seconds: float  # of the attempts that ended; one that was killed is not counted
    training_images: int


def training_cost(context: Context) -> list[TrainingCost]:
    """Cost of each asset that has trained networks."""
    costs = []
    for name in (name for name, stage in context.planner.graph.items() if stage.trains):
        # a network of a generation is counted with it
        networks = [a.metadata for a in context.store.everything(name) if "generation" not in a.metadata]
        if networks:
            seconds, images = (sum(network[total] for network in networks) for total in ("seconds", "training_images"))
            costs.append(TrainingCost(name, len(networks), round(seconds, 3), images))
    return costs
