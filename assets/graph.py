"""The asset of each stage, by its name: what Dagster shows of it beside what follows from the stage."""

from collections.abc import Callable
from dataclasses import dataclass

import dagster as dg

from assets import data, mixture, partition, results
from assets.showing import Shown
from moe_core.engine.context import Context
from moe_core.stages.graph import GRAPH
from moe_core.store.artifact import Artifact

Look = Callable[[Context, Artifact, dg.DagsterInstance], Shown]


@dataclass(frozen=True)
class StageAsset:
    """The asset of a stage, whichever study it is of. `look` says what more is shown of an artifact; where `checked`,
    its checks read much, so that only a run makes them.

    When a check fails that blocks, the artifact is removed: the next run makes it again, and nothing reads it until
    then.
    """

    group: str
    kinds: set[str]
    look: Look = lambda *_: Shown()
    checks: tuple[dg.AssetCheckSpec, ...] = ()
    checked: bool = False


ASSETS = {
    "posts": StageAsset("data", {"lance", "pillow"}, data.look_posts, checks=(data.CONSERVED,), checked=True),
    "splits": StageAsset("data", {"faiss", "polars"}, data.look_splits, checks=(data.LEAKS,), checked=True),
    "vocabulary": StageAsset("data", {"polars"}, data.look_vocabulary, checks=(data.SUFFICE,)),
    "trunk": StageAsset("trunk", {"pytorch"}),
    "trunk_features": StageAsset("trunk", {"pytorch", "lance"}),
    "partition": StageAsset("gate", {"faiss"}, partition.look_partition),
    "joint_experts": StageAsset("experts", {"pytorch"}),
    "expert": StageAsset("experts", {"pytorch"}, mixture.look_expert),
    "shared_decoder": StageAsset("mixture", {"pytorch"}),
    "mixture": StageAsset("mixture", {"pytorch"}, mixture.look_mixture),
    "published": StageAsset("mixture", {"numpy"}, mixture.look_published, checks=(mixture.NEWEST,)),
    "embeddings": StageAsset("results", {"lance"}),
    "search_index": StageAsset("results", {"faiss", "numpy"}),
    "pilot": StageAsset("results", {"pytorch", "numpy"}, results.look_pilot),
    "evaluation": StageAsset("results", {"numpy"}, results.look_evaluation),
    "report": StageAsset("results", {"html"}, results.look_report),
}
ASSETS |= {name: StageAsset("controls", {"pytorch"}) for name, stage in GRAPH.items() if stage.control}
