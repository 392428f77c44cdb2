"""What a stage is: its partitions, what it reads, and how one artifact of it is made; and the graph of all stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal, cast

from moe_core.settings import Study
from moe_core.store.artifact import Artifact, Spec, StageOutput
from moe_core.store.hashing import content_hash


@dataclass(frozen=True)
class Ref:
    """An input: the version of another artifact, built or not."""

    stage: str
    key: str | None = None


@dataclass(frozen=True)
class Recorded:
    """An input that another artifact tells once it is built, such as the members of a cluster."""

    stage: str
    read: Callable[[Artifact], str]


Input = str | Ref | Recorded  # a string stands for itself, such as the hash of a file
Make = Callable[[Any, Spec, Path], StageOutput]  # (Context, what to make, an empty folder)


@dataclass(frozen=True)
class Stage:
    """`settings` is the part of the study that changes the result; `inputs` names all that is read."""

    name: str
    code: str  # raised when the same inputs give another result
    reads: tuple[str, ...]  # stages upstream, as Dagster shows them
    settings: Callable[[Study], Any]
    inputs: Callable[[Any, str | None], Mapping[str, Any]]  # (Planner, key) -> an Input of each name
    make: str | Make  # "module:function" where the module loads torch or polars, which planning does without
    keys: Literal["shards", "experts"] | None = None  # its partitions, one artifact each; None: one artifact
    control: bool = False  # trained only to compare with
    on_request: bool = False  # made only where it is named: a run of everything leaves it out
    when: Callable[[Study], bool] = lambda study: True  # whether a study has it at all
    description: str = ""  # as Dagster shows it
    uses_gpu: bool = True  # it computes on a GPU where there is one
    trains: bool = False  # it trains networks: it wants a GPU of its own, and its cost is counted
    all_gpus: Callable[[Study], bool] = lambda study: False  # it starts processes of its own, one a GPU
    ranks: Callable[[Study], int] = lambda study: 1  # where more than one, they compute, and its own process does not
    frozen: bool = False  # planned and built on the shards of the frozen trunk, where that is kept
    resolve: Callable[[Any, Spec], Spec] | None = None  # (Planner, spec): where it depends on what was built before
    on_commit: Callable[[Any, Artifact], None] | None = None  # (Context, artifact): once built, and whenever found
    post_ids: Callable[[Artifact], Iterable[str]] | Literal["unknown"] | None = None
    """What a takedown looks for in its artifacts: None where they say nothing of single posts; ids of the posts that
    they hold; "unknown" where nobody can tell (pictures, rare tags), so that every takedown removes them."""

    def maker(self) -> Make:
        """The function that makes an artifact, its module imported."""
        return cast(Make, resolve_name(self.make)) if isinstance(self.make, str) else self.make

    def code_version(self, study: Study) -> str:
        """Hash of code and settings together: a changed setting makes stale what reads it, and nothing else."""
        return content_hash({"code": self.code, "settings": self.settings(study)})


class Graph(dict[str, Stage]):
    """Stages by name, each after those that it reads.

    `aliases`: names in `reads` that stand for another stage, such as the part of a partition that one expert reads.
    """

    def __init__(self, stages: Iterable[Stage], aliases: Mapping[str, str]) -> None:
        super().__init__((stage.name, stage) for stage in stages)
        self.aliases = aliases

    def for_study(self, study: Study) -> Graph:
        """The stages that a study has: controls only where it wants them."""
        wanted = (s for s in self.values() if s.when(study) and (study.evaluation.controls or not s.control))
        return Graph(wanted, self.aliases)

    @cached_property
    def usual(self) -> tuple[str, ...]:
        """The stages of a run of everything: all but those that are made on request."""
        return tuple(name for name, stage in self.items() if not stage.on_request)

    @cached_property
    def upstream(self) -> Mapping[str, tuple[str, ...]]:
        """The stages of this graph that each stage reads."""
        names = {n: dict.fromkeys(self.aliases.get(read, read) for read in s.reads) for n, s in self.items()}
        return {name: tuple(read for read in reads if read in self) for name, reads in names.items()}

    @cached_property
    def above(self) -> Mapping[str, frozenset[str]]:
        """All stages of this graph upstream of each stage, near and far."""
        found: dict[str, frozenset[str]] = {}
        for name in self:
            near = self.upstream[name]
            found[name] = frozenset(near).union(*(found[read] for read in near))
        return found
