"""Which post is for training, choosing, testing or routing: by hash, so that new posts do not move an old one.

What is placed is a group of near-duplicates, by the user (or id) of its first post. A post that stands alone is a group
of one, so the posts of a user lie together, except those that repeat another's earlier post: they go with that.
"""

import hashlib
from typing import Any

import numpy as np
import polars as pl

from moe_core.settings import Data

GIVEN = {name: name for name in ("train", "test", "validation", "router")}
GIVEN |= {"val": "validation", "valid": "validation"}
USED = ("train", "validation", "test", "router")
SPLITS = (*USED, "dropped")
ALONE = -1  # group of a post that is dropped because its id came before
# a picture in two given splits stays in the higher
_RANK = {"train": 0, "router": 1, "validation": 2, "test": 3}


def place_of(unit: str) -> float:
    """Where a user or id lies between 0 and 1."""
    digest = hashlib.blake2b(unit.encode(), digest_size=8, person=b"hardmoe-split").digest()
    return int.from_bytes(digest) / 2**64


def assign(posts: pl.DataFrame, group_N: np.ndarray, data: Data) -> pl.Series:
    """The split of each post, one of SPLITS, from columns id, user and given (a value of GIVEN, or null).

    `group_N`: row of the first post of each post's group, or ALONE. A group's posts get one split, unless the source
    gives several: then those are kept, or, with data.leaks = "remove", only the one that is most held out; posts of
    such a group that are given none are dropped.
    """
    unit = pl.col("id")
    if data.split_by == "user":
        unit = pl.when(pl.col("user").fill_null("") != "").then(pl.col("user")).otherwise(pl.col("id"))
    units = posts.select(unit.alias("unit"))["unit"].gather(np.maximum(group_N, 0))
    names = units.unique()
    places = names.to_frame("unit").with_columns(pl.Series("place", [place_of(name) for name in names], pl.Float64))
    validation, router = data.validation, data.validation + data.router
    rank = pl.col("given").replace_strict(_RANK, return_dtype=pl.Int8)
    name = pl.col("top").replace_strict({number: split for split, number in _RANK.items()}, return_dtype=pl.String)
    by_hash = _cut({"test": data.test, "validation": data.test + validation, "router": data.test + router})
    given = posts["given"]
    # a source that gives its posts train and validation alone has nothing to test on
    untested = len(given) > 0 and given.null_count() == 0 and not (given == "test").any()
    of_train = by_hash if untested else _cut({"validation": validation, "router": router})
    kept = pl.col("given").is_not_null() & ((rank == pl.col("top")) | (data.leaks == "report"))
    in_leak = pl.when(kept).then(pl.col("given")).otherwise(pl.lit("dropped"))
    split = (
        pl.when(pl.col("group") == ALONE)
        .then(pl.lit("dropped"))
        .when(pl.col("top").is_null())
        .then(by_hash)
        .when(pl.col("top") != pl.col("bottom"))
        .then(in_leak)
        .when(pl.col("top") == _RANK["train"])
        .then(of_train)
        .otherwise(name)
    )
    return (
        pl.DataFrame({"group": group_N, "given": posts["given"], "unit": units})
        .join(places, on="unit", how="left", maintain_order="left")
        .with_columns(rank.max().over("group").alias("top"), rank.min().over("group").alias("bottom"))
        .select(split.alias("split"))["split"]
    )


def _cut(bounds: dict[str, float]) -> pl.Expr:
    """The first name whose bound lies above the place, else train."""
    chain: Any = pl
    for name, bound in bounds.items():
        chain = chain.when(pl.col("place") < bound).then(pl.lit(name))
    expression: pl.Expr = chain.otherwise(pl.lit("train"))
    return expression


def leaks(posts: pl.DataFrame, signature_N: np.ndarray) -> pl.DataFrame:
    """The posts of groups to which the source gives several splits: columns of `posts` and `same`.

    `same`: a post to which another split is given has an equal signature, by its number in `signature_N`.
    """
    several = pl.col("given").drop_nulls().n_unique()
    return (
        posts.with_columns(pl.Series("number", signature_N))
        .filter(pl.col("group") != ALONE)
        .filter(several.over("group") > 1)
        .with_columns((several.over("group", "number") > 1).alias("same"))
        .select("group", "shard", "position", "id", "given", "split", "same")
        .sort("group", maintain_order=True)
    )


def users_apart(posts: pl.DataFrame) -> int:
    """Users whose posts lie in more than one split."""
    used = posts.filter((pl.col("split") != "dropped") & (pl.col("user").fill_null("") != ""))
    return used.group_by("user").agg(pl.col("split").n_unique()).filter(pl.col("split") > 1).height


def across(split: pl.Series, given: pl.Series, number_N: np.ndarray) -> tuple[int, int]:
    """(pictures that we put into several splits, that the source did); posts of one number are one picture."""
    apart = (
        pl.DataFrame({"split": split, "given": given, "number": number_N})
        .filter(pl.col("split") != "dropped")
        .group_by("number")
        .agg(pl.col("split").n_unique().alias("splits"), pl.col("given").drop_nulls().n_unique().alias("own"))
        .filter(pl.col("splits") > 1)
    )
    own = apart.filter(pl.col("own") > 1).height
    return apart.height - own, own
