"""How far a run on a cluster is from the shortest possible: the scheduler's own order, with drawn durations and faults.

    python benchmarks/makespan.py                                  # 1,000 shards, 256 experts, 64 GPUs, 20 draws
    python benchmarks/makespan.py --gpus 16 --experts 64 --draws 5

Simulated, not run: tasks are those that `hardmoe run` plans for such a study (`planned_tasks`) and become ready by the
scheduler's own bookkeeping (`Dag`), in virtual time. Durations are drawn: log-normal around a stage's mean, times the
posts of the shard or of the expert, whose sizes are drawn, too. A drawn fault ends one task, or all of a node of eight
GPUs, which is gone for ten minutes; the task begins again from its last checkpoint, at the head of the queue. What is
not simulated: reading the store, planning again (benchmarks/planning.py) and starting runs (benchmarks/workers.py).

The bound: no schedule is shorter than the stages that all others wait for, one after the other, and between two of them
the work divided by the GPUs, or the longest task. It knows no faults. Cost: a minute.
"""

import argparse
import heapq
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_core.engine.planner import Name
from moe_core.engine.stage import Graph
from moe_core.recipes import demo
from moe_core.settings import Study
from moe_core.workspace import open_study
from pipelines.run.dag import Dag
from pipelines.run.plan import planned_tasks

MINUTES = {  # of a task of mean size: a million posts a shard, 256 experts
    "posts": 30.0,
    "splits": 120.0,
    "vocabulary": 10.0,
    "trunk": 600.0,
    "trunk_features": 4.0,
    "partition": 60.0,
    "expert": 300.0,
    "embeddings": 8.0,
}
OTHERS = 5.0  # minutes of any other stage
SPREAD = 0.15  # of the logarithm of a duration: machines and data differ
SIZES = 0.35  # of the logarithm of an expert's posts, and half of it of a shard's
CHECKPOINT = 10.0  # minutes between two
NODE = 8  # GPUs
GONE = 10.0  # minutes for which a lost node is
NOTICED = 0.5  # minutes until a fault is


@dataclass
class Draw:
    """One possible course: minutes of each task, and the experts' posts, of which a mean expert has 1."""

    minutes: Mapping[Name, float]
    posts: Mapping[str | None, float]

    def bound(self, graph: Graph, gpus: int) -> float:
        """Minutes below which no schedule of `gpus` can be, whatever its order."""
        stages: dict[str, list[float]] = {}
        for (stage, _), minutes in self.minutes.items():
            stages.setdefault(stage, []).append(minutes)
        walls = [s for s in stages if all(s == o or s in graph.above[o] or o in graph.above[s] for o in stages)]
        between: dict[frozenset[str], list[float]] = {}  # by the walls that are done before
        for stage, some in stages.items():
            before = frozenset(walls) & graph.above[stage]
            between.setdefault(before | ({stage} if stage in walls else frozenset()), []).extend(some)
        return sum(max(max(part), sum(part) / gpus) for part in between.values())


def draw(tasks: Sequence[Name], generator: random.Random) -> Draw:
    """Durations of all tasks."""
    posts: dict[str | None, float] = {None: 1.0}  # of shards, too
    minutes = {}
    for stage, key in tasks:
        if key not in posts:
            posts[key] = generator.lognormvariate(0, SIZES if stage == "expert" else SIZES / 2)
        minutes[stage, key] = MINUTES.get(stage, OTHERS) * posts[key] * generator.lognormvariate(0, SPREAD)
    return Draw(minutes, posts)


