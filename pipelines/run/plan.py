"""The tasks of a command, in the order in which they are worth starting."""

from collections.abc import Iterable

from moe_core.engine.context import Context
from moe_core.engine.planner import Name, PlannedTask


def planned_tasks(context: Context, until: str | None = None, only: Iterable[Name] | None = None) -> list[PlannedTask]:
    """The whole graph, or what `until` needs; what others wait for longest comes first. `only` names some tasks.

    Raises BadSetting for an asset that the study has not.
    """
    planner, graph = context.planner, context.planner.graph
    if only is not None:
        return [planner.task(*name) for name in only]
    wanted = set(graph) if until is None else {planner.stage(until).name, *graph.above[until]}
    order = {name: number for number, name in enumerate(graph)}

    def rank(name: str) -> tuple[bool, bool, int]:
        stage = graph[name]
        return stage.control, not (stage.trains and stage.keys is None), order[name]

    return sorted(planner.tasks(wanted), key=lambda task: rank(task.stage))
