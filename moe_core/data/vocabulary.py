"""The vocabulary: which canonical tags are predicted, by how many posts and how many distinct users carry them."""

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from moe_core.data.counting import TagCounter
from moe_core.data.synonyms import plurals, read_stop_tags, read_synonyms, resolved
from moe_core.data.tags import flattened
from moe_core.errors import TooFewPosts
from moe_core.settings import Data

Batches = Callable[[], Iterable[pl.DataFrame]]  # frames of `tags` and `user`; called again for each pass over the posts


@dataclass(frozen=True)
class Vocabulary:
    """Hashtags by falling frequency; the position in `hashtags` is the hashtag's id."""

    hashtags: list[str]
    synonyms: Mapping[str, str]  # canonical spelling -> canonical spelling that is meant

    def compressed_rows(self, tags: pl.Series) -> tuple[np.ndarray, np.ndarray]:
        """(ids_T, starts_N1) of a column of lists of canonical tags; unknown tags left out, each id once a post.

        Ids of a post are in rising order.
        """
        spellings, ids_S = self._spellings
        starts_N1, flat = flattened(tags.cast(pl.List(pl.String)))
        codes = flat.cast(spellings, strict=False).to_physical()
        known = codes.is_not_null().to_numpy()
        post_T = np.repeat(np.arange(len(tags)), np.diff(starts_N1))[known]
        bits = max(1, len(self.hashtags).bit_length())
        # one number a tag, so that one fast sort orders by post and by id
        keys = pl.Series(post_T << bits | ids_S[codes.drop_nulls().to_numpy()]).sort().to_numpy()
        keys = keys[np.diff(keys, prepend=-1) > 0]
        counts_N = np.bincount(keys >> bits, minlength=len(tags))
        return keys & ((1 << bits) - 1), np.concatenate([[0], counts_N.cumsum()])

    @cached_property
    def _spellings(self) -> tuple[pl.Enum, np.ndarray]:
        """All canonical spellings, synonyms included, and the id of each."""
        ids = {tag: number for number, tag in enumerate(self.hashtags)}
        ids |= {written: ids[meant] for written, meant in self.synonyms.items() if meant in ids}
        return pl.Enum(list(ids)), np.fromiter(ids.values(), np.int64, len(ids))


def choose_from(
    batches: Batches, data: Data, scratch: Path | None = None
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, str]]:
    """(hashtags kept, tags dropped with their reason, synonyms) from the training posts: columns `tags` and `user`.

    Without users each post counts as its own. Memory grows with the number of distinct tags, not of posts: what does
    not fit lies in files in `scratch`. Raises TooFewPosts when no tag is left.
    """
    synonyms = read_synonyms(data.synonyms, data.accents)
    counts, posts = _counts(batches, synonyms, scratch)
    if data.plurals:
        frequent = counts.filter(pl.col("posts") >= data.min_posts_per_tag)["tag"]
        merged = plurals(counts["tag"], frequent, set(synonyms) | set(synonyms.values()))
        if merged:
            synonyms = resolved(synonyms | merged)
            counts, posts = _counts(batches, synonyms, scratch)  # a post with "cat" and "cats" counts once
    return *_judge(counts, posts, read_stop_tags(data.stop_tags, data.accents), data), synonyms


def _counts(batches: Batches, synonyms: Mapping[str, str], scratch: Path | None) -> tuple[pl.DataFrame, int]:
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        counter = TagCounter(Path(folder), synonyms)
        for batch in batches():
            counter.add(batch["tags"], batch["user"])
        return counter.totals(), counter.posts


def _judge(counts: pl.DataFrame, posts: int, stopped: pl.Series, data: Data) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(kept, dropped): the first rule that a tag breaks is its reason."""
    if not posts:
        raise TooFewPosts("no training post is left: check the rejects, data.test and data.validation")
    counts = counts.sort(["posts", "tag"], descending=[True, False])
    reason = (
        pl.when(pl.col("tag").is_in(stopped.implode()))
        .then(pl.lit("stop_list"))
        .when(pl.col("posts") < data.min_posts_per_tag)
        .then(pl.lit("too_few_posts"))
        .when(pl.col("users") < data.min_users_per_tag)
        .then(pl.lit("too_few_users"))
        .when(pl.col("most_by_one_user") > data.max_user_share * pl.col("posts"))
        .then(pl.lit("one_user"))
    )
    judged = counts.with_columns(reason.alias("reason"))
    good = judged.filter(pl.col("reason").is_null()).drop("reason")
    beyond = good[data.max_tags :].with_columns(pl.lit("beyond_max_tags").alias("reason"))
    dropped = pl.concat([judged.filter(pl.col("reason").is_not_null()), beyond])
    if good.is_empty():
        why = ", ".join(f"{reason} {n}" for reason, n in reasons(dropped).items())
        raise TooFewPosts(
            f"no hashtag is left: {counts.height} tags on {posts} training posts, none of them on at least "
            f"{data.min_posts_per_tag} posts of {data.min_users_per_tag} users ({why}): lower data.min_posts_per_tag"
            + (", or raise data.max_user_share" if "one_user" in why else "")
        )
    return good[: data.max_tags], dropped


def reasons(dropped: pl.DataFrame) -> dict[str, int]:
    """How many tags were dropped for each reason."""
    return dict(dropped["reason"].value_counts().sort("reason").iter_rows())


def save(folder: Path, kept: pl.DataFrame, dropped: pl.DataFrame, synonyms: Mapping[str, str]) -> None:
    """hashtags.parquet, dropped.parquet and synonyms.parquet in `folder`."""
    kept.with_row_index("id").write_parquet(folder / "hashtags.parquet")
    dropped.write_parquet(folder / "dropped.parquet")
    pl.DataFrame(
        {"written": list(synonyms), "meant": list(synonyms.values())}, schema={"written": pl.String, "meant": pl.String}
    ).write_parquet(folder / "synonyms.parquet")


def load(hashtags: Path, synonyms: Path) -> Vocabulary:
    """What `save` wrote."""
    table = pl.read_parquet(synonyms, glob=False)
    return Vocabulary(
        pl.read_parquet(hashtags, glob=False).sort("id")["tag"].to_list(),
        dict(zip(table["written"], table["meant"], strict=True)),
    )
