"""The partition that another continues, seen from the posts that there are now.

Letters: N posts, O posts as it had them, K experts that it had.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from moe_core.clustering.gate import Gate, load_gate
from moe_core.engine.context import Context
from moe_core.errors import MissingInput
from moe_core.sorting import MEMORY, first_of_equal, hashes_of
from moe_core.stages import reading
from moe_core.stages.gate import assignment
from moe_core.stages.gate.posts import PostTable
from moe_core.store.artifact import Artifact, Spec


@dataclass(frozen=True)
class PreviousPartition:
    artifact: Artifact
    gate: Gate
    trunk: str
    keys: list[str]
    number: np.ndarray  # for each of its experts, the number of the one that continues it, -1 where there is none
    gone_K: np.ndarray  # of each of its experts, how many training posts are no longer there
    was_N: np.ndarray  # its expert's number of each post, -1 where it has none
    expert_N: np.ndarray  # the number of the expert that continues that one, -1 where there is none
    random_N: np.ndarray  # the same of the control
    trained_N: np.ndarray  # bool: a network was trained on the post
    new_since_fit_N: np.ndarray  # bool: the post came since the gate was fitted
    unchanged_N: np.ndarray  # bool: the post has an expert, and its shard is as the partition saw it


def previous_partition(context: Context, spec: Spec, posts: PostTable, scratch: Path) -> PreviousPartition:
    """Raises MissingInput where it is gone."""
    version = spec.inputs["previous"]
    artifact = context.store.get("partition", None, version)
    if artifact is None:
        raise MissingInput(
            f"partition {version}, which the next one follows, was removed after that was planned: run again"
        )
    gate, about = load_gate(artifact.file("gate.safetensors"))
    keys = list(artifact.metadata["members"])
    number = np.array([context.experts.index(key) if key in context.experts else -1 for key in keys], np.int32)
    old = _Assigned.read(artifact)
    row_N = _rows_in(artifact, context, scratch)
    was_N, random_N = (_or(column, -1)[row_N] for column in (old.expert_O, old.random_O))
    expert_N = _or(number, -1)[was_N]
    unchanged_N = np.zeros(len(row_N), bool)
    for shard, rows in posts.rows.items():
        same = artifact.inputs.get(f"features {shard}") == context.version("trunk_features", shard)
        unchanged_N[rows] = same & (expert_N[rows] >= 0)
    gone_O = old.training_O.copy()
    gone_O[row_N[row_N >= 0]] = False
    return PreviousPartition(
        artifact,
        gate,
        about["trunk"],
        keys,
        number,
        np.bincount(old.expert_O[gone_O], minlength=len(keys)),
        was_N,
        expert_N,
        _or(number, -1)[random_N],
        trained_N=_or(old.trained_O | old.training_O, False)[row_N],
        new_since_fit_N=_or(old.new_since_fit_O, True)[row_N],
        unchanged_N=unchanged_N,
    )


def _or(values: np.ndarray, missing: int) -> np.ndarray:
    """With one more at the end, where -1 finds it."""
    return np.append(values, np.array([missing], values.dtype))


@dataclass(frozen=True)
class _Assigned:
    """The assignment of a partition as it was."""

    expert_O: np.ndarray
    random_O: np.ndarray
    training_O: np.ndarray
    trained_O: np.ndarray
    new_since_fit_O: np.ndarray

    @classmethod
    def read(cls, artifact: Artifact) -> "_Assigned":
        columns = ["expert", "random", "split", "trained", "new_since_fit"]
        parts = [rows.with_columns(pl.col("split") == "train") for rows in assignment.batches(artifact, columns)]
        return cls(*(np.concatenate([part[name].to_numpy() for part in parts]) for name in columns))


def _rows_in(artifact: Artifact, context: Context, scratch: Path) -> np.ndarray:
    """(N,) where each post comes first in the assignment, -1 where it has none."""
    old, now = (
        (hashes_of(rows.select(pl.format("{}\n{}", "shard", "id").alias("post"))["post"].to_list()) for rows in parts)
        for parts in (
            assignment.batches(artifact, ["shard", "id"]),
            reading.split_batches(context, ["shard", "id"]),
        )
    )
    return first_of_equal(old, now, scratch / "previous", MEMORY)
