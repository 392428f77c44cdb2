"""Which tasks are ready: pure bookkeeping of what waits for what. Knows no process and no store."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from moe_core.engine.stage import Graph

Name = tuple[str, str | None]  # stage and key


class Dag:
    """Tasks of one plan. A task is ready when what it reads is done: the same shard of a stage upstream that has
    shards too, else all tasks of that stage. Each step costs what it sets free, not the number of tasks."""

    def __init__(self, graph: Graph, tasks: Iterable[Name], edges: bool = True) -> None:
        self._graph = graph
        self._waiting = list(dict.fromkeys(tasks))
        self._left = Counter(stage for stage, _ in self._waiting)
        self._needs: dict[Name, int] = {}
        self._dependents: dict[object, list[Name]] = defaultdict(list)
        self._ready: dict[Name, None] = {}
        pending = set(self._waiting)
        for task in self._waiting:
            needs = list(self._reads(task, pending)) if edges else []
            self._needs[task] = len(needs)
            for need in needs:
                self._dependents[need].append(task)
            if not needs:
                self._ready[task] = None

    def _reads(self, task: Name, pending: set[Name]) -> Iterable[object]:
        """What must be done first: a task, or a whole stage by its name."""
        stage, key = task
        for upstream in self._graph.upstream[stage]:
            same_shard = self._graph[upstream].keys == self._graph[stage].keys == "shards"
            if same_shard and (upstream, key) in pending:
                yield upstream, key
            elif not same_shard and self._left[upstream]:
                yield upstream

    @property
    def ready(self) -> list[Name]:
        """Tasks that may start, in the order of the plan."""
        return list(self._ready)

    @property
    def left(self) -> list[Name]:
        """Tasks that are neither started nor given up, in the order of the plan."""
        return [task for task in self._waiting if task in self._needs]

    @property
    def unfinished(self) -> bool:
        """Whether a task is neither started nor given up."""
        return bool(self._needs)

    def start(self, task: Name) -> None:
        """A ready task begins."""
        del self._ready[task], self._needs[task]

    def done(self, task: Name) -> None:
        """A started task is complete: what waited for it may become ready."""
        stage, _ = task
        self._left[stage] -= 1
        self._release(task)
        if not self._left[stage]:
            self._release(stage)

    def _release(self, need: object) -> None:
        for task in self._dependents.pop(need, ()):
            if task in self._needs:
                self._needs[task] -= 1
                if not self._needs[task]:
                    self._ready[task] = None

    def give_up(self, task: Name) -> list[Name]:
        """A started task failed. Returns what depends on it and cannot start any more."""
        lost = [other for other in self.left if task[0] in self._graph.above[other[0]]]
        if lost:
            for other in lost:
                del self._needs[other]
                self._ready.pop(other, None)
        return lost
