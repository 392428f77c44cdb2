"""Which posts each expert is trained on: their digest, and how far they may change before it is trained again.

`trained.parquet` of a partition that follows another has the members of each expert as its digest names them, which for
an expert that is kept are those it was trained on. A partition that follows none needs no such file: its assignment
says the same.

Letters: N posts, T tags.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_core.engine.context import Context
from moe_core.errors import MissingInput
from moe_core.store.artifact import Artifact

if TYPE_CHECKING:
    import polars as pl

    from moe_core.stages import reading

COLUMNS = ("expert", "random")  # of the assignment: the partition, and its control
LINEAGE = 16  # digests of an expert that are remembered


@dataclass(frozen=True)
class Lines:
    """One line of text a post: its id and the hashtags that are predicted, and the version of a shard that is younger
    than the trunk, so that an expert is known by all that it saw."""

    ids: np.ndarray  # (N,) of str
    shards: np.ndarray  # (N,) of str
    index: reading.Index
    arrived: Mapping[str, str]  # shard that the trunk has not seen -> version of its posts

    def of(self, rows: np.ndarray) -> list[str]:
        """Of some posts, in their order."""
        mine = self.index.labels.where(rows)
        text = mine.tags_T.astype(str)
        return [
            f"{self.ids[row]} {','.join(text[a:b])}" + self._version(self.shards[row])
            for row, (a, b) in zip(rows.tolist(), pairwise(mine.starts_N1), strict=True)
        ]

    def _version(self, shard: str) -> str:
        return f" {self.arrived[shard]}" if shard in self.arrived else ""


def lines(context: Context, columns: pl.DataFrame, index: reading.Index) -> Lines:
    """`columns`: shard and id of all the posts, in the one order."""
    seen = {shard.key for shard in context.frozen.shards}
    arrived = {shard.key: context.version("posts", shard.key) for shard in context.shards if shard.key not in seen}
    return Lines(columns["id"].to_numpy(), columns["shard"].to_numpy(), index, arrived)


def digest_of(lines: Sequence[str]) -> str:
    """Of members, whatever their order."""
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Members:
    """Of one column of a partition's assignment, by expert."""

    digests: dict[str, str]
    lineage: dict[str, list[str]]  # digests that it had since its first training, the last is that of `digests`
    changed: dict[str, float]  # share of its posts that were added or removed since it was trained, before this
    kept: dict[str, float]  # the same of those that go on as they were trained
    frame: pl.DataFrame  # columns of, key, id, mark: the members that the digests name


def fresh(keys: Sequence[str], number_N: np.ndarray, training_N: np.ndarray, lines: Lines) -> dict[str, str]:
    """Digest of the training posts of each expert; `number_N` says whose a post is."""
    return {key: digest_of(lines.of(np.flatnonzero(training_N & (number_N == k)))) for k, key in enumerate(keys)}


def carried(
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
    """The members of each expert, or those it was trained on where no more than `most` of them changed since.

    With another trunk every expert is trained again, and begins a lineage.
    """
    import polars as pl

    name = "members" if column == "expert" else "random_members"
    before = old.metadata.get("lineage", {}).get(column, {})
    digests, lineage, changed, kept, frames = {}, {}, {}, {}, []
    for k, key in enumerate(keys):
        rows = np.flatnonzero(training_N & (number_N == k))
        text = lines.of(rows)
        mine = frame_of(column, key, lines.ids[rows], text)
        had = old_frame.filter((pl.col("of") == column) & (pl.col("key") == key))
        digests[key], digest = digest_of(text), old.metadata[name].get(key)
        if digest is None or not same_trunk:
            lineage[key], changed[key] = [digests[key]], 1.0
        else:
            common = mine.join(had, on=["id", "mark"], how="semi").height
            share = (mine.height + had.height - 2 * common) / max(had.height, 1)
            lineage[key] = before.get(key, [digest])
            changed[key] = round(share, 4)
            if share <= most:
                digests[key], mine, kept[key] = digest, had, changed[key]
            else:
                lineage[key] = [*lineage[key], digests[key]][-LINEAGE:]
        frames.append(mine)
    return Members(digests, lineage, changed, kept, pl.concat(frames))


def frame_of(column: str, key: str, ids: np.ndarray, text: Sequence[str]) -> pl.DataFrame:
    import polars as pl

    marks = [int.from_bytes(hashlib.blake2b(line.encode(), digest_size=8).digest()) for line in text]
    return pl.DataFrame({"id": ids.tolist(), "mark": marks}, schema={"id": pl.String, "mark": pl.UInt64}).select(
        pl.lit(column).alias("of"), pl.lit(key).alias("key"), "id", "mark"
    )


def trained_of(old: Artifact, lines: Lines) -> pl.DataFrame:
    """Columns of, key, id, mark: what the experts of a partition were trained on.

    Of one that follows none, by its assignment and by the hashtags that its posts have now; a post that is gone has
    mark 0.
    """
    import polars as pl

    if "trained.parquet" in old.files:
        return pl.read_parquet(old.file("trained.parquet"), glob=False)
    rows = pl.read_parquet(old.file("assignment.parquet"), glob=False).filter(pl.col("split") == "train")
    now = positions(lines.ids)
    keys = list(old.metadata["members"])
    frames = []
    for column in COLUMNS:
        for k, key in enumerate(keys):
            mine = rows.filter(pl.col(column) == k).select("id").join(now, on="id", how="left", maintain_order="left")
            there = mine["row"].drop_nulls().to_numpy()
            there = there[lines.index.labels.tagged_N[there]]
            gone = mine.filter(pl.col("row").is_null())["id"].to_list()
            known = frame_of(column, key, lines.ids[there], lines.of(there))
            lost = pl.DataFrame({"id": gone}, schema={"id": pl.String}).select(
                pl.lit(column).alias("of"), pl.lit(key).alias("key"), "id", pl.lit(0, pl.UInt64).alias("mark")
            )
            frames += [known, lost]
    return pl.concat(frames)


def positions(ids: np.ndarray) -> pl.DataFrame:
    """Columns id and row: where each id comes first, which is the post that is used."""
    import polars as pl

    frame = pl.DataFrame({"id": ids.tolist()}, schema={"id": pl.String}).with_row_index("row")
    return frame.unique("id", keep="first", maintain_order=True).with_columns(pl.col("row").cast(pl.Int64))


def rows_of(frame: pl.DataFrame, column: str, key: str, lines: Lines, digest: str) -> np.ndarray:
    """(n,) int64, rising: where the members of an expert lie. Raises ValueError where some are gone or other posts."""
    import polars as pl

    mine = frame.filter((pl.col("of") == column) & (pl.col("key") == key)).select("id")
    rows = mine.join(positions(lines.ids), on="id", how="inner")["row"].sort().to_numpy()
    if len(rows) != mine.height or digest_of(lines.of(rows)) != digest:
        raise MissingInput(
            f"{key} was kept, but its weights are gone, and {mine.height - len(rows)} of the {mine.height} posts that "
            "it was trained on are, too, or have other hashtags: set repartition.retrain_share = 0 to train it on the "
            "posts that it has now"
        )
    found: np.ndarray = rows
    return found


def as_metadata(expert: Members, random: Members) -> dict[str, Any]:
    return {
        "members": expert.digests,
        "random_members": random.digests,
        "lineage": {"expert": expert.lineage, "random": random.lineage},
        "kept_members": {"expert": expert.kept, "random": random.kept},
    }
