"""Planning: what each artifact is to be made from, by the graph, one state of the study, and the store.

Planning never writes, never scans rows, and raises nothing for "not yet": what cannot be known before another artifact
is built is Blocked on it. It is linear in shards and experts: each Spec is computed once.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from moe_core.engine.stage import Graph, Recorded, Ref, Stage
from moe_core.engine.state import StudyState
from moe_core.errors import BadSetting, HardmoeError, MissingInput
from moe_core.store.artifact import Artifact, Spec, name_of
from moe_core.store.hashing import content_hash
from moe_core.store.protocols import ArtifactStore

Name = tuple[str, str | None]  # of an artifact: stage and key
Found = TypeVar("Found", Spec, Artifact)


@dataclass(frozen=True)
class Blocked:
    """What an artifact is made from cannot be known: `on` must be built first, or `error` says what is wrong."""

    on: Name | None
    error: HardmoeError | OSError | None = None

    def __str__(self) -> str:
        return str(self.error) if self.on is None else f"waits for {name_of(*self.on)}"


@dataclass(frozen=True)
class PlannedTask:
    """One artifact of a study: `spec` where it is known, `artifact` where that is in the store."""

    stage: str
    key: str | None
    spec: Spec | None
    artifact: Artifact | None = None
    blocked: Blocked | None = None

    @property
    def name(self) -> Name:
        return self.stage, self.key

    @property
    def label(self) -> str:
        return name_of(self.stage, self.key)


class Planner:
    """Specs of all artifacts of a study.

    `frozen` plans the stages that stay as the shards of an earlier trunk made them. `provisional` names artifacts that
    may change that decision once they are built.
    """

    def __init__(
        self,
        graph: Graph,
        state: StudyState,
        store: ArtifactStore,
        frozen: Planner | None = None,
        provisional: frozenset[Name] = frozenset(),
    ) -> None:
        self.graph, self.state, self.store = graph, state, store
        self.frozen, self.provisional = frozen, provisional
        self._specs: dict[Name, Spec] = {}
        self._settings: dict[str, Any] = {}
        self._recorded: dict[str, Artifact] = {}

    @cached_property
    def posts_snapshot(self) -> str:
        """Version of all the posts together."""
        versions = ((shard.key, self.spec("posts", shard.key)) for shard in self.state.shards)
        return content_hash([[key, spec.version] for key, spec in versions if isinstance(spec, Spec)])

    @cached_property
    def _experts(self) -> dict[str, None]:
        return dict.fromkeys(self.state.experts)

    def _keys(self, stage: Stage) -> Collection[str | None]:
        """In their order, and quick to look one up."""
        if stage.keys == "shards":
            return self.state.by_key
        return self._experts if stage.keys == "experts" else (None,)

    def stage(self, name: str) -> Stage:
        """Raises BadSetting where the study has no such stage."""
        if name not in self.graph:
            raise BadSetting(
                f"no asset {name!r} in this study: wanted one of {', '.join(self.graph)}; decoder.mode, "
                "evaluation.controls and evaluation.dense_control leave some out"
            )
        return self.graph[name]

    def keys(self, name: str) -> tuple[str | None, ...]:
        """Partition keys of a stage; (None,) where it has no partitions."""
        return tuple(self._keys(self.stage(name)))

    def settings(self, name: str) -> Any:
        """The part of the study that changes the result of a stage."""
        if name not in self._settings:
            self._settings[name] = self.stage(name).settings(self.state.study)
        return self._settings[name]

    def spec(self, name: str, key: str | None = None) -> Spec | Blocked:
        """What an artifact is to be made from. Raises BadSetting for a stage or key that the study has not."""
        stage = self.stage(name)
        if stage.frozen and self.frozen:
            return self.frozen.spec(name, key)
        if (name, key) in self._specs:
            return self._specs[name, key]
        self._check_key(stage, key)
        try:
            spec = self._resolve(stage, key)
        except (HardmoeError, OSError) as error:  # a file to start from that is gone, a damaged pointer
            return Blocked(None, error)
        if isinstance(spec, Spec):
            self._specs[name, key] = spec
        return spec

    def _check_key(self, stage: Stage, key: str | None) -> None:
        if key not in self._keys(stage):
            has = "no partitions" if stage.keys is None else ", ".join(map(str, self.keys(stage.name))) or "none"
            raise BadSetting(f"{stage.name} has no partition {key!r}: it has {has}")

    def _resolve(self, stage: Stage, key: str | None) -> Spec | Blocked:
        inputs: dict[str, str] = {}
        for name, given in stage.inputs(self, key).items():
            value = given
            if isinstance(given, Ref):
                spec = self.spec(given.stage, given.key)
                value = spec.version if isinstance(spec, Spec) else spec
            elif isinstance(given, Recorded):
                built = self._read_once(given.stage)
                value = given.read(built) if isinstance(built, Artifact) else built
            if isinstance(value, Blocked):
                return value
            inputs[name] = value
        spec = Spec(stage.name, key, stage.code, self.settings(stage.name), inputs)
        return stage.resolve(self, spec) if stage.resolve else spec

    def artifact(self, name: str, key: str | None = None) -> Artifact | Blocked:
        """The artifact where it is in the store, else what it waits for: at least itself."""
        spec = self.spec(name, key)
        if isinstance(spec, Blocked):
            return spec
        return self.store.find(spec) or Blocked((name, key))

    def _read_once(self, name: str) -> Artifact | Blocked:
        if name not in self._recorded:
            found = self.artifact(name)
            if isinstance(found, Blocked):
                return found
            self._recorded[name] = found
        return self._recorded[name]

    def recorded(self, name: str) -> Artifact:
        """An artifact that many others are planned by, read once. Raises MissingInput where it is not built."""
        return _unless_blocked(self._read_once(name), name, None)

    def find(self, name: str, key: str | None = None) -> Artifact | None:
        """The artifact; None where it is not built, or not known yet."""
        found = self.artifact(name, key)
        return found if isinstance(found, Artifact) else None

    def need(self, name: str, key: str | None = None) -> Artifact:
        """The artifact. Raises MissingInput, which names what to build first."""
        return _unless_blocked(self.artifact(name, key), name, key)

    def known(self, name: str, key: str | None = None) -> Spec:
        """The spec. Raises MissingInput where something must be built to know it."""
        return _unless_blocked(self.spec(name, key), name, key)

    def task(self, name: str, key: str | None = None) -> PlannedTask:
        return self._planned([(name, key)])[0]

    def tasks(self, names: Iterable[str] | None = None) -> list[PlannedTask]:
        """All artifacts of some stages, or of a run of everything, in the order of the graph."""
        wanted = set(self.graph.usual if names is None else names)
        return self._planned([(name, key) for name in self.graph if name in wanted for key in self.keys(name)])

    def _planned(self, names: list[Name]) -> list[PlannedTask]:
        """Asks the store for all of them at once: in a bucket each is a request."""
        with _nothing_collected():
            specs = [(name, self.spec(*name)) for name in names]
            known = [spec for _, spec in specs if isinstance(spec, Spec)]
            found = iter(self.store.find_all(known))
            return [
                PlannedTask(*name, spec, next(found))
                if isinstance(spec, Spec)
                else PlannedTask(*name, None, None, spec)
                for name, spec in specs
            ]

    def pinned(self, artifacts: Iterable[Artifact]) -> Planner:
        """The same with these artifacts as they are, whatever the study says now."""
        planner = Planner(self.graph, self.state, self.store, self.frozen, self.provisional)
        for artifact in artifacts:
            planner._specs[artifact.asset, artifact.key] = artifact.spec
        return planner


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Looks for no garbage in circles meanwhile: planning leaves none, and each look walks all that is planned so far.

    With 10,000 experts these looks took a quarter of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _unless_blocked(found: Found | Blocked, name: str, key: str | None) -> Found:
    if isinstance(found, Blocked):
        raise missing(name, key, found)
    return found


def missing(name: str, key: str | None, blocked: Blocked) -> Exception:
    """The error of a caller that cannot do without."""
    if blocked.on is None:
        assert blocked.error is not None
        return blocked.error
    first, its_key = blocked.on
    what = name_of(first, its_key)
    before = "" if blocked.on == (name, key) else f", which {name_of(name, key)} needs,"
    return MissingInput(f"{what}{before} is missing: materialize {first} first (`hardmoe run`)", first, its_key)
