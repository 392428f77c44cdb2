"""How much of a run is done, and how long the rest takes, from what the run measured so far.

A step's time follows from those of the same asset that this run built; that of a training, before there is one, from
the images that it sees and a mean speed over minutes. Another step of which nothing is known counts STEP_SECONDS.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moe_core.engine.context import Context
from moe_core.engine.planner import Name, PlannedTask
from moe_core.errors import HardmoeError
from moe_core.stages.data.statistics import seen
from moe_core.stages.experts.groups import CLUSTERED, RANDOM
from moe_core.stages.experts.modes import mode_of
from moe_core.stages.pilot.plan import images_of
from moe_core.stages.training.log import seconds_left
from moe_core.text import format_duration
from pipelines.run.scheduler import Running

STEP_SECONDS = 2.0  # of starting a step and little work


class Forecast:
    """The tasks of one run: what is left of them, and how long it takes."""

    def __init__(self, context: Context, planned: Iterable[PlannedTask], workers: int) -> None:
        self.context, self.workers = context, workers
        self.left: dict[str, Name] = {task.label: task.name for task in planned}
        self.total = len(self.left)
        self.begun: dict[str, float] = {}
        self.took: dict[str, list[float]] = {}  # seconds of runs, by asset
        self.speed: float | None = None  # images a second of the training that last reported
        self.posts = 0  # training posts, once they are known

    def event(self, kind: str, name: str) -> None:
        """What the scheduler tells of a task."""
        if kind == "started":
            self.begun[name] = time.monotonic()
        elif kind in ("done", "fresh", "failed"):
            task = self.left.pop(name, None)
            if task and kind == "done" and name in self.begun:
                self.took.setdefault(task[0], []).append(time.monotonic() - self.begun[name])

    def trains(self) -> bool:
        """Whether a network is still to be trained."""
        graph = self.context.planner.graph
        return any(graph[stage].trains and self.context.find(stage, key) is None for stage, key in self.left.values())

    def line(self, running: Sequence[Running], reports: Mapping[str, Mapping[str, Any]]) -> str:
        """Such as: 12 of 48 done, about 3 min left."""
        left = self.seconds_left(running, reports)
        how_long = "time left unknown until a network trains" if left is None else f"about {format_duration(left)} left"
        return f"{self.total - len(self.left)} of {self.total} done, {how_long}"

    def seconds_left(self, running: Sequence[Running], reports: Mapping[str, Mapping[str, Any]]) -> float | None:
        """Until the last step ends, where all workers have enough to do; None while a training's time is unknown."""
        under_way = {run.task.name: self._rest(run, reports.get(run.task.name, {})) for run in running}
        to_come = [self._seconds(stage) for name, (stage, _) in self.left.items() if name not in under_way]
        known = [seconds for seconds in (*under_way.values(), *to_come) if seconds is not None]
        if len(known) < len(under_way) + len(to_come):
            return None
        return max(sum(known) / self.workers, *known, 0.0)

    def _rest(self, run: Running, progress: Mapping[str, Any]) -> float | None:
        if progress.get("steps") and progress.get("images_per_second"):
            self.speed = progress["images_per_second"]
            return seconds_left(progress)
        seconds = self._seconds(run.task.asset)
        return None if seconds is None else max(STEP_SECONDS / 2, seconds - (time.monotonic() - run.started))

    def _seconds(self, stage: str) -> float | None:
        """Expected duration of a task that is to come."""
        if took := self.took.get(stage):
            return sum(took) / len(took)
        extracted = stage in (CLUSTERED.stage, RANDOM.stage) and mode_of(self.context.study).joint
        if not self.context.planner.graph[stage].trains or extracted:
            return STEP_SECONDS
        if self.speed is None or not self._training_posts():
            return None
        return self._images(stage) / self.speed

    def _images(self, stage: str) -> float:
        """Images that a training sees; the dense control, as dear as trunk and experts, counts as both."""
        study, posts = self.context.study, self._training_posts()
        of_trunk, of_experts = study.trunk.epochs * posts, study.expert_training.epochs * posts
        if stage == "trunk":
            return of_trunk
        if stage == "pilot":
            return images_of(self.context)
        if stage == "dense_same_cost":
            return of_trunk + of_experts
        one_cluster = self.context.planner.graph[stage].keys == "experts"
        return of_experts / study.partition.experts if one_cluster else of_experts

    def _training_posts(self) -> int:
        """0 before splits and vocabulary are there."""
        try:
            self.posts = self.posts or seen(self.context).train or 0
        except HardmoeError:
            return 0
        return self.posts
