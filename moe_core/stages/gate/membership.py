"""Which posts each expert is trained on, and the content hash that it is known by.

`trained.parquet` of a partition that follows another has the members of each expert as its content hash names them,
which for an expert that is retained are those it was trained on. A partition that follows none needs no such file: its
assignment says the same.

Letters: N posts, T tags.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from moe_core.engine.context import Context
from moe_core.errors import MissingInput
from moe_core.stages import reading
from moe_core.store.artifact import Artifact


@dataclass(frozen=True)
class Lines:
    """One line of text a post: its id and the hashtags that are predicted, and the version of a shard that is younger
    than the trunk, so that an expert is known by all that it saw."""

    ids: np.ndarray  # (N,) of str
    shards: np.ndarray  # (N,) of str
    index: reading.Index
    arrived: Mapping[str, str]  # shard that the trunk has not seen -> version of its posts

    def of(self, rows: np.ndarray) -> list[str]:
        """Lines of some posts, in their order."""
        labels = self.index.labels
        tags = (labels.tags_T[labels.starts_N1[row] : labels.starts_N1[row + 1]].tolist() for row in rows)
        versions = {shard: f" {version}" for shard, version in self.arrived.items()}
        return [
            f"{self.ids[row]} {','.join(map(str, tags_of_row))}" + versions.get(self.shards[row], "")
            for row, tags_of_row in zip(rows.tolist(), tags, strict=True)
        ]


def lines(context: Context, columns: pl.DataFrame, index: reading.Index) -> Lines:
    """`columns`: shard and id of all the posts, in the one order."""
    seen = {shard.key for shard in context.frozen.shards}
    arrived = {shard.key: context.version("posts", shard.key) for shard in context.shards if shard.key not in seen}
    return Lines(columns["id"].to_numpy(), columns["shard"].to_numpy(), index, arrived)


def hash_of(lines: Sequence[str]) -> str:
    """Content hash of members, whatever their order."""
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:20]


def hashes_of(keys: Sequence[str], number_N: np.ndarray, training_N: np.ndarray, lines: Lines) -> dict[str, str]:
    """Content hash of the training posts of each expert; `number_N` says whose a post is."""
    return {key: hash_of(lines.of(np.flatnonzero(training_N & (number_N == k)))) for k, key in enumerate(keys)}


def frame_of(column: str, key: str, ids: np.ndarray, text: Sequence[str], gone: Sequence[str] = ()) -> pl.DataFrame:
    """Columns of, key, id, mark of an expert's members; the mark of those that are `gone` is 0."""
    marks = [int.from_bytes(hashlib.blake2b(line.encode(), digest_size=8).digest()) for line in text]
    columns = {"id": [*ids.tolist(), *gone], "mark": marks + [0] * len(gone)}
    return pl.DataFrame(columns, schema={"id": pl.String, "mark": pl.UInt64}).select(
        pl.lit(column).alias("of"), pl.lit(key).alias("key"), "id", "mark"
    )


def trained_of(old: Artifact, lines: Lines) -> pl.DataFrame:
    """Columns of, key, id, mark: what the experts of a partition were trained on.

    Of one that follows none, by its assignment and by the hashtags that its posts have now; a post that is gone has
    mark 0.
    """
    if "trained.parquet" in old.files:
        return pl.read_parquet(old.file("trained.parquet"), glob=False)
    rows = pl.read_parquet(old.file("assignment.parquet"), glob=False).filter(pl.col("split") == "train")
    now = positions(lines.ids)
    keys = list(old.metadata["members"])
    frames = []
    for column in ("expert", "random"):  # the partition, and its control
        for k, key in enumerate(keys):
            mine = rows.filter(pl.col(column) == k).select("id").join(now, on="id", how="left", maintain_order="left")
            there = mine["row"].drop_nulls().to_numpy()
            there = there[lines.index.labels.tagged_N[there]]
            gone = mine.filter(pl.col("row").is_null())["id"].to_list()
            frames.append(frame_of(column, key, lines.ids[there], lines.of(there), gone))
    return pl.concat(frames)


def positions(ids: np.ndarray) -> pl.DataFrame:
    """Columns id and row: where each id comes first, which is the post that is used."""
    frame = pl.DataFrame({"id": ids.tolist()}, schema={"id": pl.String}).with_row_index("row")
    return frame.unique("id", keep="first", maintain_order=True).with_columns(pl.col("row").cast(pl.Int64))


def rows_of(frame: pl.DataFrame, column: str, key: str, lines: Lines, content_hash: str) -> np.ndarray:
    """(n,) int64, rising: where the members of an expert lie. Raises MissingInput where some are gone or changed."""
    mine = frame.filter((pl.col("of") == column) & (pl.col("key") == key)).select("id")
    rows = mine.join(positions(lines.ids), on="id", how="inner")["row"].sort().to_numpy()
    if len(rows) != mine.height or hash_of(lines.of(rows)) != content_hash:
        raise MissingInput(
            f"{key} was kept, but its weights are gone, and {mine.height - len(rows)} of the {mine.height} posts that "
            "it was trained on are, too, or have other hashtags: set repartition.retrain_share = 0 to train it on the "
            "posts that it has now"
        )
    return np.asarray(rows)
