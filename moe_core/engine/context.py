"""What every stage is given: the study, its store, and where to report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from moe_core import threads
from moe_core.data.sources import ContentHashes, Shard, Unready, find_shards
from moe_core.data.takedowns import Forgotten
from moe_core.settings import Study
from moe_core.stages.gate import current_partition
from moe_core.stages.trunk import frozen
from moe_core.store.artifact import Artifact, Spec
from moe_core.store.store import Store
from moe_core.threads import cores

Report = Callable[[Mapping[str, Any]], None]
SHARE = "HARDMOE_SHARE"  # cores of one worker, set by --workers for the processes that it starts
BEFORE_BASIS = ("posts", "splits")  # stages whose plans do not depend on what is kept


def silent(_: Mapping[str, Any]) -> None:
    """Reports nothing."""


@dataclass
class Context:
    """One study, open for work in this process."""

    study: Study
    root: Path
    report: Report = silent
    by: str = "a plain call"  # who works with it, for what is written down
    plans: dict[tuple[str, str | None], Spec] = field(default_factory=dict)
    asked: frozenset[str] = frozenset()  # "refit", "renew": to look at what they would do
    _basis: "Context | None" = field(default=None, repr=False, compare=False)
    _view: "Context | None" = field(default=None, repr=False, compare=False)

    @cached_property
    def store(self) -> Store:
        return Store(self.root)

    @cached_property
    def _found(self) -> tuple[list[Shard], list[Unready]]:
        unready: list[Unready] = []
        hashes = ContentHashes(self.root / ".digests.json", autosave=True)
        shards = find_shards(self.study.source, hashes, unready)
        hashes.save()
        return shards, unready

    @property
    def shards(self) -> list[Shard]:
        return self._found[0]

    @property
    def unready(self) -> list[Unready]:
        """New files of the source that cannot be read as they are now: their shards appear when they can."""
        return self._found[1]

    @cached_property
    def forgotten(self) -> Forgotten:
        """The takedowns of the study, as they are when this context first asks."""
        return Forgotten.load(self.root)

    @property
    def in_use(self) -> Path:
        """A lock that everyone holds who makes an artifact, and whoever takes artifacts away holds alone."""
        return self.root / ".in-use.lock"

    @cached_property
    def current(self) -> current_partition.Current | None:
        """The partition that the study lives with, as it is when this context first asks."""
        return current_partition.load(self)

    @cached_property
    def refit_is_asked(self) -> bool:
        return current_partition.is_refit_asked(self)

    @cached_property
    def experts(self) -> list[str]:
        """Keys, in the order of the gate's numbers."""
        return current_partition.keys_for(self.current, self.study.partition.experts)

    @property
    def basis(self) -> "Context":
        """The study as its trunk and vocabulary see it: of the shards that they were made from, where they are kept.

        Kept until the splits of all shards are there to tell whether the study has outgrown them.
        """
        if self._basis is None:
            view = self._view = self._view or frozen.view_of(self)
            kept = False if view is None else frozen.keeps(self, view)
            if kept is None:
                assert view is not None
                return view
            self._basis = view if kept and view is not None else self
        return self._basis

    def view(self, shards: list[Shard]) -> "Context":
        """The study with some of its shards only."""
        found = Context(self.study, self.root, self.report)
        found.__dict__ |= {"_found": (shards, []), "forgotten": self.forgotten}
        found._basis = found
        return found

    def plan(self, stage: str, key: str | None = None) -> Spec:
        """What the artifact is to be made from now. Raises ValueError where another must be made to know it."""
        from moe_core.stages.graph import GRAPH

        if (stage, key) in self.plans:
            return self.plans[stage, key]
        plan = GRAPH[stage].plan(self, key)
        if stage in BEFORE_BASIS or self._basis is not None:  # else it may yet be another
            self.plans[stage, key] = plan
        return plan

    def find(self, stage: str, key: str | None = None) -> Artifact | None:
        return self.store.find(self.plan(stage, key))

    def need(self, stage: str, key: str | None = None) -> Artifact:
        """An input. Raises ValueError naming the asset to materialize first."""
        return self.store.need(self.plan(stage, key))

    def version(self, stage: str, key: str | None = None) -> str:
        return self.plan(stage, key).version

    def posts_snapshot(self) -> str:
        """Version of all the posts together."""
        from moe_core.store.hashing import content_hash

        return content_hash([[shard.key, self.version("posts", shard.key)] for shard in self.shards])


def threads_for(parallel: bool, experts: int) -> int:
    """Cores of one stage, from the machine and the study alone, or HARDMOE_THREADS, or --workers.

    A stage that runs beside others of its kind gets its share of the cores; one that runs alone gets all.
    """
    if said := threads.whole_number("HARDMOE_THREADS") or threads.whole_number(SHARE):
        return said
    return max(1, cores() // min(max(experts, 2), cores())) if parallel else cores()


def workers_for(experts: int) -> int:
    """Processes that work beside each other on the cores there are."""
    return max(1, cores() // (threads.said_threads() or threads_for(True, experts)))


def device_and_threads(study: Study, parallel: bool, hashtags: int = 1) -> str:
    """Sets torch's threads for a stage that asks the study's network, and names its device.

    `hashtags` is the width of its last layer, where that computes too. A training sets them again for its own network.
    """
    import torch

    from moe_core.models.cost import multiply_adds
    from moe_core.models.resnet import build_on_meta
    from moe_core.training.infer import BATCH

    work = BATCH * multiply_adds(build_on_meta(study.network, hashtags), study.data.image_size)
    threads.use(work, threads_for(parallel, study.partition.experts))
    return "cuda" if torch.cuda.is_available() else "cpu"
