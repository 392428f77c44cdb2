"""How one artifact comes to be: found, or made by one process alone."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_core import threads
from moe_core.data.takedowns import Takedowns
from moe_core.engine.context import Context
from moe_core.errors import HardmoeError
from moe_core.store.artifact import Artifact, StageOutput


@dataclass(frozen=True)
class Built:
    """An artifact, and whether it was there already."""

    artifact: Artifact
    reused: bool


def build(
    context: Context,
    name: str,
    key: str | None = None,
    force: bool = False,
    around: Callable[[Context], AbstractContextManager[Any]] = nullcontext,
) -> Built:
    """Finds the artifact or makes it; the same one is made by one process at a time, others wait and find it.

    `around` is entered for the work itself, such as a lease of a GPU.

    Raises MissingInput where something upstream must be built first, and what the stage's `make` raises.
    """
    stage, spec = context.planner.stage(name), context.spec(name, key)
    view = context.frozen if stage.frozen else context

    def existing() -> Artifact | None:
        found = context.store.find(spec)
        return None if force else found

    def write(folder: Path) -> StageOutput:
        """The work, with the threads that it took in its metadata: sums in floating point follow from them."""
        threads.begin(context.study.cluster.threads)
        with around(view):
            output = stage.maker()(view, spec, folder)
        return StageOutput(dict(output.metadata) | threads.used(), output.content)

    artifact, reused = existing(), True
    if artifact is None:
        with context.store.building(spec, context.by, lambda holder: context.report({"waits_for": str(holder)})):
            if Takedowns.load(context.store.documents) != context.takedowns:
                raise HardmoeError(f"{spec.name}: posts were taken down after this was planned: run again")
            artifact = existing()
            if artifact is None:
                artifact, reused = context.store.make(spec, write, replace=force), False
    if stage.on_commit:
        stage.on_commit(context, artifact)
    return Built(artifact, reused)


def build_all(context: Context, names: Iterable[str] | None = None) -> None:
    """Builds every key of these stages, in this order; of all that a run makes where none are named."""
    for name in context.planner.graph.usual if names is None else names:
        for key in context.planner.keys(name):
            build(context, name, key)
