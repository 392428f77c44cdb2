"""Tasks of `hardmoe run`, and how they ended."""

from dataclasses import dataclass, field

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
    version: str = field(default="", compare=False)  # of the artifact
    died: bool = False  # its process was lost, and Dagster's record of the run may still be open; or a rank of it was
    last: bool = field(default=False, compare=False)  # its process takes no other: a GPU failed it for good
    inputs_changed: bool = False  # not begun: what it was planned from is no longer so; `error` says what changed


@dataclass
class Summary:
    """What a run did: names of tasks, each in one list, by the last thing that happened to it."""

    made: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)  # for want of one that failed
    blocked: dict[str, str] = field(default_factory=dict)  # since their inputs changed: what they wait for
    stopped: list[str] = field(default_factory=list)  # under way when it was interrupted
    left: list[str] = field(default_factory=list)  # not begun when it was interrupted
    interrupted: bool = False
    seconds: float = 0.0

    def note(self, name: str, reused: bool) -> None:
        """A task is complete; one that is built again for changed inputs counts once."""
        self.failed.pop(name, None)
        if name not in self.made:
            if name in self.fresh:
                self.fresh.remove(name)
            (self.fresh if reused else self.made).append(name)
