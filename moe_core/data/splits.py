"""Which post is for training, choosing or testing: by hash, so that new posts never move an old one."""

import hashlib

import polars as pl

from moe_core.settings import Data

GIVEN = {"train": "train", "test": "test", "validation": "validation", "val": "validation", "valid": "validation"}


def split_of(post_id: str, user: str | None, given: str | None, data: Data) -> str:
    """'train', 'validation' or 'test'. A given split stays, but for the validation posts taken out of train."""
    place = _place(user if data.split_by == "user" and user else post_id)
    if given:
        split = GIVEN.get(given.strip().lower())
        if split is None:
            raise ValueError(f"post {post_id} says split {given!r}: wanted train, validation or test, or nothing")
        return "validation" if split == "train" and place < data.validation else split
    if place < data.test:
        return "test"
    return "validation" if place < data.test + data.validation else "train"


def splits_of(posts: pl.DataFrame, data: Data) -> pl.Series:
    """`split_of` for columns id, user and split; null where the split that is given has another name."""
    group = pl.col("id")
    if data.split_by == "user":
        group = pl.when(pl.col("user").str.len_bytes() > 0).then("user").otherwise("id")
    places = pl.Series(
        "place", [_place(text) for text in posts.select(group.fill_null("")).to_series()], dtype=pl.Float64
    )
    given = pl.col("split").str.strip_chars().str.to_lowercase()
    named = given.replace_strict(GIVEN, default=None, return_dtype=pl.String)
    held_out = pl.when(pl.col("place") < data.validation).then(pl.lit("validation")).otherwise(pl.lit("train"))
    drawn = (
        pl.when(pl.col("place") < data.test)
        .then(pl.lit("test"))
        .when(pl.col("place") < data.test + data.validation)
        .then(pl.lit("validation"))
        .otherwise(pl.lit("train"))
    )
    chosen = pl.when(given.fill_null("") == "").then(drawn).when(named == "train").then(held_out).otherwise(named)
    return posts.select("split").with_columns(places).select(chosen.alias("split")).to_series()


def _place(group: str) -> float:
    """Where on [0, 1) a user or an id falls."""
    return int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8, person=b"hardmoe-split").digest()) / 2**64
