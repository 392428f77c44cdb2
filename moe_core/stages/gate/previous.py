"""The partition that another continues, seen from the posts that there are now.

Letters: N posts.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from moe_core.clustering.gate import Gate, load_gate
from moe_core.engine.context import Context
from moe_core.errors import MissingInput
from moe_core.stages.gate.posts import PostTable
from moe_core.store.artifact import Artifact, Spec


@dataclass(frozen=True)
class PreviousPartition:
    artifact: Artifact
    gate: Gate
    trunk: str
    keys: list[str]
    number: np.ndarray  # for each of its experts, the number of the one that continues it, -1 where there is none
    assignment: pl.DataFrame  # as it was
    was_N: np.ndarray  # its expert's number of each post, -1 where it has none
    expert_N: np.ndarray  # the number of the expert that continues that one, -1 where there is none
    random_N: np.ndarray  # the same of the control
    trained_N: np.ndarray  # bool: a network was trained on the post
    new_since_fit_N: np.ndarray  # bool: the post came since the gate was fitted
    unchanged_N: np.ndarray  # bool: the post has an expert, and its shard is as the partition saw it


def previous_partition(context: Context, spec: Spec, posts: PostTable) -> PreviousPartition:
    """Raises MissingInput where it is gone."""
    version = spec.inputs["previous"]
    artifact = context.store.get("partition", None, version)
    if artifact is None:
        raise MissingInput(
            f"partition {version}, which the next one follows, was removed after that was planned: run again"
        )
    gate, about = load_gate(artifact.file("gate.safetensors"))
    keys = list(artifact.metadata["members"])
    assignment = pl.read_parquet(artifact.file("assignment.parquet"), glob=False)
    mine = posts.columns.join(
        assignment.unique(["shard", "id"], keep="first", maintain_order=True),
        on=["shard", "id"],
        how="left",
        maintain_order="left",
    )
    number = np.array([context.experts.index(key) if key in context.experts else -1 for key in keys])
    was_N, random_N = (mine[name].fill_null(-1).to_numpy() for name in ("expert", "random"))
    expert_N = np.append(number, -1)[was_N]
    same = [
        shard.key
        for shard in context.shards
        if artifact.inputs.get(f"features {shard.key}") == context.version("trunk_features", shard.key)
    ]
    return PreviousPartition(
        artifact,
        gate,
        about["trunk"],
        keys,
        number,
        assignment,
        was_N,
        expert_N,
        np.append(number, -1)[random_N],
        trained_N=(mine["trained"].fill_null(False) | (mine["split"] == "train").fill_null(False)).to_numpy(),
        new_since_fit_N=mine["new_since_fit"].fill_null(True).to_numpy(),
        unchanged_N=posts.columns["shard"].is_in(same).to_numpy() & (expert_N >= 0),
    )
