"""A second look at the splits, by other means than they were made."""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from moe_core.clustering.neighbors import pairs_by_scan
from moe_core.data.duplicates import RADIUS, codes, is_plain, same_picture, signature
from moe_core.data.images import stored_as
from moe_core.data.loading import open_images
from moe_core.data.splits import SPLITS, across, given_of
from moe_core.engine.context import Context
from moe_core.sorting import MEMORY, Sorter, big_endian, different, hashes_of
from moe_core.stages import reading
from moe_core.stages.data.splits import (
    batches,
    later_of_equal,
    signatures_in,
    sorted_by_hash,
)
from moe_core.store.files import hidden_name
from moe_core.tables.location import tables_of

READ = 100  # pictures in memory at once
PICTURE = 8  # bytes of the hash of a signature
KEY = ["shard", "position", "id"]
NUMBER = {name: number for number, name in enumerate(SPLITS)}
SAMPLE = 1000  # held-out posts that the check searches again among all others, one by one


@dataclass
class Checked:
    """What a second look at the written splits found."""

    violations: dict[str, int] = field(default_factory=dict)  # kind -> how many
    given: int = 0  # pictures that lie in several splits because the source gives them so
    searched: int = 0  # held-out posts that were looked for among all others
    examples: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not any(self.violations.values())


def check(context: Context) -> Checked:
    """Looks for what must not be, in what was written and in what lies in posts.lance, by other means than
    `splits.make`.

    Every post: the table is that of the posts, an id is used once, equal signatures lie in one split. A sample of
    held-out posts: their signature follows from their stored pixels, and a scan finds none of them in another split.
    """
    scratch = hidden_name(context.store.layout.scratch)  # made where not all fits in memory
    try:
        found = Checked()
        posts = _read(context, scratch, found)
        if posts and context.study.data.near_duplicates != "off":
            _search(context, posts, found)
            if context.study.data.leaks == "remove":
                found.violations["given_leaks"], found.given = found.given, 0
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return found


@dataclass(frozen=True)
class _Posts:
    """N posts as they were read and as the table splits them."""

    split_N: np.ndarray  # int8: a number in SPLITS, or -1
    given_N: np.ndarray  # int8: as `given_of` says


