"""Posts from the store, read when they are wanted, in an order that does not depend on how Lance laid them out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from moe_core import threads
from moe_core.data.images import read_pixels
from moe_core.data.mapped import mapped
from moe_core.data.vocabulary import Vocabulary
from moe_core.errors import CorruptArtifact
from moe_core.store.hashing import content_hash
from moe_core.tables.location import Table
from moe_core.tables.reading import scan_rows, take_rows
from moe_core.tables.runs import Runs
from moe_core.tables.shards import locate
from moe_core.training.moves import Moves
from moe_core.training.posts import READ_ROWS, Images, Posts

DECODED = 8  # images that a thread decodes in one go
PART = 65_536  # posts whose hashtags are looked up at once


class Place(NamedTuple):
    """Where a shard's posts lie: a version of posts.lance, by its Lance tag or its number."""

    shard: str
    version: int | str


@dataclass(frozen=True)
class StoredImages:
    """Images of posts.lance at some places, decoded as they are read; a part of them costs what it holds, no more."""

    table: Table
    version: int  # of the data set
    runs: Runs  # rows of that version, of all the posts
    posts_N: np.ndarray | Runs  # int64: which of these posts
    size: int

    def __len__(self) -> int:
        return len(self.posts_N)

    def subset(self, rows_N: np.ndarray) -> StoredImages:
        return replace(self, posts_N=self.posts_N[rows_N])

    def offsets(self, rows_B: np.ndarray) -> np.ndarray:
        """(B,) int64: rows of the version."""
        return self.runs[self.posts_N[rows_B]]

    def read(self, rows_B: np.ndarray, moves: Moves | None = None) -> np.ndarray:
        offsets_B = self.offsets(rows_B)
        order_B = np.argsort(offsets_B, kind="stable")  # the order of the disk
        images = take_rows(self.table, self.version, offsets_B[order_B], ["image"])["image"]
        out_BHWC = np.empty((len(rows_B), self.size, self.size, 3), np.uint8)
        _put([*_views(images)], out_BHWC, order_B, moves)
        return out_BHWC

    def fetched(self, rows_N: np.ndarray) -> Images:
        """The images at these places, in memory, as they are stored."""
        offsets_N = self.offsets(rows_N)
        order_N = np.argsort(offsets_N, kind="stable")
        files: list[memoryview] = []
        for first in range(0, len(rows_N), READ_ROWS):
            offsets_B = offsets_N[order_N[first : first + READ_ROWS]]
            files += _views(take_rows(self.table, self.version, offsets_B, ["image"])["image"])
        return FetchedImages([files[place] for place in np.argsort(order_N)], self.size)


@dataclass(frozen=True)
class FetchedImages:
    """Images in memory as `images.encode` made them, decoded as they are read."""

    files: list[memoryview]
    size: int

    def __len__(self) -> int:
        return len(self.files)

    def read(self, rows_B: np.ndarray, moves: Moves | None = None) -> np.ndarray:
        out_BHWC = np.empty((len(rows_B), self.size, self.size, 3), np.uint8)
        _put([self.files[row] for row in rows_B], out_BHWC, np.arange(len(rows_B)), moves)
        return out_BHWC

    def subset(self, rows_N: np.ndarray) -> FetchedImages:
        return FetchedImages([self.files[row] for row in rows_N], self.size)

    fetched = subset


@dataclass(frozen=True)
class Labels:
    """Hashtags of all the posts in compressed rows."""

    tags_T: np.ndarray  # int64 in [0, V)
    starts_N1: np.ndarray  # int64

    @property
    def tagged_N(self) -> np.ndarray:
        """(N,) bool: carries a hashtag of the vocabulary."""
        return np.asarray(self.starts_N1[1:] > self.starts_N1[:-1])

    def parts(self, wanted_N: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(places of the posts, tags_T, starts_N1) of those where `wanted_N`, one bool a post, holds; each a part."""
        end = np.zeros(1, np.int64)
        yield end[:0], end[:0], end
        for first in range(0, len(wanted_N), PART):
            its_B = wanted_N[first : first + PART]
            starts_B1 = self.starts_N1[first : first + len(its_B) + 1]
            counts_B = np.diff(starts_B1)
            tags_T = self.tags_T[starts_B1[0] : starts_B1[-1]][np.repeat(its_B, counts_B)]
            ends_B = end + counts_B[its_B].cumsum()
            yield first + np.flatnonzero(its_B), tags_T, ends_B
            end = ends_B[-1:] if len(ends_B) else end


def read_labels(table: Table, places: Sequence[Place], vocabulary: Vocabulary, arrays: Path) -> Labels:
    """The hashtags of all the posts, shard by shard: those of many posts are mapped from files in the folder `arrays`,
    and so in memory once for all processes."""

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        end = np.zeros(1, np.int64)
        yield end[:0], end
        for place in places:
            for batch in scan_rows(table, place.version, place.shard, ["tags"], PART):
                ids_T, starts_N1 = vocabulary.compressed_rows(pl.Series(batch["tags"]))
                yield ids_T, end + starts_N1[1:]
                end = end + starts_N1[-1:]

    words = [vocabulary.hashtags, dict(vocabulary.synonyms)]
    key = content_hash({"posts": [list(place) for place in places], "vocabulary": words})
    return Labels(*mapped(arrays, key, ("tags", "starts"), parts))


def open_images(table: Table, places: Sequence[Place], size: int) -> StoredImages:
    """The images of all the posts, in the study's order; none is read yet."""
    version, runs = locate(table, places)
    return StoredImages(table, version, runs, Runs([(0, len(runs))]), size)


def open_posts(table: Table, places: Sequence[Place], labels: Labels, size: int) -> Posts:
    """All the posts, with images that are read when they are wanted."""
    images = open_images(table, places, size)
    if len(images) != len(labels.starts_N1) - 1:
        raise CorruptArtifact(
            f"hashtags of {len(labels.starts_N1) - 1} posts, {table} holds {len(images)}: "
            "were posts ingested meanwhile?"
        )
    return Posts(images, torch.from_numpy(labels.tags_T), torch.from_numpy(labels.starts_N1))


def _views(stored: pa.ChunkedArray) -> Iterator[memoryview]:
    """The bytes of each image, in the memory where they are."""
    for chunk in stored.chunks:
        _, ends, values = chunk.buffers()
        its_ends = np.frombuffer(ends, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        view = memoryview(values).cast("B")
        yield from (view[first:end] for first, end in pairwise(its_ends.tolist()))


def _put(stored: list[memoryview], out_NHWC: np.ndarray, places_N: np.ndarray, moves: Moves | None) -> None:
    """What `images.encode` made into its places: raw pixels all at once, files decoded by a share of the cores."""
    if all(len(raw) == out_NHWC[0].nbytes for raw in stored):
        images_NHWC = np.frombuffer(b"".join(stored), np.uint8).reshape(-1, *out_NHWC.shape[1:])
        out_NHWC[places_N] = moves[places_N].of(images_NHWC) if moves else images_NHWC
        return

    def decode(first: int) -> None:
        some = slice(first, first + DECODED)
        for file, place in zip(stored[some], places_N[some].tolist(), strict=True):
            mirrored = moves is not None and moves.mirrored_N[place]
            read_pixels(file, out_NHWC[place], "BGR" if mirrored else "RGB")
            if moves:
                moves.move(place, out_NHWC[place])

    with ThreadPoolExecutor(threads.share()) as pool:
        list(pool.map(decode, range(0, len(stored), DECODED)))
