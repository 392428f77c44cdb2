"""Which posts each expert is trained on, and the content hash that it is known by.

`trained.parquet` of a partition that follows another has the members of each expert as its content hash names them,
which for an expert that is retained are those it was trained on. A partition that follows none needs no such file: its
assignment says the same.

Letters: N posts, B of a part, T tags.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from moe_core.data.loading import Labels
from moe_core.engine.context import Context
from moe_core.errors import MissingInput
from moe_core.sorting import MEMORY, first_of_equal, hashes_of
from moe_core.stages import reading
from moe_core.stages.gate import assignment
from moe_core.stages.gate.posts import post_batches
from moe_core.store.artifact import Artifact

PART = 65_536  # lines hashed at once
COLUMNS = ("expert", "random")  # of the assignment: the partition, and its control
LINE = {"id": pl.String, "line": pl.String}
MEMBER = {"of": pl.String, "key": pl.String, "id": pl.String, "mark": pl.UInt64}


@dataclass(frozen=True)
class Lines:
    """One line of text a post of a shard: its id and the hashtags that are predicted, and the version of a shard that
    is younger than the trunk, so that an expert is known by all that it saw."""

    ids: Sequence[str]
    labels: Labels
    arrived: str  # version of the posts of a shard that the trunk has not seen, else empty

    def of(self, rows: np.ndarray) -> list[str]:
        """Lines of some posts, in their order."""
        tags = (
            self.labels.tags_T[self.labels.starts_N1[row] : self.labels.starts_N1[row + 1]].tolist() for row in rows
        )
        end = f" {self.arrived}" if self.arrived else ""
        return [
            f"{self.ids[row]} {','.join(map(str, tags_of_row))}{end}"
            for row, tags_of_row in zip(rows.tolist(), tags, strict=True)
        ]

    def members(self, rows: np.ndarray) -> pl.DataFrame:
        """Columns id and line of some posts."""
        return pl.DataFrame({"id": [self.ids[row] for row in rows.tolist()], "line": self.of(rows)}, LINE)


def line_batches(context: Context) -> Iterator[tuple[slice, Lines]]:
    """Lines of all the posts, with their rows in the one order, some at a time."""
    seen = {shard.key for shard in context.frozen.shards}
    arrived = {shard.key: context.version("posts", shard.key) for shard in context.shards if shard.key not in seen}
    for batch in post_batches(context):
        yield batch.rows, Lines(batch.ids, batch.labels, arrived.get(batch.shard, ""))


class Gathered:
    """Ids and lines of the posts of each number, in files of a folder: those of one number at a time are in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()

    def add(self, number_B: np.ndarray, frame: pl.DataFrame) -> None:
        for number in np.unique(number_B).tolist():
            with open(self._file(number), "ab") as file:
                frame.filter(number_B == number).write_ipc_stream(file, compat_level=pl.CompatLevel.oldest())

    def of(self, number: int) -> pl.DataFrame:
        """Columns id and line."""
        parts = [pl.DataFrame(schema=LINE)]
        if self._file(number).exists():
            with open(self._file(number), "rb") as file:
                while file.peek(1):
                    with pa.ipc.open_stream(file) as stream:
                        parts.append(pl.DataFrame(stream.read_all()))
        return pl.concat(parts)

    def _file(self, number: int) -> Path:
        return self._folder / f"{number}.arrows"


def gathered(
    context: Context, training_N: np.ndarray, numbers: Mapping[str, np.ndarray], scratch: Path
) -> dict[str, Gathered]:
    """The training posts of each expert, by column; `numbers`, (N,) by column, say whose a post is."""
    found = {column: Gathered(scratch / f"now-{column}") for column in numbers}
    _gather(context, training_N, numbers, found)
    return found


def _gather(
    context: Context, wanted_N: np.ndarray, numbers: Mapping[str, np.ndarray], found: Mapping[str, Gathered]
) -> None:
    """Adds the wanted posts that carry a hashtag to what is found of each column, with one pass over all the posts."""
    for rows, lines in line_batches(context):
        mine = np.flatnonzero(wanted_N[rows] & lines.labels.tagged_N)
        members = lines.members(mine)
        for column, number_N in numbers.items():
            found[column].add(number_N[rows][mine], members)


def hash_of(lines: Iterable[str]) -> str:
    """Content hash of members, whatever their order."""
    ordered, found = pl.Series("line", lines, pl.String).sort(), hashlib.sha256()
    for first in range(0, len(ordered), PART):
        found.update(("\n" * (first > 0) + "\n".join(ordered[first : first + PART])).encode())
    return found.hexdigest()[:20]


