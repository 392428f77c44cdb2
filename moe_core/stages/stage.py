"""What a stage is, and how one artefact comes to be."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moe_core.data.forgotten import Forgotten
from moe_core.settings import Study
from moe_core.stages.context import Context
from moe_core.store import Artefact, Plan, Written, digest, exclusive, shared


@dataclass(frozen=True)
class Stage:
    """`inputs` names each version that is read; `settings` is the part of the study that changes the result."""

    name: str
    keys: Literal["shards", "experts"] | None  # the partitions, one artefact each
    code: str  # raised when the same inputs give another result
    reads: tuple[str, ...]  # stages upstream
    settings: Callable[[Study], Any]
    inputs: Callable[[Context, str | None], Mapping[str, str]]
    make: Callable[[Context, str | None, Path], Written]
    control: bool = False  # only there to compare with
    when: Callable[[Study], bool] = lambda study: True  # whether a study has it at all
    holds: Callable[[Artefact], Iterable[str]] | Literal["some"] | None = None
    """What a takedown has to look for in its artefacts: None where they say nothing of single posts; ids of the posts
    they hold; "some" where nobody can tell which (pictures, rare tags), so that every takedown removes them."""
    settle: Callable[[Context, Artefact], None] | None = None  # once it was made, and whenever it is found

    def plan(self, context: Context, key: str | None) -> Plan:
        if not self.when(context.study):
            raise ValueError(f"this study has no {self.name}: it goes with another decoder.mode")
        if (key is None) != (self.keys is None):
            raise ValueError(f"{self.name} has {'no partitions' if self.keys is None else self.keys}: got key {key!r}")
        if key is not None and key not in self.keys_of(context):
            raise ValueError(
                f"{self.name} has no partition {key!r}: it has {', '.join(map(str, self.keys_of(context)))}"
            )
        return Plan(self.name, key, self.code, self.settings(context.study), self.inputs(context, key))

    def keys_of(self, context: Context) -> list[str | None]:
        if not self.when(context.study):
            return []
        if self.keys is None:
            return [None]
        return list(context.experts) if self.keys == "experts" else [shard.key for shard in context.shards]

    def code_version(self, study: Study) -> str:
        """Of code and settings together: a changed setting makes stale what reads it, and nothing else."""
        return digest({"code": self.code, "settings": self.settings(study)})


@dataclass(frozen=True)
class Built:
    """An artefact, and whether it was there already."""

    artefact: Artefact
    reused: bool


def build(context: Context, stage: Stage, key: str | None = None, force: bool = False) -> Built:
    """Finds the artefact or makes it; the same one is made by one process at a time, others wait and find it."""
    plan = context.plan(stage.name, key)
    found = context.store.find(plan)
    if found and not force:
        return _settled(context, stage, Built(found, reused=True))
    lock = context.store.folder(stage.name, key) / f".lock-{plan.version}"
    with shared(context.in_use), exclusive(lock):
        if Forgotten.load(context.root) != context.forgotten:
            raise ValueError(f"{plan.name}: posts were forgotten after this was planned: run again")
        found = context.store.find(plan)
        if found and not force:
            return _settled(context, stage, Built(found, reused=True))
        if found:
            context.store.remove(found)
        made = context.store.make(plan, lambda folder: stage.make(context, key, folder))
    lock.unlink(missing_ok=True)
    return _settled(context, stage, Built(made, reused=False))


def _settled(context: Context, stage: Stage, built: Built) -> Built:
    if stage.settle:
        stage.settle(context, built.artefact)
    return built