def _read(context: Context, scratch: Path, found: Checked) -> _Posts | None:
    """Compares the table with the posts and counts what is wrong with all of them; None where the rows are others."""
    count, first = reading.count_posts(context), 0
    split_N, given_N = np.full(count, -1, np.int8), np.zeros(count, np.int8)
    ids = sorted_by_hash(scratch / "ids")
    pictures = Sorter(scratch / "pictures", PICTURE + 2, PICTURE + 2, MEMORY // 4)
    written = _Cut(reading.split_batches(context))
    same = True
    for posts in batches(context, ["shard", "position", "id", "given", "signature"]):
        of_these = written.take(len(posts))
        same = same and of_these.select(KEY).equals(posts.select(KEY))
        if not same:
            continue
        some = slice(first, first + len(posts))
        number = of_these["split"].replace_strict(NUMBER, default=-1, return_dtype=pl.Int8)
        split_N[some], given_N[some] = number.to_numpy(), given_of(posts)
        used = split_N[some] != NUMBER["dropped"]
        ids.add(np.hstack([hashes_of(posts["id"].filter(used)), big_endian(first + np.flatnonzero(used))]))
        kinds = np.stack([split_N[some], given_N[some]], axis=1)[used].view(np.uint8)
        pictures.add(np.hstack([_hashes(signatures_in(posts)[used]), kinds]))
        first += len(posts)
    rows = written.rest()
    if not same or rows != count:
        found.violations["rows"] = 1
        found.examples.append(f"splits.parquet has {rows} posts in another order than the {count} of posts")
        return None
    found.violations["unknown_splits"] = int((split_N == -1).sum())
    found.violations["ids"] = int(later_of_equal(ids.sorted(), count).sum())
    if context.study.data.near_duplicates != "off":
        unexplained, found.given = _across(pictures)
        found.violations["equal_signatures"] = unexplained
    return _Posts(split_N, given_N)


class _Cut:
    """Frames one after the other, of which any number of rows is taken."""

    def __init__(self, frames: Iterator[pl.DataFrame]) -> None:
        self._frames, self._left, self._taken = frames, pl.DataFrame(), 0

    def take(self, rows: int) -> pl.DataFrame:
        """The next rows; fewer at the end."""
        while len(self._left) < rows and (frame := next(self._frames, None)) is not None:
            self._left = pl.concat([self._left, frame]) if len(self._left) else frame
        taken, self._left = self._left[:rows], self._left[rows:]
        self._taken += len(taken)
        return taken

    def rest(self) -> int:
        """The number of all rows, those that were taken with the rest."""
        return self._taken + len(self._left) + sum(map(len, self._frames))


def _across(pictures: Sorter) -> tuple[int, int]:
    """(pictures that we put into several splits, that the source did), of rows of hash, split and given split."""
    totals = np.zeros(2, np.int64)
    for rows in different(pictures.sorted(), PICTURE):
        split = np.array([*SPLITS, "?"])[rows[:, PICTURE].view(np.int8)]  # -1, another name, is the last
        given = pl.Series("given", rows[:, PICTURE + 1]).replace({0: None})
        frame = pl.DataFrame({"split": pl.Series(split, dtype=pl.String), "given": given})
        totals += across(frame["split"], frame["given"], _numbers(rows))
    return int(totals[0]), int(totals[1])


def _numbers(rows: np.ndarray) -> np.ndarray:
    """(N,) int64 of the hashes with which rows begin."""
    return np.ascontiguousarray(rows[:, :PICTURE]).view(np.int64).ravel()


def _search(context: Context, posts: _Posts, found: Checked) -> None:
    """Looks for a sample of held-out posts among those of other splits; notes into `found` what it finds."""
    split_N, given_N = posts.split_N, posts.given_N
    held_N = np.flatnonzero((split_N != NUMBER["train"]) & (split_N != NUMBER["dropped"]))
    sample = np.sort(np.random.default_rng(0).permutation(held_N)[:SAMPLE])
    found.searched = len(sample)
    if not len(sample):
        return
    levels = context.study.data.near_duplicate_levels * 0.999  # as near as rounding lets be sure
    look_QW, ids = _sampled(context, sample)
    found.violations["stale_signatures"] = _stale(context, look_QW, sample)
    code_QB = codes(look_QW)
    sampled = np.flatnonzero(~is_plain(code_QB))
    pairs: list[tuple[int, int]] = []
    first = 0
    for part in batches(context, ["id", "signature"]):
        look_NW = signatures_in(part)
        code_NB = codes(look_NW)
        busy = np.flatnonzero(~is_plain(code_NB) & (split_N[first : first + len(part)] != NUMBER["dropped"]))
        query, row = pairs_by_scan(code_QB[sampled], code_NB[busy], RADIUS)
        query, row = sampled[query], busy[row]
        apart = split_N[sample[query]] != split_N[first + row]
        query, row = query[apart], row[apart]
        same = same_picture(look_QW[query], look_NW[row], levels)
        pairs += zip(sample[query[same]].tolist(), (first + row[same]).tolist(), strict=True)
        ids |= {first + number: part["id"][number] for number in row[same].tolist()}
        first += len(part)
    pairs.sort()
    bad = [(a, b) for a, b in pairs if not given_N[a] or not given_N[b] or given_N[a] == given_N[b]]
    found.violations["near_duplicates"] = len(bad)
    found.given = max(found.given, len({a for a, _ in pairs}) - len({a for a, _ in bad}))
    found.examples += [f"{ids[a]} in {SPLITS[split_N[a]]} is {ids[b]} in {SPLITS[split_N[b]]}" for a, b in bad[:3]]


def _sampled(context: Context, sample: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
    """(signatures of some posts, given by ascending rows; their ids by row)."""
    looks, first = [], 0
    ids: dict[int, str] = {}
    for part in batches(context, ["id", "signature"]):
        rows = sample[(sample >= first) & (sample < first + len(part))] - first
        looks.append(signatures_in(part[rows]))
        ids |= dict(zip((first + rows).tolist(), part["id"].gather(rows).to_list(), strict=True))
        first += len(part)
    return np.concatenate(looks), ids


def _stale(context: Context, look_QW: np.ndarray, rows: np.ndarray) -> int:
    """Of some posts, how many have another signature than their stored pixels."""
    data = context.study.data
    if stored_as(data.image_size, data.store) not in ("raw", "png"):  # others move pixels, there is no telling how far
        return 0
    images = open_images(tables_of(context.store).posts, reading.places(context), data.image_size)
    seen = [signature(images.read(part)) for part in np.array_split(rows, -(-len(rows) // READ))]
    return int((np.concatenate(seen) != look_QW).any(axis=1).sum())


def _hashes(signature_NW: np.ndarray) -> np.ndarray:
    """(N, PICTURE) uint8, equal for equal signatures: by their hashes, where `splits.make` sorts them."""
    found = (hashlib.blake2b(row, digest_size=PICTURE).digest() for row in signature_NW)
    return np.frombuffer(b"".join(found), np.uint8).reshape(-1, PICTURE)
