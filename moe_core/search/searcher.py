"""Searches the posts of a mixture by images, posts and hashtags.

Letters: N posts, D embedding width.
"""

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from PIL import Image

from moe_core.data.images import read_pixels
from moe_core.data.splits import SPLITS
from moe_core.data.takedowns import Takedowns
from moe_core.data.vocabulary import load
from moe_core.engine.context import Context
from moe_core.errors import BadSetting, CorruptArtifact, MissingInput, Unknown
from moe_core.search.files import POSTS_FILE, VectorFiles, open_posts
from moe_core.search.filters import Filters, allowed
from moe_core.search.lists import Lists, unit
from moe_core.search.posts import rows_of_ids
from moe_core.search.query import Hashtags, Picture, combined, embedded, pixels_of, tag_vectors
from moe_core.serving.bundle import Bundle
from moe_core.serving.publication import mixture_in
from moe_core.store.artifact import Artifact
from moe_core.store.layout import NAMES
from moe_core.store.protocols import ArtifactStore
from moe_core.tables.lance_tags import lance_tag_of
from moe_core.tables.location import tables_of
from moe_core.tables.reading import find_row
from moe_core.text import shown

MOST = 10_000  # answers of one query
NO_FILTERS = Filters()


@dataclass(frozen=True)
class Hit:
    """A post in an answer."""

    id: str
    score: float  # inner product of the query and the post's embedding, both of unit length
    tags: list[str]
    expert: str
    split: str | None  # None where it is not recorded for these posts any more
    user: str | None
    taken_at: datetime | None  # UTC
    original: str | None  # path or URL where the source has the image
    shard: str


@dataclass(frozen=True)
class Answer:
    """Hits, the best first, and how they were found."""

    hits: list[Hit]
    experts: list[str]  # of each image that was asked by
    exact: bool  # every post was compared


