"""Posts of a mixture to look at: its clusters, posts by what they are, and a sample of them on a plane.

Letters: N posts, M of the sample, K experts, D embedding width, T tags of all posts.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from moe_core.data.splits import SPLITS
from moe_core.data.vocabulary import Vocabulary
from moe_core.errors import BadSetting, Unknown
from moe_core.search.doubts import Doubt, Doubts, doubts_of
from moe_core.search.filters import Filters
from moe_core.search.plane import Plane, fitted
from moe_core.search.searcher import NO_FILTERS, Searcher
from moe_core.text import shown

SAMPLE = 4_000  # posts on the plane at most, some of each expert
LEAST = 24  # of each expert among them, where it has so many
HASHTAGS = 12  # of each cluster
TYPICAL = 12  # posts of each cluster
MOST = 200  # posts of a page
ORDERS = ("stored", "worst", "suspect")


@dataclass(frozen=True)
class Post:
    """What is known of a post; `row`: where it is among those of the searcher."""

    row: int
    id: str
    tags: list[str]
    expert: str
    split: str | None
    user: str | None
    taken_at: Any
    original: str | None
    doubt: Doubt | None = None  # what the mixture and the trunk say, where posts are ordered by it


@dataclass(frozen=True)
class Page:
    """Some posts of a list; those that were taken down are left out of `posts`, not of `total`."""

    total: int
    posts: list[Post]
    judged: tuple[int, int] | None = (
        None  # where it is ordered by a judgement: posts that were judged, drawn from these
    )


@dataclass(frozen=True)
class Cluster:
    """An expert and its posts. `tags`: (hashtag, posts of the cluster with it, times its share among all posts)."""

    expert: str
    published: bool
    posts: int
    tags: list[tuple[str, int, float]]
    typical: list[str]  # ids of those nearest to the mean embedding of the sample


class Browser:
    """Looks at the posts of a searcher. Threads may share it; what is taken down meanwhile is in no further answer."""

    def __init__(self, searcher: Searcher) -> None:
        self.searcher = searcher
        self.keys = list(searcher.published)
        self._making = threading.RLock()  # what takes long is made once, while others wait

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(list(self.searcher.hashtags.hashtags), self.searcher.hashtags.synonyms)

    def is_outdated(self) -> bool:
        """Whether the store has newer ones of the mixture by now, such as those of a shard that arrived."""
        return self.searcher.is_outdated()

    def filters(
        self, split: str | None = None, expert: str | None = None, tag: str | None = None, user: str | None = None
    ) -> Filters:
        """Conditions that hold together; None or empty is no condition. Raises BadSetting."""
        if split and split not in SPLITS:
            raise BadSetting(f"no split {shown(split)!r}: wanted one of {', '.join(SPLITS)}")
        return Filters(split=split or None, expert=expert or None, tag=tag or None, user=user or None)

    def splits(self) -> dict[str, int]:
        """Number of posts of each split; none where it is not recorded."""
        counts = dict(self.searcher.table.group_by("split").aggregate([("split", "count")]).to_pydict().items())
        found = dict(zip(counts["split"], counts["split_count"], strict=True))
        return {name: found[name] for name in SPLITS if found.get(name)}

    def page(self, filters: Filters = NO_FILTERS, order: str = "stored", first: int = 0, top: int = 60) -> Page:
        """Posts `first` to `first` + `top` of those that fulfil the filters.

        `order`: as they are stored; "worst": those first whose hashtags the mixture holds for the least probable;
        "suspect": those first where the trunk and the expert agree on a hashtag that the post does not carry. Raises
        BadSetting; MissingInput where "worst" or "suspect" cannot be told.
        """
        if order not in ORDERS or not 1 <= top <= MOST or first < 0:
            raise BadSetting(
                f"order {order!r}, first {first}, top {top}: wanted one of {', '.join(ORDERS)}, 0 or more, 1 to {MOST}"
            )
        allowed_N = self.searcher.allowed(filters)
        if order == "stored":
            rows = np.arange(len(self.searcher)) if allowed_N is None else np.flatnonzero(allowed_N)
            return Page(len(rows), self.posts(rows[first : first + top]))
        doubts = self.doubts
        places = doubts.worst(allowed_N) if order == "worst" else doubts.suspects(allowed_N)
        some = places[first : first + top]
        said = {int(doubts.rows_M[place]): doubts.of(int(place)) for place in some}
        return Page(len(places), self.posts(doubts.rows_M[some], said.get), (len(doubts.rows_M), doubts.tagged))

    def posts(self, rows: np.ndarray, doubt: Callable[[int], Doubt | None] = lambda _: None) -> list[Post]:
        """What is known of these, without those that were taken down."""
        takedowns = self.searcher.takedowns
        columns = self.searcher.table.take(pa.array(rows, pa.int64())).drop_columns(["position", "shard"]).to_pylist()
        return [
            Post(
                **post | {"row": row, "tags": post["tags"] or [], "expert": self.keys[post["expert"]]}, doubt=doubt(row)
            )
            for row, post in zip(rows.tolist(), columns, strict=True)
            if not takedowns.holds(post["id"], post["user"])
        ]

    def post(self, post_id: str) -> Post:
        """Raises Unknown."""
        found = self.posts(np.array([self.searcher.row(post_id)]))
        if not found:
            raise Unknown(f"no post {shown(post_id)!r}")
        return found[0]

    @property
    def doubts(self) -> Doubts:
        """Made when they are first asked for: seconds to a minute. Raises MissingInput."""
        with self._making:
            if self._doubts is None:
                self._doubts = doubts_of(self.searcher, self.vocabulary)
            return self._doubts

    _doubts: Doubts | None = None

    @property
    def plane(self) -> Plane:
        """The sample, and where each of it and any other embedding lies on the plane."""
        with self._making:
            return self._plane

    @cached_property
    def _plane(self) -> Plane:
        rows = drawn(self._experts(), SAMPLE, LEAST, seed=0)
        return fitted(rows, self.searcher.vectors.rows(rows)) if len(rows) else fitted(rows, np.zeros((0, 2)))

    def on_plane(self) -> Iterator[tuple[Post, float, float]]:
        """Posts of the sample and where they lie."""
        plane = self.plane
        places = dict(zip(plane.rows_M.tolist(), plane.at_M2.tolist(), strict=True))
        for post in self.posts(plane.rows_M):
            yield post, *places[post.row]

    def clusters(self) -> list[Cluster]:
        """One of each expert."""
        with self._making:
            tags = self._tags
        plane, expert_N = self.plane, self._experts()
        sizes_K = np.bincount(expert_N, minlength=len(self.keys))
        near: dict[str, list[str]] = {key: [] for key in self.keys}
        for post in self.posts(plane.rows_M[plane.typical(expert_N[plane.rows_M], TYPICAL)]):
            near[post.expert].append(post.id)
        return [
            Cluster(key, self.searcher.published[key], int(sizes_K[number]), tags.get(number, []), near[key])
            for number, key in enumerate(self.keys)
        ]

    def _experts(self) -> np.ndarray:
        return np.asarray(self.searcher.table["expert"].to_numpy())

    @cached_property
    def _tags(self) -> dict[int, list[tuple[str, int, float]]]:
        """Hashtags of the vocabulary that set each cluster apart, as `partition` ranks them: by posts x log(times)."""
        counts: list[pl.DataFrame] = []
        for batch in self.searcher.table.select(["expert", "tags"]).to_batches():
            frame = pl.DataFrame(batch)
            ids_T, starts_N1 = self.vocabulary.compressed_rows(frame["tags"])
            owner_T = np.repeat(np.arange(len(frame)), np.diff(starts_N1))
            pairs = pl.DataFrame({"expert": frame["expert"].to_numpy()[owner_T], "tag": ids_T})
            counts.append(pairs.group_by("expert", "tag").len("n"))
        if not counts:
            return {}
        n, all_of = pl.col("n"), pl.col("n").sum()
        times = (n / all_of.over("expert")) / (all_of.over("tag") / all_of)
        ranked = (
            pl.concat(counts)
            .group_by("expert", "tag")
            .agg(all_of.cast(pl.Int64))
            .with_columns(times=times)
            .filter(pl.col("times") > 1)
            .sort(n * pl.col("times").log(), "tag", descending=[True, False])
        )
        found: dict[int, list[tuple[str, int, float]]] = {}
        for expert, tag, count, more in ranked.select("expert", "tag", "n", "times").iter_rows():
            if len(its := found.setdefault(expert, [])) < HASHTAGS:
                its.append((self.vocabulary.hashtags[tag], count, round(more, 1)))
        return found


def drawn(expert_N: np.ndarray, most: int, least: int, seed: int) -> np.ndarray:
    """Rows of at most `most` posts at random, ascending; `least` of each expert among them, where that has so many."""
    order_N = np.random.default_rng(seed).permutation(len(expert_N))
    by_expert = order_N[np.argsort(expert_N[order_N], kind="stable")]  # at random within each expert
    first = np.searchsorted(expert_N[by_expert], expert_N[by_expert])  # where each one's expert begins
    chosen = by_expert[np.arange(len(by_expert)) - first < least][:most]
    rest = np.setdiff1d(order_N, chosen, assume_unique=True)
    rest = np.random.default_rng(seed + 1).permutation(rest)[: most - len(chosen)]
    return np.sort(np.concatenate([chosen, rest]))
