"""What a run did."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Summary:
    """Names of tasks, each in one list: the last thing that happened to it."""

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
