"""Which experts are retrained: those whose posts changed by more than `repartition.retrain_share` since their training.

Changes are measured against the posts that an expert was trained on, not those of the partition before, so small ones
add up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from moe_core.stages.gate.membership import Lines, frame_of, hash_of
from moe_core.store.artifact import Artifact

LINEAGE = 16  # hashes of an expert that are remembered


@dataclass(frozen=True)
class Members:
    """Members by expert, for one column of a partition's assignment."""

    hashes: dict[str, str]
    lineage: dict[str, list[str]]  # hashes that it had since its first training, the last is that of `hashes`
    changed: dict[str, float]  # share of its posts that were added or removed since it was trained, before this
    kept: dict[str, float]  # the same of those that are retained
    frame: pl.DataFrame  # columns of, key, id, mark: the members that the hashes name


def decide(
    column: str,
    keys: Sequence[str],
    number_N: np.ndarray,
    training_N: np.ndarray,
    lines: Lines,
    old: Artifact,
    old_frame: pl.DataFrame,
    same_trunk: bool,
    most: float,
) -> Members:
    """The members of each expert now, or those it was trained on where no more than `most` of them changed since.

    With another trunk every expert is retrained, and begins a lineage.
    """
    name = "members" if column == "expert" else "random_members"
    before = old.metadata.get("lineage", {}).get(column, {})
    hashes, lineage, changed, kept, frames = {}, {}, {}, {}, []
    for k, key in enumerate(keys):
        rows = np.flatnonzero(training_N & (number_N == k))
        text = lines.of(rows)
        mine = frame_of(column, key, lines.ids[rows], text)
        had = old_frame.filter((pl.col("of") == column) & (pl.col("key") == key))
        hashes[key], content_hash = hash_of(text), old.metadata[name].get(key)
        if content_hash is None or not same_trunk:
            lineage[key], changed[key] = [hashes[key]], 1.0
        else:
            share = changed_share(mine, had)
            lineage[key] = before.get(key, [content_hash])
            changed[key] = round(share, 4)
            if share <= most:
                hashes[key], mine, kept[key] = content_hash, had, changed[key]
            else:
                lineage[key] = [*lineage[key], hashes[key]][-LINEAGE:]
        frames.append(mine)
    return Members(hashes, lineage, changed, kept, pl.concat(frames))


def changed_share(now: pl.DataFrame, trained: pl.DataFrame) -> float:
    """Members that were added or removed since the training, by the number of those it was trained on."""
    common = now.join(trained, on=["id", "mark"], how="semi").height
    return (now.height + trained.height - 2 * common) / max(trained.height, 1)


def as_metadata(expert: Members, random: Members) -> dict[str, Any]:
    return {
        "members": expert.hashes,
        "random_members": random.hashes,
        "lineage": {"expert": expert.lineage, "random": random.lineage},
        "kept_members": {"expert": expert.kept, "random": random.kept},
    }
