"""Rows of the comparison table, in its order: what each stands for, what answers in it, what it costs, what it needs.

A control is added by a row here, and by the stage that trains its networks where no stage does yet. What the evaluation
reads, the costs, the order of the table, the embedding agreement and the comparison in words follow from it.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from moe_core.stages.evaluation.costs import Costs, RowCost

Role = Literal["floor", "cheaper", "same_cost", "ablation", "variant", "answer"]
"""Why a row is in the table: what anybody gets for nothing, what costs less than the mixture, what costs the same, what
lacks one of its parts, another way to answer with the same networks, and the mixture's own answers."""


@dataclass(frozen=True)
class Networks:
    """Networks trained to compare with."""

    stage: str  # that trains them: one an expert where they are routed, else one alone
    decoder: str = ""  # the stage of the last layer through which routed ones answer; "": each through its own
    routed_by: Literal["expert", "random"] | None = None  # column of the assignment that says which one answers a post
    space: str = ""  # names their embedding where its agreement is measured

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages that are read."""
        return (self.decoder, self.stage) if self.decoder else (self.stage,)


@dataclass(frozen=True)
class Row:
    """One row; `title` names it in a sentence."""

    name: str
    title: str
    role: Role
    cost: Callable[[Costs], RowCost]
    networks: Networks | None = None  # None: the mixture's own, or none


def with_router(row: Row) -> tuple[Row, Row]:
    """The row, and that of the same networks with the trunk's logits mixed into theirs."""
    role: Role = "answer" if row.role == "answer" else "variant"
    return row, Row(f"{row.name}_router", f"{row.title} with the trunk's answer mixed in", role, row.cost)


ROWS = {
    row.name: row
    for row in (
        Row("most_frequent", "answering with the most frequent hashtags", "floor", lambda costs: costs.nothing),
        Row("trunk", "the trunk", "cheaper", lambda costs: costs.one_network("trunk")),
        Row(
            "trunk_same_budget",
            "the trunk trained for the same budget",
            "same_cost",
            lambda costs: costs.one_network("trunk", "trunk_same_budget"),
            Networks("trunk_same_budget"),
        ),
        Row(
            "dense_same_cost",
            "the dense network of the same cost",
            "same_cost",
            lambda costs: costs.as_recorded("dense_same_cost"),
            Networks("dense_same_cost"),
        ),
        *with_router(
            Row(
                "random_partition",
                "experts of a random partition",
                "ablation",
                lambda costs: costs.routed("random_expert", 1),
                Networks("random_expert", decoder="random_decoder", routed_by="random"),
            )
        ),
        *with_router(Row("mixture_top1", "the nearest expert", "answer", lambda costs: costs.routed("expert", 1))),
        Row("mixture_topk", "the nearest experts", "answer", lambda costs: costs.routed("expert", costs.topk)),
        *with_router(
            Row(
                "separate_decoders_top1",
                "experts with decoders of their own",
                "ablation",
                lambda costs: costs.routed("separate_expert", 1, own_decoders=True),
                Networks("separate_expert", routed_by="expert", space="separate_decoders"),
            )
        ),
        Row("best_expert_oracle", "the best expert", "answer", lambda costs: costs.routed("expert", costs.experts)),
    )
}
CONTROL_STAGES = tuple(stage for row in ROWS.values() if row.networks for stage in row.networks.stages)


def controls_of(stages: Container[str]) -> dict[str, Networks]:
    """Networks of the controls that a study with these stages has, by row."""
    return {row.name: row.networks for row in ROWS.values() if row.networks and row.networks.stage in stages}
