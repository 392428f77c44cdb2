"""What a stage is given to work with: the study and its plan, the store, and where to report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moe_core.data.sources.scan import Shard
from moe_core.data.takedowns import Takedowns
from moe_core.engine.nodes import Nodes, Report, ThisMachine
from moe_core.engine.planner import Planner
from moe_core.settings import Study
from moe_core.store.artifact import Artifact, Spec
from moe_core.store.protocols import ArtifactStore


def silent(_: Mapping[str, Any]) -> None:
    """Reports nothing."""


@dataclass(frozen=True)
class Context:
    """One study, as it was when it was opened."""

    planner: Planner
    report: Report = silent
    by: str = "a plain call"  # who works with it, for what is written down
    nodes: Nodes = field(default_factory=ThisMachine)  # where a stage starts processes of its own

    @property
    def study(self) -> Study:
        return self.planner.state.study

    @property
    def store(self) -> ArtifactStore:
        return self.planner.store

    @property
    def root(self) -> Path:
        return self.planner.store.root

    @property
    def shards(self) -> tuple[Shard, ...]:
        return self.planner.state.shards

    @property
    def experts(self) -> list[str]:
        """Keys, in the order of the gate's numbers."""
        return list(self.planner.state.experts)

    @property
    def takedowns(self) -> Takedowns:
        return self.planner.state.takedowns

    @property
    def frozen(self) -> Context:
        """The study as its trunk and vocabulary see it: of the shards that a kept trunk was trained on, else of all."""
        return replace(self, planner=self.planner.frozen) if self.planner.frozen else self

    def spec(self, stage: str, key: str | None = None) -> Spec:
        """What the artifact is to be made from. Raises MissingInput where another must be built to know it."""
        return self.planner.known(stage, key)

    def version(self, stage: str, key: str | None = None) -> str:
        return self.spec(stage, key).version

    def find(self, stage: str, key: str | None = None) -> Artifact | None:
        """The artifact; None where it is not built yet."""
        return self.planner.find(stage, key)

    def need(self, stage: str, key: str | None = None) -> Artifact:
        """An input. Raises MissingInput, which names the asset to materialize first."""
        return self.planner.need(stage, key)
