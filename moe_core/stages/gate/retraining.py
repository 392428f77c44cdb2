"""Which experts are retrained: those whose posts changed by more than `repartition.retrain_share` since their training.

Changes are measured against the posts that an expert was trained on, not those of the partition before, so small ones
add up.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from moe_core.stages.gate.membership import MEMBER, frame_of, hash_of
from moe_core.store.artifact import Artifact

LINEAGE = 16  # hashes of an expert that are remembered


@dataclass(frozen=True)
class Members:
    """Members by expert, for one column of a partition's assignment."""

    hashes: dict[str, str]
    lineage: dict[str, list[str]]  # hashes that it had since its first training, the last is that of `hashes`
    changed: dict[str, float]  # share of its posts that were added or removed since it was trained, before this
    kept: dict[str, float]  # the same of those that are retained


class MembersFile:
    """Writes columns of, key, id, mark: the members that hashes name, an expert at a time."""

    def __init__(self, path: Path) -> None:
        schema = pl.DataFrame(schema=MEMBER).to_arrow(compat_level=pl.CompatLevel.oldest()).schema
        self._file = pq.ParquetWriter(path, schema, compression="zstd", write_statistics=["of", "key"])

    def __enter__(self) -> "MembersFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, members: pl.DataFrame) -> None:
        self._file.write_table(members.to_arrow(compat_level=pl.CompatLevel.oldest()))


def decide(
    column: str,
    keys: Sequence[str],
    now: Callable[[int], pl.DataFrame],
    old: Artifact,
    trained: Callable[[str], pl.DataFrame],
    same_trunk: bool,
    most: float,
    write: Callable[[pl.DataFrame], None],
) -> Members:
    """The members of each expert now, or those it was trained on where no more than `most` of them changed since.

    `now`: ids and lines of the expert of a number; `trained`: what the expert of a key was trained on, as `write` takes
    what the hashes name. With another trunk every expert is retrained, and begins a lineage.
    """
    name = "members" if column == "expert" else "random_members"
    before = old.metadata.get("lineage", {}).get(column, {})
    hashes, lineage, changed, kept = {}, {}, {}, {}
    for k, key in enumerate(keys):
        members, had = now(k), trained(key)
        mine = frame_of(column, key, members)
        hashes[key], content_hash = hash_of(members["line"]), old.metadata[name].get(key)
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
        write(mine)
    return Members(hashes, lineage, changed, kept)


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
