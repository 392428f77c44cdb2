"""How much of a run is done, and how long the rest takes: from what this run measured so far, and earlier ones.

A training's time follows from the images that it sees and a mean speed over minutes; another step's from those of the
same asset that this run has made. A step of which nothing is known counts STEP_SECONDS.
"""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moe_core.engine.context import Context
from moe_core.stages.data.statistics import seen
from moe_core.stages.training.cost import TRAINED
from moe_core.stages.training.fit import seconds_left
from pipelines.run.task import Task

if TYPE_CHECKING:
    from pipelines.run.scheduler import Running

STEP_SECONDS = 2.0  # of starting a step and little work
ALL_POSTS = ("trunk", "trunk_same_budget", "joint_experts", "random_joint_experts")  # the others see those of a cluster


class Forecast:
    """Of the tasks of one run."""

    def __init__(self, context: Context, tasks: Sequence[Task], workers: int) -> None:
        self.context, self.workers = context, workers
        self.left = {task.name: task for task in tasks}
        self.total = len(self.left)
        self.begun: dict[str, float] = {}
        self.took: dict[str, list[float]] = {}  # seconds, by asset
        self.speed: float | None = None  # images a second of the training that was last heard of
        self.before: dict[str, float | None] = {}  # seconds as earlier runs measured them
        self.posts = 0  # training posts, once they are known

    def event(self, kind: str, task: Task) -> None:
        """What the runner tells of a task."""
        if kind == "started":
            self.begun[task.name] = time.monotonic()
        elif kind in ("done", "fresh", "failed"):
            self.left.pop(task.name, None)
            if kind == "done" and task.name in self.begun:
                self.took.setdefault(task.asset, []).append(time.monotonic() - self.begun[task.name])

    def trains(self) -> bool:
        """Whether a network is still to be trained."""
        return any(self._is_due(task) for task in self.left.values() if task.asset in TRAINED)

    def _is_due(self, task: Task) -> bool:
        try:
            return self.context.find(task.asset, task.key) is None
        except ValueError:  # what it is made from is to be made first
            return True

    def line(self, running: "Sequence[Running]", reports: Mapping[str, Mapping[str, Any]]) -> str:
        """12 of 48 done, about 3 min left."""
        from pipelines.cli.progress import as_one_says

        left = self.seconds_left(running, reports)
        how_long = "time left unknown until a network trains" if left is None else f"about {as_one_says(left)} left"
        return f"{self.total - len(self.left)} of {self.total} done, {how_long}"

    def seconds_left(self, running: "Sequence[Running]", reports: Mapping[str, Mapping[str, Any]]) -> float | None:
        """Until the last step ends; None while the time of a training that is due cannot be told."""
        from pipelines.run.estimate import Cost, Step, makespan

        steps, under_way = [], {one.task.name: one for one in running}
        for name, one in under_way.items():
            rest = self._rest(one, reports.get(name, {}))
            if rest is None:
                return None
            steps.append(Step(one.task.asset, one.task.key, "", Cost(rest)))
        for name, task in self.left.items():
            if name not in under_way:
                seconds = self._seconds(task)
                if seconds is None:
                    return None
                steps.append(Step(task.asset, task.key, "", Cost(seconds)))
        return makespan(steps, self.workers)

    def _rest(self, one: "Running", said: Mapping[str, Any]) -> float | None:
        if said.get("steps") and said.get("images_per_second"):
            self.speed = said["images_per_second"]
            return seconds_left(said)
        seconds = self._seconds(one.task)
        return None if seconds is None else max(STEP_SECONDS / 2, seconds - (time.monotonic() - one.started))

    def _seconds(self, task: Task) -> float | None:
        """Of a task that is to come."""
        if took := self.took.get(task.asset):
            return sum(took) / len(took)
        if task.asset not in TRAINED or (task.asset == "expert" and self.context.study.decoder.mode == "joint"):
            return STEP_SECONDS
        if (before := self._measured_before(task)) is not None:
            return before
        if self.speed is None:
            return None
        try:
            return self._images(task) / self.speed
        except ValueError:  # splits or vocabulary are to be made first
            return None

    def _measured_before(self, task: Task) -> float | None:
        from pipelines.run.estimate import measured

        if task.asset not in self.before:
            try:
                self.before[task.asset] = measured(self.context, None, task.asset, task.key).seconds
            except (ValueError, OSError):
                self.before[task.asset] = None
        return self.before[task.asset]

    def _images(self, task: Task) -> float:
        """Images that a training sees; the dense control, as dear as trunk and experts, counts as both."""
        study, posts = self.context.study, self._posts()
        of_trunk, of_experts = study.trunk.epochs * posts, study.expert_training.epochs * posts
        if task.asset == "trunk":
            return of_trunk
        if task.asset == "dense_same_cost":
            return of_trunk + of_experts
        return of_experts if task.asset in ALL_POSTS else of_experts / study.partition.experts

    def _posts(self) -> int:
        """Raises ValueError before splits and vocabulary are there."""
        self.posts = self.posts or seen(self.context).train or 0
        return self.posts