def simulate(
    graph: Graph, order: Sequence[Name], course: Draw, gpus: int, faults_a_day: float, generator: random.Random
) -> tuple[float, int]:
    """(minutes until all is done, faults) of the scheduler's loop: what is ready starts where there is room."""
    dag = Dag(graph, order)
    events: list[tuple[float, int, str, int]] = []  # (minute, number, what, GPU)
    running: dict[int, tuple[Name, float, float, int]] = {}  # by GPU: task, began, minutes left, number of its event
    again: list[tuple[Name, float]] = []  # lost tasks, and what is left of them
    free, gone, number, now, faults = list(range(gpus)), set[int](), 0, 0.0, 0
    heapq.heapify(free)

    def add(minute: float, what: str, gpu: int) -> int:
        nonlocal number
        number += 1
        heapq.heappush(events, (minute, number, what, gpu))
        return number

    def start(task: Name, left: float) -> None:
        gpu = heapq.heappop(free)
        running[gpu] = task, now, left, add(now + left, "done", gpu)

    def lose(gpu: int) -> None:
        if gpu in running:
            task, began, left, _ = running.pop(gpu)
            again.append((task, left - (now - began) // CHECKPOINT * CHECKPOINT))

    def next_fault() -> None:
        if faults_a_day:
            add(now + generator.expovariate(faults_a_day / 1440), "fault", generator.randrange(gpus))

    next_fault()
    while dag.left or running or again:
        while free and again:
            start(*again.pop(0))
        while free and (ready := dag.ready[:1]):
            dag.start(ready[0])
            start(ready[0], course.minutes[ready[0]])
        now, event, what, gpu = heapq.heappop(events)
        if what == "done" and gpu in running and running[gpu][3] == event:
            dag.done(running.pop(gpu)[0])
            heapq.heappush(free, gpu)
        elif what == "fault":
            faults += 1
            is_node = generator.random() < 0.25
            first = gpu // NODE * NODE
            for one in range(first, min(first + NODE, gpus)) if is_node else [gpu]:
                if one in gone:
                    continue
                lose(one)
                if one in free:
                    free.remove(one)
                    heapq.heapify(free)
                gone.add(one)
                add(now + NOTICED + (GONE if is_node else 0), "back", one)
            next_fault()
        elif what == "back":
            gone.discard(gpu)
            heapq.heappush(free, gpu)
    return now, faults


def study_of(shards: int, experts: int) -> Study:
    """The demo with so many shards and experts, without controls."""
    recipe = demo()
    return recipe.model_copy(
        update={
            "source": recipe.source.model_copy(update={"shards": shards, "posts": 10 * shards}),
            "partition": recipe.partition.model_copy(update={"experts": experts}),
            "evaluation": recipe.evaluation.model_copy(update={"controls": False}),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=1_000)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--faults", type=float, nargs="+", default=[0, 4, 24], help="of all the cluster, a day")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        context = open_study(study_of(options.shards, options.experts), Path(folder))
        graph, tasks = context.planner.graph, [task.name for task in planned_tasks(context)]
    print(f"{len(tasks):,} tasks, {options.gpus} GPUs, {options.draws} draws")
    print("| faults a day | order of the experts | hours | bound, hours | ratio | largest |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    spent, decisions = 0.0, 0
    for faults_a_day in options.faults:
        for by_size in (True, False):
            hours, bounds = [], []
            for seed in range(options.draws):
                course = draw(tasks, random.Random(seed))
                began = time.process_time()
                minutes, _ = simulate(
                    graph,
                    by_posts(tasks, course) if by_size else tasks,
                    course,
                    options.gpus,
                    faults_a_day,
                    random.Random(f"faults {seed}"),
                )
                spent, decisions = spent + time.process_time() - began, decisions + len(tasks)
                hours.append(minutes / 60)
                bounds.append(course.bound(graph, options.gpus) / 60)
            ratios = [one / bound for one, bound in zip(hours, bounds, strict=True)]
            name = "most posts first" if by_size else "by number"
            print(
                f"| {faults_a_day:g} | {name} | {statistics.mean(hours):.1f} | {statistics.mean(bounds):.1f} "
                f"| {statistics.mean(ratios):.3f} | {max(ratios):.3f} |",
                flush=True,
            )
    print(f"{1e6 * spent / decisions:.0f} microseconds of processor time a task for the simulation, Dag included")


def by_posts(tasks: Sequence[Name], course: Draw) -> list[Name]:
    """The plan as `planned_tasks` has it once the partition is built, which tells the experts' posts."""
    first = {stage: place for place, (stage, _) in reversed([*enumerate(tasks)])}
    return sorted(tasks, key=lambda task: (first[task[0]], -course.posts[task[1]] if task[0] == "expert" else 0))


if __name__ == "__main__":
    main()
