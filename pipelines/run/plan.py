"""The tasks of a command, in the order in which they are worth starting."""

import zlib
from collections.abc import Iterable, Mapping, Sequence

from moe_core.engine.context import Context
from moe_core.engine.planner import Name, PlannedTask


def planned_tasks(context: Context, until: str | None = None, only: Iterable[Name] | None = None) -> list[PlannedTask]:
    """The whole graph, or what `until` needs; what others wait for longest comes first. `only` names some tasks.

    Of the experts the one with the most posts comes first: a long training that begins last is what all others wait for
    (R. L. Graham, "Bounds on multiprocessing timing anomalies", 1969; benchmarks/makespan.py).

    Raises BadSetting for an asset that the study has not.
    """
    planner, graph = context.planner, context.planner.graph
    if only is not None:
        return [planner.task(*name) for name in only]
    wanted = set(graph.usual) if until is None else {planner.stage(until).name, *graph.above[until]}
    order = {name: number for number, name in enumerate(graph)}
    posts = _posts_of_experts(context)

    def rank(task: PlannedTask) -> tuple[bool, bool, int, int]:
        stage = graph[task.stage]
        size = posts.get(task.key, 0) if stage.keys == "experts" else 0
        return stage.control, not (stage.trains and stage.keys is None), order[task.stage], -size

    return sorted(planner.tasks(wanted), key=rank)


def _posts_of_experts(context: Context) -> Mapping[str | None, int]:
    """Training posts of each expert; empty while the partition is not built."""
    partition = context.find("partition")
    return dict(zip(context.experts, partition.metadata["sizes"], strict=True)) if partition else {}


def in_own_order(names: Sequence[Name], process: str) -> list[Name]:
    """Stage by stage as given, the keys of each in an order of the process's own.

    Commands that share a study and start the next task at the same time would otherwise all choose the same one: one
    builds it, and the others wait for it with nothing to do.
    """
    stages = {stage: number for number, stage in enumerate(dict.fromkeys(stage for stage, _ in names))}
    return sorted(names, key=lambda name: (stages[name[0]], zlib.crc32(f"{name[1]} {process}".encode())))
