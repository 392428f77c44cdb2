"""`--dry-run`: what would run and why, and how long that took before. Writes nothing.

A duration is the seconds of the last run of the same asset partition in Dagster's record, else of the asset.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import dagster as dg

from assets.study import key_of
from moe_core.engine.context import Context
from moe_core.engine.planner import PlannedTask
from moe_core.stages.data.statistics import warnings_of
from moe_core.store.artifact import name_of
from moe_core.text import format_duration, shown
from pipelines.instance.opening import opened_if_there
from pipelines.run.status import State, failed_runs, states

RECORDS = 100  # of an asset, looked at for its last durations


@dataclass(frozen=True)
class Step:
    """One task that is due."""

    asset: str
    key: str | None
    why: str
    seconds: float | None  # of the last run of it; None where none is recorded


@dataclass(frozen=True)
class RunPlan:
    """What a command would do."""

    steps: list[Step]
    fresh: int
    workers: int
    warnings: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Sum over all steps that ran before, one after the other."""
        return sum(step.seconds or 0 for step in self.steps)

    @property
    def never_run(self) -> list[str]:
        return [name_of(step.asset, step.key) for step in self.steps if step.seconds is None]

    def as_json(self) -> dict[str, Any]:
        return {
            "will_run": [asdict(step) for step in self.steps],
            "fresh": self.fresh,
            "workers": self.workers,
            "warnings": list(self.warnings),
            "estimate": {"seconds": round(self.seconds, 1), "not_measured_before": self.never_run},
        }

    def as_lines(self) -> Iterator[str]:
        """A line a step, and the sum of what they took before."""
        for step in self.steps:
            took = "never run" if step.seconds is None else format_duration(step.seconds)
            yield f"{name_of(step.asset, step.key):28} {took:>12}  {shown(step.why, 4000)}"
        yield from (f"Warning: {line}" for line in self.warnings)
        yield f"{len(self.steps)} would run, {self.fresh} are fresh"
        unknown = len(self.never_run)
        if self.steps and unknown < len(self.steps):
            more = f"; {unknown} never ran before" if unknown else ""
            yield f"Last time they took {format_duration(self.seconds)} in all, {self.workers} at once{more}"


def run_plan(context: Context, planned: Sequence[PlannedTask], force: bool, workers: int) -> RunPlan:
    """What a run of these tasks would do, in the order in which they would start."""
    steps, warned = list[Step](), False
    with opened_if_there(context.root) as instance:
        last_seconds = cache(partial(_last_seconds, instance))
        failed = failed_runs(instance, context.study.name)
        for task, state in zip(planned, states(context, planned, failed), strict=True):
            if task.artifact and not force:
                continue
            seconds = last_seconds(task.stage)
            took = seconds.get(task.key, next(iter(seconds.values()), None))
            steps.append(Step(task.stage, task.key, _why(task, state, force), took))
            warned |= context.planner.graph[task.stage].trains
    doubts = warnings_of(context) if warned else []
    return RunPlan(steps, len(planned) - len(steps), workers, tuple(doubts))


def _why(task: PlannedTask, state: State, force: bool) -> str:
    if state.state == "running":
        return "another process builds it now: waited for"
    if task.spec is None:
        waits = str(task.blocked)
        return waits if state.state == "missing" else f"{waits}; runs where its inputs changed"
    if force:
        return "forced"
    return f"failed before: {state.why}" if state.state == "failed" else state.why or state.state


def _last_seconds(instance: dg.DagsterInstance | None, stage: str) -> dict[str | None, float]:
    """Seconds of the last run of each partition that built something."""
    seconds: dict[str | None, float] = {}
    records = instance.fetch_materializations(key_of(stage), limit=RECORDS).records if instance else []
    for event in (record.asset_materialization for record in reversed(records)):
        took, reused = (event.metadata.get(name) for name in ("step seconds", "reused")) if event else (None, None)
        if event and took and reused and not reused.value:
            seconds[event.partition] = float(str(took.value))
    return seconds
