"""The experts of the clusters, and those of the random partition: what differs between the two."""

from dataclasses import dataclass

MEMBERS = {"expert": "members", "random": "random_members"}  # column of the assignment -> metadata of the partition


@dataclass(frozen=True)
class Group:
    """Experts that share a decoder."""

    stage: str  # that trains them
    column: str  # of the assignment, which says whose a post is
    decoder: str  # the stage of their decoder
    generation: str  # the stage that trains them together with their decoder, in a joint mode


CLUSTERED = Group("expert", "expert", "shared_decoder", "joint_experts")
RANDOM = Group("random_expert", "random", "random_decoder", "random_joint_experts")


def group_of(stage: str) -> Group:
    """The group that a stage trains, or whose decoder it makes."""
    return RANDOM if stage in (RANDOM.stage, RANDOM.decoder, RANDOM.generation) else CLUSTERED