class Searcher:
    """Searches the posts that a mixture embedded: the published one, or that of a version or its beginning.

    Threads may share it. What is taken down meanwhile is in no further answer; for a newly published mixture open
    another one. Vectors are in memory where they take at most `memory_bytes`, by default the study's search.memory_mib.
    `bundle`: the same mixture where the caller has it open; else it is opened when an image or a hashtag is first asked
    by. `index` is the artifact search_index, whose metadata have the recall.

    Raises MissingInput where the mixture or its index is not in the store.
    """

    def __init__(
        self,
        context: Context,
        version: str | None = None,
        memory_bytes: int | None = None,
        bundle: Bundle | None = None,
        device: str | None = None,
    ) -> None:
        self._context, self._store = context, context.store
        self.mixture = mixture_in(context.store, version)
        self.published: dict[str, bool] = dict(self.mixture.metadata["published"])  # by expert, in their order
        if bundle is not None and not bundle.parts.items() <= self.mixture.inputs.items():
            raise BadSetting(f"the bundle at {bundle.folder} is not mixture {self.mixture.version}")
        self._bundle, self._opening = bundle, threading.Lock()
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.index = _index_of(self._store, self.mixture.version)
        self._posts = open_posts(self.index.file(POSTS_FILE))
        if memory_bytes is None:
            memory_bytes = context.study.search.memory_mib << 20
        probes = int(self.index.metadata["probes"])
        self._vectors = Lists(VectorFiles(self.index.file), memory_bytes, probes)
        self._hashtags = self._read_hashtags()
        self._takedowns, self._stamp = Takedowns(), ""

    def __len__(self) -> int:
        return len(self._posts)

    @property
    def bundle(self) -> Bundle:
        """The mixture, opened when it is first wanted."""
        with self._opening:
            if self._bundle is None:
                self._bundle = Bundle(self.mixture)
            return self._bundle

    @property
    def store(self) -> ArtifactStore:
        return self._store

    @property
    def embeddings(self) -> list[Artifact]:
        """Of each shard, in the order of the posts. Raises MissingInput where a takedown removed one since."""
        shards: Any = self.index.metadata["shards"]
        found = [self._store.get("embeddings", key, self.index.inputs[f"embeddings {key}"]) for key in shards]
        if None in found:
            raise MissingInput("embeddings of these posts were removed: `hardmoe run` makes them again", "embeddings")
        return [artifact for artifact in found if artifact]

    def is_outdated(self) -> bool:
        """Whether the mixture has a newer index by now, such as with the posts of a shard that arrived."""
        return any(index.made_at > self.index.made_at for index in _indices(self._store, self.mixture.version))

    @property
    def table(self) -> pa.Table:
        """Rows of posts.SEARCHED: what is known of each post, taken down meanwhile or not."""
        return self._posts

    @property
    def vectors(self) -> Lists:
        """Of the same posts."""
        return self._vectors

    @property
    def hashtags(self) -> Hashtags:
        """Those of the mixture, and what else is written for them."""
        return self._hashtags

    @property
    def takedowns(self) -> Takedowns:
        """As they are now."""
        return self._current_takedowns()

    def row(self, post_id: str) -> int:
        """Where a post is among them. Raises Unknown, also where it is taken down."""
        return int(self._rows_of([post_id], self._current_takedowns())[post_id][0])

    def find(
        self,
        images: Sequence[Picture] = (),
        posts: Sequence[str] = (),
        tags: Sequence[str] = (),
        without: Sequence[str] = (),
        filters: Filters = NO_FILTERS,
        top: int = 20,
    ) -> list[Hit]:
        """The `top` posts nearest to all of these together, the best first; query.py says how they are combined.

        `images` are (H, W, 3) uint8 arrays, bytes or paths of image files; `posts` ids, which are left out of the
        answer; `without` hashtags that are not wanted. Raises BadImage for an image that cannot be decoded, Unknown
        for a post or hashtag that is not there, BadSetting for what makes no query.
        """
        return self.answer(images, posts, tags, without, filters, top).hits

    def answer(
        self,
        images: Sequence[Picture] = (),
        posts: Sequence[str] = (),
        tags: Sequence[str] = (),
        without: Sequence[str] = (),
        filters: Filters = NO_FILTERS,
        top: int = 20,
    ) -> Answer:
        """As `find`, with the expert of each image and how it was searched."""
        if not 1 <= top <= MOST:
            raise BadSetting(f"top {top}: wanted 1 to {MOST:,}")
        takedowns = self._current_takedowns()
        asked = self._rows_of(posts, takedowns)
        allowed_N = self.allowed(filters)
        parts = [self._vectors.rows(np.array([rows[0] for rows in asked.values()]))] if asked else []
        experts: list[str] = []
        if images:
            embedding_ND, experts = embedded(self.bundle, pixels_of(images, self.bundle.image_size), self._device)
            parts.append(unit(embedding_ND))
        vectors = {name: self._tags(some) for name, some in (("tags", tags), ("without", without)) if some}
        parts += [vectors["tags"]] if tags else []
        none = np.empty((0, 1), np.float32)
        query_D = combined(np.concatenate(parts) if parts else none, vectors.get("without", none))
        left_out = {int(row) for rows in asked.values() for row in rows}
        return Answer(self._hits(query_D, allowed_N, left_out, takedowns, top), experts, self._vectors.is_exact)

    def picture(self, post_id: str) -> bytes | None:
        """The stored image of a post as an image file (JPEG, PNG or WebP); None where it is not there any more."""
        takedowns = self._current_takedowns()
        try:
            row = self._rows_of([post_id], takedowns)[post_id][0]
        except Unknown:
            return None
        shard, position = self._posts["shard"][row].as_py(), self._posts["position"][row].as_py()
        table, size = tables_of(self._store).posts, self.mixture.settings["data"]["image_size"]
        embedded_from: Any = self.index.metadata["shards"]
        for version in (lance_tag_of(shard, embedded_from[shard]), None):  # what a takedown left of a shard has no tag
            try:
                found = find_row(table, version, shard, position, ["id", "image"])
            except (CorruptArtifact, OSError):
                continue
            if found and found["id"] == post_id:
                return _as_file(found["image"], size)
        return None

    def posts(self, filters: Filters = NO_FILTERS) -> pl.DataFrame:
        """Columns of SEARCHED of the posts that fulfil the conditions, in their order, experts by their keys; without
        what was taken down. Raises BadSetting for a condition that names nothing."""
        takedowns, allowed_N = self._current_takedowns(), self.allowed(filters)
        found = pl.DataFrame(self._posts if allowed_N is None else self._posts.filter(pa.array(allowed_N)))
        if takedowns.entries:
            found = found.filter([not takedowns.holds(*post) for post in found.select("id", "user").iter_rows()])
        keys = list(self.published)
        return found.with_columns(pl.col("expert").replace_strict(range(len(keys)), keys, return_dtype=pl.String))

    def _tags(self, written: Sequence[str]) -> np.ndarray:
        return tag_vectors(self.bundle, [self._hashtags.number(tag) for tag in written])

    def _rows_of(self, ids: Sequence[str], takedowns: Takedowns) -> dict[str, np.ndarray]:
        """Rows of each post. Raises Unknown."""
        if not ids:
            return {}
        found = rows_of_ids(self._posts, ids)
        for one, rows in found.items():
            if not len(rows) or takedowns.holds(one, self._posts["user"][int(rows[0])].as_py()):
                raise Unknown(f"no post {shown(one)!r} among the {len(self):,} of mixture {self.mixture.version}")
        return found

    def allowed(self, filters: Filters) -> np.ndarray | None:
        """(N,) bool: posts that fulfil the filters; None where there are none. Raises BadSetting."""
        if not filters:
            return None
        if filters.split is not None and filters.split not in SPLITS:
            raise BadSetting(f"no split {filters.split!r}: wanted one of {', '.join(SPLITS)}")
        tags = self._hashtags.spellings(filters.tag) if filters.tag is not None else []
        return allowed(self._posts, filters, list(self.published), tags)

    def _hits(
        self, query_D: np.ndarray, allowed_N: np.ndarray | None, left_out: set[int], takedowns: Takedowns, top: int
    ) -> list[Hit]:
        """Asks for more than `top` until so many are left that are not to be left out, or no more are there."""
        count = top + len(left_out)
        while True:
            rows, scores = self._vectors.nearest(query_D, count, allowed_N)
            hits = self._read_hits(rows, scores)
            kept = [
                hit
                for row, hit in zip(rows.tolist(), hits, strict=True)
                if row not in left_out and not takedowns.holds(hit.id, hit.user)
            ]
            if len(kept) >= top or len(rows) < count:
                return kept[:top]
            count *= 2

    def _read_hits(self, rows: np.ndarray, scores: np.ndarray) -> list[Hit]:
        keys = list(self.published)
        columns = self._posts.take(pa.array(rows)).drop_columns(["position"]).to_pylist()
        return [
            Hit(**post | {"score": round(float(score), 6), "expert": keys[post["expert"]]})
            for post, score in zip(columns, scores, strict=True)
        ]

    def _current_takedowns(self) -> Takedowns:
        (stamp,) = self._store.documents.stamps([NAMES.takedowns])
        if stamp != self._stamp:
            self._takedowns, self._stamp = Takedowns.load(self._store.documents), stamp
        return self._takedowns

    def _read_hashtags(self) -> Hashtags:
        """With synonyms, unless a takedown removed their artifact, which may hold rare tags of one user."""
        vocabulary = self._store.get("vocabulary", None, self.mixture.inputs["vocabulary"])
        accents = self._context.study.data.accents
        if vocabulary is None:
            return Hashtags(self.bundle.hashtags, {}, accents)
        known = load(vocabulary.file("hashtags.parquet"), vocabulary.file("synonyms.parquet"))
        return Hashtags(known.hashtags, known.synonyms, accents)


def _index_of(store: ArtifactStore, mixture: str) -> Artifact:
    """The newest index of a mixture's embeddings."""
    if of_mixture := _indices(store, mixture):
        return max(of_mixture, key=lambda index: index.made_at)
    others = sorted({index.inputs["mixture"] for index in store.versions("search_index", None)})
    there = f"there are of {', '.join(others)}" if others else "there is none"
    raise MissingInput(
        f"no search index of mixture {mixture}: {there}. `hardmoe run` builds that of the newest mixture; a takedown "
        "removes those that hold its posts",
        "search_index",
    )


def _indices(store: ArtifactStore, mixture: str) -> list[Artifact]:
    return [index for index in store.versions("search_index", None) if index.inputs["mixture"] == mixture]


def _as_file(stored: bytes, size: int) -> bytes:
    if len(stored) != 3 * size * size:
        return stored
    pixels_HWC = np.empty((size, size, 3), np.uint8)
    read_pixels(stored, pixels_HWC)
    file = io.BytesIO()
    Image.fromarray(pixels_HWC).save(file, "PNG")
    return file.getvalue()
