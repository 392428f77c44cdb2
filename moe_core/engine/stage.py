"""What a stage is, and how one artifact comes to be."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moe_core import threads
from moe_core.data.takedowns import Forgotten
from moe_core.engine.context import Context
from moe_core.errors import LockHeld
from moe_core.settings import Study
from moe_core.store.artifact import Artifact, Spec, StageOutput
from moe_core.store.files import errors_with_path
from moe_core.store.hashing import content_hash
from moe_core.store.locks import exclusive, shared

WAIT_SECONDS = 0.2  # between looks at a lock that another process holds


@dataclass(frozen=True)
class Stage:
    """`inputs` names each version that is read; `settings` is the part of the study that changes the result."""

    name: str
    keys: Literal["shards", "experts"] | None  # the partitions, one artifact each
    code: str  # raised when the same inputs give another result
    reads: tuple[str, ...]  # stages upstream
    settings: Callable[[Study], Any]
    inputs: Callable[[Context, str | None], Mapping[str, str]]
    make: Callable[[Context, str | None, Path], StageOutput]
    control: bool = False  # only there to compare with
    when: Callable[[Study], bool] = lambda study: True  # whether a study has it at all
    kept: bool = False  # when shards arrive: planned and made as the shards of the study's basis want it
    follow: Callable[[Context, str, Mapping[str, str]], Spec] | None = None  # where it follows one made before
    settle: Callable[[Context, Artifact], None] | None = None  # once it was made, and whenever it is found
    holds: Callable[[Artifact], Iterable[str]] | Literal["some"] | None = None
    """What a takedown has to look for in its artifacts: None where they say nothing of single posts; ids of the posts
    they hold; "some" where nobody can tell which (pictures, rare tags), so that every takedown removes them."""

    def plan(self, context: Context, key: str | None) -> Spec:
        if not self.when(context.study):
            raise ValueError(
                f"this study has no {self.name}: its decoder.mode or evaluation.dense_control leaves it out"
            )
        if (key is None) != (self.keys is None):
            raise ValueError(f"{self.name} has {'no partitions' if self.keys is None else self.keys}: got key {key!r}")
        if key is not None and key not in self.keys_of(context):
            raise ValueError(
                f"{self.name} has no partition {key!r}: it has {', '.join(map(str, self.keys_of(context)))}"
            )
        if self.kept and context.basis is not context:
            return context.basis.plan(self.name, key)
        inputs = self.inputs(context, key)
        if self.follow:
            return self.follow(context, self.code, inputs)
        return Spec(self.name, key, self.code, self.settings(context.study), inputs)

    def keys_of(self, context: Context) -> list[str | None]:
        if not self.when(context.study):
            return []
        if self.keys is None:
            return [None]
        return list(context.experts) if self.keys == "experts" else [shard.key for shard in context.shards]

    def code_version(self, study: Study) -> str:
        """Of code and settings together: a changed setting makes stale what reads it, and nothing else."""
        return content_hash({"code": self.code, "settings": self.settings(study)})


@dataclass(frozen=True)
class Built:
    """An artifact, and whether it was there already."""

    artifact: Artifact
    reused: bool


def build(context: Context, stage: Stage, key: str | None = None, force: bool = False) -> Built:
    """Finds the artifact or makes it; the same one is made by one process at a time, others wait and find it."""
    plan = context.plan(stage.name, key)
    found = context.store.find(plan)
    if found and not force:
        return _settled(context, stage, Built(found, reused=True))
    lock = _lock(context, plan)
    with shared(context.in_use), _alone(context, lock):
        if Forgotten.load(context.root) != context.forgotten:
            raise ValueError(f"{plan.name}: posts were forgotten after this was planned: run again")
        found = context.store.find(plan)
        if found and not force:
            return _settled(context, stage, Built(found, reused=True))
        with errors_with_path(lock):
            lock.write_text(str(os.getpid()))
        seen = context.basis if stage.kept else context
        made = context.store.make(plan, lambda folder: _make(stage, seen, key, folder), replace=force)
    lock.unlink(missing_ok=True)
    return _settled(context, stage, Built(made, reused=False))


def _make(stage: Stage, context: Context, key: str | None, folder: Path) -> StageOutput:
    """The work, with the threads that it took among what is said of it: sums in floating point follow from them."""
    threads.begin()
    written = stage.make(context, key, folder)
    return StageOutput(dict(written.metadata) | threads.used(), written.content)


def _settled(context: Context, stage: Stage, built: Built) -> Built:
    if stage.settle:
        stage.settle(context, built.artifact)
    return built


def maker(context: Context, name: str, key: str | None) -> int | None:
    """The process that makes an artifact right now, 0 where it does not say who it is; None where none does."""
    lock = _lock(context, context.plan(name, key))
    if not lock.exists():
        return None
    try:
        with exclusive(lock, wait=False):
            return None
    except LockHeld:
        return _holder(lock)


def _lock(context: Context, plan: Spec) -> Path:
    return context.store.folder(plan.asset, plan.key) / f".lock-{plan.version}"


def _holder(lock: Path) -> int:
    with suppress(OSError, ValueError):
        return int(lock.read_text())
    return 0


@contextmanager
def _alone(context: Context, lock: Path) -> Iterator[None]:
    """Holds the lock; while another process does, it is reported once which (`waits_for`, a process id)."""
    told: int | None = None
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(exclusive(lock, wait=False))
                break
            except LockHeld:
                if (holder := _holder(lock)) != told:
                    told = holder
                    context.report({"waits_for": holder})
                time.sleep(WAIT_SECONDS)
        yield


def shown_as(upstream: str) -> str:
    """The stage behind a name in `reads`: what an expert reads of the partition has a name of its own for Dagster."""
    return "partition" if upstream in ("expert_shard", "random_shard") else upstream
