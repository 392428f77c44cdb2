"""The vocabulary: which canonical tags are predicted, by how many posts and how many distinct users carry them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from moe_core.data.tags import canonical_tag
from moe_core.settings import Data


@dataclass(frozen=True)
class Vocabulary:
    """Hashtags by falling frequency; the position in `hashtags` is the hashtag's id."""

    hashtags: list[str]
    synonyms: Mapping[str, str]  # canonical spelling -> canonical spelling that is meant

    def lookup(self) -> dict[str, int]:
        """Id of each canonical spelling, synonyms included."""
        ids = {tag: number for number, tag in enumerate(self.hashtags)}
        return ids | {written: ids[meant] for written, meant in self.synonyms.items() if meant in ids}

    def compressed_rows(self, tags: pl.Series) -> tuple[np.ndarray, np.ndarray]:
        """(ids_T, starts_N1) of a column of lists of canonical tags; unknown tags left out, each id once a post."""
        ids = pl.Series(list(self.lookup().values()), dtype=pl.Int64)
        table = pl.DataFrame({"tags": pl.Series(list(self.lookup()), dtype=pl.String), "hashtag": ids})
        rows = (
            tags.rename("tags")
            .to_frame()
            .with_row_index("post")
            .explode("tags")
            .join(table, on="tags", how="inner")
            .select("post", "hashtag")
            .unique()
            .sort("post", "hashtag")
        )
        counts = np.bincount(rows["post"].to_numpy(), minlength=len(tags))
        return rows["hashtag"].to_numpy(), np.concatenate([[0], counts.cumsum()]).astype(np.int64)


def choose(posts: pl.DataFrame, data: Data) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, str]]:
    """(hashtags kept, tags dropped with their reason, synonyms) from the training posts' columns `tags` and `user`.

    Without users each post counts as its own. Raises ValueError when no tag is left.
    """
    synonyms = _synonyms(data.synonyms)
    stopped = _stop_tags(data.stop_tags)
    who = pl.coalesce(pl.col("user"), pl.format("post {}", pl.col("post")))
    counts = (
        posts.select("tags", "user")
        .with_row_index("post")
        .with_columns(who.alias("user"))
        .explode("tags")
        .rename({"tags": "tag"})
        .with_columns(pl.col("tag").replace(synonyms) if synonyms else pl.col("tag"))
        .group_by("tag")
        .agg(pl.col("post").n_unique().alias("posts"), pl.col("user").n_unique().alias("users"))
        .sort(["posts", "tag"], descending=[True, False])
    )
    reason = (
        pl.when(pl.col("tag").is_in(list(stopped)))
        .then(pl.lit("stop_list"))
        .when(pl.col("posts") < data.min_posts_per_tag)
        .then(pl.lit("too_few_posts"))
        .when(pl.col("users") < data.min_users_per_tag)
        .then(pl.lit("too_few_users"))
    )
    judged = counts.with_columns(reason.alias("reason"))
    good = judged.filter(pl.col("reason").is_null()).drop("reason")
    dropped = pl.concat(
        [
            judged.filter(pl.col("reason").is_not_null()),
            good[data.max_tags :].with_columns(pl.lit("beyond_max_tags").alias("reason")),
        ]
    )
    if good.is_empty():
        raise ValueError(
            f"no hashtag is left: {counts.height} tags on {posts.height} training posts, none of them on at least "
            f"{data.min_posts_per_tag} posts of {data.min_users_per_tag} users: lower data.min_posts_per_tag"
        )
    return good[: data.max_tags], dropped, synonyms


def save(folder: Path, kept: pl.DataFrame, dropped: pl.DataFrame, synonyms: Mapping[str, str]) -> None:
    """hashtags.parquet, dropped.parquet and synonyms.parquet in `folder`."""
    kept.with_row_index("id").write_parquet(folder / "hashtags.parquet")
    dropped.write_parquet(folder / "dropped.parquet")
    pl.DataFrame(
        {"written": list(synonyms), "meant": list(synonyms.values())}, schema={"written": pl.String, "meant": pl.String}
    ).write_parquet(folder / "synonyms.parquet")


def load(hashtags: Path, synonyms: Path) -> Vocabulary:
    """What `save` wrote."""
    table = pl.read_parquet(synonyms)
    return Vocabulary(
        pl.read_parquet(hashtags).sort("id")["tag"].to_list(), dict(zip(table["written"], table["meant"], strict=True))
    )


def _stop_tags(path: str) -> set[str]:
    return {tag for line in _lines(path, "data.stop_tags") if (tag := canonical_tag(line))}


def _synonyms(path: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in _lines(path, "data.synonyms"):
        written, _, meant = (part.strip() for part in line.partition("="))
        left, right = canonical_tag(written), canonical_tag(meant)
        if not left or not right:
            raise ValueError(f"{path}: {line!r} is not 'written = meant' with a tag on both sides")
        found[left] = right
    return found


def _lines(path: str, setting: str) -> list[str]:
    if not path:
        return []
    if not Path(path).is_file():
        raise ValueError(f"no file at {path}: wanted a text file ({setting})")
    return [line.strip() for line in Path(path).read_text("utf-8").splitlines() if line.strip()]
