"""splits: which post is for training, choosing, testing or routing, with near-duplicates of all shards on one side.

Reads signatures and no pixels. Everything downstream takes a post's split from here. Posts are read shard by shard, a
part at a time, three times over: ids, users and given splits; signatures; what is written. Of all posts together only
numbers are in memory, a few bytes each (docs/explanation/splits.md); hashes and signatures are sorted on the disk.

Letters: N posts.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from moe_core.clustering.neighbors import near_pairs
from moe_core.data.duplicates import SIGNATURE_BYTES
from moe_core.data.groups import Pictures, Signatures
from moe_core.data.splits import ALONE, PART, SPLITS, Places, decide, given_of, given_range, leaks
from moe_core.engine.context import Context
from moe_core.sorting import HASH, MEMORY, ROW, Sorter, big_endian, different, hashes_of, numbers, starts
from moe_core.stages import reading
from moe_core.stages.data.rows import remove_gone_shards
from moe_core.store.artifact import Spec, StageOutput
from moe_core.tables.lance_tags import advance_lance_tags
from moe_core.tables.location import tables_of

WRITTEN = {"shard": pl.String, "position": pl.Int64, "id": pl.String, "group": pl.Int64, "split": pl.String}


def make(context: Context, spec: Spec, folder: Path) -> StageOutput:
    tables = tables_of(context.store)
    remove_gone_shards(tables, [shard.key for shard in context.shards])
    for table in tables:  # all shards at one version: each reader opens one
        advance_lance_tags(table)
    data = context.study.data
    with tempfile.TemporaryDirectory(dir=folder, prefix=".scratch-") as name:
        scratch = Path(name)
        posts = _read_posts(context, scratch)
        pictures = _read_pictures(context, posts.repeated_N, scratch)
        if data.near_duplicates == "group":
            pictures.group(data.near_duplicate_levels, near_pairs)
        group_N = _groups(pictures, posts.repeated_N, data.near_duplicates == "group")
        split_N = decide(group_N, posts.given_N, posts.place_N, data)
        users = Sorter(scratch / "users", HASH + 1, HASH + 1, MEMORY // 4)
        leaking = _write(context, folder, group_N, split_N, posts.given_N, pictures.number_N, users)
        apart = _users_apart(users)
    leaking.write_parquet(folder / "leaks.parquet", statistics=False)
    size_N = _sizes(group_N)
    used, found = len(posts) - int(posts.repeated_N.sum()), int((size_N > 0).sum())
    return StageOutput(
        {
            "posts": len(posts),
            "splits": dict(zip(SPLITS, np.bincount(split_N, minlength=len(SPLITS)).tolist(), strict=True)),
            "duplicate_ids": len(posts) - used,
            "pictures": found,
            "groups": int((size_N > 1).sum()),
            "largest_group": int(size_N.max(initial=0)),
            "near_duplicates": used - found,
            "equal_signatures": used - len(pictures),
            "leaking_groups": leaking["group"].n_unique(),
            "leaking_groups_same": leaking.filter(pl.col("same"))["group"].n_unique(),
            "leaking_posts": len(leaking),
            "leaks_removed": int((leaking["split"] == "dropped").sum()),
            "users_apart": apart,
            "snapshot": {shard.key: context.version("posts", shard.key) for shard in context.shards},
        }
    )


def batches(context: Context, columns: list[str]) -> Iterator[pl.DataFrame]:
    """Columns of all the posts a part at a time, in the one order; reports how many were read."""
    read = 0
    for posts in reading.column_batches(context, columns):
        read += len(posts)
        context.report({"posts": read})
        yield posts


def signatures_in(frame: pl.DataFrame) -> np.ndarray:
    """(N, SIGNATURE_BYTES) uint8."""
    return np.frombuffer(b"".join(frame["signature"].to_list()), np.uint8).reshape(-1, SIGNATURE_BYTES)


def sorted_by_hash(folder: Path) -> Sorter:
    """Takes rows of a hash and the number of a post."""
    return Sorter(folder, HASH + ROW, HASH + ROW, MEMORY // 4)


def later_of_equal(rows_of_hashes: Iterator[np.ndarray], count: int) -> np.ndarray:
    """(count,) bool: posts of whose hash there is an earlier post."""
    later_N, before = np.zeros(count, bool), None
    for rows in rows_of_hashes:
        new = starts(rows[:, :HASH], before)
        later_N[numbers(rows[~new, HASH:])] = True
        before = rows[-1, :HASH].copy()
    return later_N


@dataclass(frozen=True)
class _Posts:
    """What is known of N posts but for their pictures."""

    repeated_N: np.ndarray  # bool: its id came before
    given_N: np.ndarray
    place_N: np.ndarray

    def __len__(self) -> int:
        return len(self.repeated_N)


def _read_posts(context: Context, scratch: Path) -> _Posts:
    count, first = reading.count_posts(context), 0
    given_N, place_N = np.zeros(count, np.int8), np.zeros(count, np.int8)
    ids = sorted_by_hash(scratch / "ids")
    places = Places(context.study.data)
    for posts in batches(context, ["id", "user", "given"]):
        row = np.arange(first, first + len(posts))
        first += len(posts)
        given_N[row], place_N[row] = given_of(posts), places.of(posts)
        ids.add(np.hstack([hashes_of(posts["id"]), big_endian(row)]))
    return _Posts(later_of_equal(ids.sorted(), count), given_N, place_N)


def _read_pictures(context: Context, repeated_N: np.ndarray, scratch: Path) -> Pictures:
    signatures, first = Signatures(scratch, len(repeated_N), MEMORY), 0
    for posts in batches(context, ["signature"]):
        signatures.add(signatures_in(posts), repeated_N[first : first + len(posts)])
        first += len(posts)
    return signatures.pictures()


def _groups(pictures: Pictures, repeated_N: np.ndarray, joined: bool) -> np.ndarray:
    """(N,) first post of the group of each post; N where its id came before."""
    count = len(repeated_N)
    group_N = np.full(count, count, pictures.number_N.dtype)
    for first in range(0, count, PART):
        row = first + np.flatnonzero(~repeated_N[first : first + PART])
        group_N[row] = pictures.first_of(pictures.number_N[row]) if joined else row
    return group_N


def _sizes(group_N: np.ndarray) -> np.ndarray:
    """(N,) number of posts of the group whose first post it is."""
    size_N = np.zeros(len(group_N), group_N.dtype)
    for first in range(0, len(group_N), PART):
        group = group_N[first : first + PART]
        np.add.at(size_N, group[group < len(group_N)], 1)
    return size_N


def _write(
    context: Context,
    folder: Path,
    group_N: np.ndarray,
    split_N: np.ndarray,
    given_N: np.ndarray,
    number_N: np.ndarray,
    users: Sorter,
) -> pl.DataFrame:
    """Writes splits.parquet and returns what leaks.parquet is to hold; gives `users` the splits of each."""
    top_N, bottom_N = given_range(group_N, given_N)
    several, number = [pl.DataFrame(schema=WRITTEN | {"given": pl.String})], [number_N[:0]]
    first, count = 0, len(group_N)
    schema = pl.DataFrame(schema=WRITTEN).to_arrow(compat_level=pl.CompatLevel.oldest()).schema
    with pq.ParquetWriter(folder / "splits.parquet", schema, compression="zstd", write_statistics=False) as file:
        for posts in batches(context, ["shard", "position", "id", "user", "given"]):
            some = slice(first, first + len(posts))
            alone = group_N[some] == count
            group = np.where(alone, ALONE, group_N[some].astype(np.int64))
            posts = posts.with_columns(
                pl.Series("group", group, pl.Int64),
                pl.Series("split", np.array(SPLITS)[split_N[some]], pl.String),
            )
            file.write_table(posts.select(*WRITTEN).to_arrow(compat_level=pl.CompatLevel.oldest()))
            of_several = ~alone & (top_N[np.maximum(group, 0)] != bottom_N[np.maximum(group, 0)])
            several.append(posts.filter(of_several).select(*WRITTEN, "given"))
            number.append(number_N[some][of_several])
            named = (posts["user"].fill_null("") != "").to_numpy() & (split_N[some] != SPLITS.index("dropped"))
            users.add(np.hstack([hashes_of(posts["user"].filter(named)), split_N[some][named, None].view(np.uint8)]))
            first += len(posts)
    return leaks(pl.concat(several), np.concatenate(number).astype(np.int64))


def _users_apart(users: Sorter) -> int:
    """Users whose posts lie in more than one split."""
    found = 0
    for rows in different(users.sorted(), HASH):
        found += int((np.diff(np.append(np.flatnonzero(starts(rows[:, :HASH], None)), len(rows))) > 1).sum())
    return found