def frame_of(column: str, key: str, members: pl.DataFrame) -> pl.DataFrame:
    """Columns of, key, id, mark of an expert's members, by their ids and lines; the mark of one without a line is 0."""
    marks = [mark_of(line) if line is not None else 0 for line in members["line"].to_list()]
    mark = pl.Series("mark", marks, pl.UInt64)
    return members.select(pl.lit(column).alias("of"), pl.lit(key).alias("key"), "id", mark)


def mark_of(line: str) -> int:
    return int.from_bytes(hashlib.blake2b(line.encode(), digest_size=8).digest())


class TrainedMembers:
    """What the experts of a partition were trained on.

    Of one that follows none, by its assignment and by the hashtags that its posts have now; a post that is gone has
    mark 0.
    """

    def __init__(self, context: Context, old: Artifact, scratch: Path) -> None:
        self._keys = list(old.metadata["members"])
        self._file = old.file("trained.parquet") if "trained.parquet" in old.files else None
        self._gathered = {} if self._file else _gathered_by(context, old, scratch)

    def of(self, column: str, key: str) -> pl.DataFrame:
        """Columns of, key, id, mark."""
        if self._file:
            return members_in(self._file, column, key)
        if key not in self._keys:
            return pl.DataFrame(schema=MEMBER)
        return frame_of(column, key, self._gathered[column].of(self._keys.index(key)))


def members_in(file: Path, column: str, key: str) -> pl.DataFrame:
    """Columns of, key, id, mark of an expert in `trained.parquet`."""
    rows = pl.scan_parquet(file, glob=False).filter((pl.col("of") == column) & (pl.col("key") == key))
    return rows.collect(engine="streaming")


def _gathered_by(context: Context, old: Artifact, scratch: Path) -> dict[str, Gathered]:
    """The training posts of a partition, by its assignment."""

    def training() -> Iterator[pl.DataFrame]:
        for rows in assignment.batches(old, ["id", "split", *COLUMNS]):
            yield rows.filter(pl.col("split") == "train")

    now = (hashes_of(batch.ids) for batch in post_batches(context))
    row_O = first_of_equal(now, (hashes_of(rows["id"].to_list()) for rows in training()), scratch / "old", MEMORY)
    found = {column: Gathered(scratch / f"old-{column}") for column in COLUMNS}
    count, first = reading.count_posts(context), 0
    was_N, numbers = np.zeros(count, bool), {column: np.zeros(count, np.int32) for column in COLUMNS}
    for rows in training():
        row = row_O[first : first + len(rows)]
        first += len(rows)
        gone = rows.filter(row < 0).select("id", pl.lit(None, pl.String).alias("line"))
        was_N[row[row >= 0]] = True
        for column, number_N in numbers.items():
            number = rows[column].to_numpy()
            number_N[row[row >= 0]] = number[row >= 0]
            found[column].add(number[row < 0], gone)
    _gather(context, was_N, numbers, found)
    return found


def rows_of(
    context: Context, file: Path, column: str, hashes: Mapping[str, str], scratch: Path
) -> dict[str, np.ndarray]:
    """Where the members of experts with these content hashes lie, by `trained.parquet`: rows, rising, by key.

    Raises MissingInput where some are gone or changed.
    """
    counts: list[int] = []

    def members() -> Iterator[np.ndarray]:
        for key in hashes:
            ids = members_in(file, column, key)["id"].to_list()
            counts.append(len(ids))
            yield hashes_of(ids)

    now = (hashes_of(batch.ids) for batch in post_batches(context))
    row_M = first_of_equal(now, members(), scratch / "members", MEMORY)
    rows = {key: np.sort(of_key) for key, of_key in zip(hashes, np.split(row_M, np.cumsum(counts)[:-1]), strict=True)}
    found = Gathered(scratch / "lines")
    for some, lines in line_batches(context):
        for number, of_key in enumerate(rows.values()):
            mine = of_key[slice(*np.searchsorted(of_key, (some.start, some.stop)))] - some.start
            found.add(np.full(len(mine), number), lines.members(mine))
    for number, (key, content_hash) in enumerate(hashes.items()):
        gone = int((rows[key] < 0).sum())
        if gone or hash_of(found.of(number)["line"]) != content_hash:
            raise MissingInput(
                f"{key} was kept, but its weights are gone, and {gone} of the {counts[number]} posts that it was "
                "trained on are, too, or have other hashtags: set repartition.retrain_share = 0 to train it on the "
                "posts that it has now"
            )
    return rows
