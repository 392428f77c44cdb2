"""One task of `hardmoe run`, and how it ended."""

from dataclasses import dataclass

from moe_core.store.artifact import name_of

SETTINGS = "study.toml changed"


@dataclass(frozen=True)
class Task:
    """One asset partition to materialize, in a Dagster run of its own."""

    asset: str
    key: str | None
    force: bool = False  # also where the artifact exists

    @property
    def name(self) -> str:
        return name_of(self.asset, self.key)


@dataclass(frozen=True)
class TaskResult:
    """How a task ended."""

    error: str = ""  # "" on success
    reused: bool = False  # the artifact existed
    died: bool = False  # its process ended without an answer, so Dagster's record of the run is still open
    inputs_changed: bool = False  # not begun: what it was planned from is no longer so; `error` says what changed
