"""Which tasks are ready: pure bookkeeping of what waits for what. Knows no process and no store."""

from bisect import insort
from collections.abc import Collection, Iterable, Iterator
from graphlib import TopologicalSorter

from moe_core.engine.planner import Name
from moe_core.engine.stage import Graph


class Dag:
    """Tasks of one plan. A task is ready when what it reads is done: the same shard of a stage upstream that has
    shards too, else all tasks of that stage. Each step costs what it sets free, not the number of tasks."""

    def __init__(self, graph: Graph, tasks: Iterable[Name]) -> None:
        self._graph = graph
        self._tasks = list(dict.fromkeys(tasks))
        self._waiting = {task: place for place, task in enumerate(self._tasks)}  # neither started nor given up
        self._started: set[Name] = set()  # and not done
        self._ready: list[int] = []  # places, in their order
        self._sorter = TopologicalSorter[Name | str]()  # of tasks, and of whole stages by their names
        for task in self._tasks:
            self._sorter.add(task, *self._reads(task))
            self._sorter.add(task[0], task)
        self._sorter.prepare()
        self._release()

    def _reads(self, task: Name) -> Iterator[Name | str]:
        """What must be done first: a task, or a whole stage."""
        stage, key = task
        for upstream in self._graph.upstream[stage]:
            if not self._graph[upstream].keys == self._graph[stage].keys == "shards":
                yield upstream
            elif (upstream, key) in self._waiting:
                yield upstream, key

    def _release(self) -> None:
        """Notes what became ready; a stage is done with the last of its tasks."""
        while nodes := self._sorter.get_ready():
            for node in nodes:
                if isinstance(node, str):
                    self._sorter.done(node)
                elif node in self._waiting:  # not given up
                    insort(self._ready, self._waiting[node])

    @property
    def ready(self) -> list[Name]:
        """Tasks that may start, in the order of the plan."""
        return [self._tasks[place] for place in self._ready]

    @property
    def left(self) -> Collection[Name]:
        """Tasks that are neither started nor given up, in the order of the plan."""
        return self._waiting.keys()

    def start(self, task: Name) -> None:
        """A ready task begins."""
        self._ready.remove(self._waiting.pop(task))
        self._started.add(task)

    def done(self, task: Name) -> None:
        """A task is complete: what waited for it may become ready. One that was not started here stays as it is."""
        if task in self._started:
            self._started.remove(task)
            self._sorter.done(task)
            self._release()

    def give_up(self, task: Name) -> list[Name]:
        """A task failed. Returns what depends on it and cannot start any more."""
        lost = [other for other in self._waiting if task[0] in self._graph.above[other[0]]]
        for other in [task, *lost]:
            place = self._waiting.pop(other, None)
            if place in self._ready:
                self._ready.remove(place)
        return lost
