"""Which post is for training, choosing, testing or routing: by hash, so that new posts do not move an old one.

What is placed is a group of near-duplicates, by the user (or id) of its first post. A post that stands alone is a group
of one, so the posts of a user lie together, except those that repeat another's earlier post: they go with that.
"""

import hashlib

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
PART = 1 << 18  # posts decided at once


def place_of(unit: str) -> float:
    """Where a user or id lies between 0 and 1."""
    digest = hashlib.blake2b(unit.encode(), digest_size=8, person=b"hardmoe-split").digest()
    return int.from_bytes(digest) / 2**64


def given_of(posts: pl.DataFrame) -> np.ndarray:
    """(N,) int8: how held out the split is that the source gives each post, from 1 on; 0 where it gives none.

    Column given: a value of GIVEN, or null.
    """
    rank = pl.col("given").replace_strict(_RANK, return_dtype=pl.Int8)
    return posts.select((rank + 1).fill_null(0))["given"].to_numpy()


class Places:
    """Where the hash of its user (or id) puts each post, if it is the first of its group."""

    def __init__(self, data: Data) -> None:
        unit = pl.col("id")
        if data.split_by == "user":
            unit = pl.when(pl.col("user").fill_null("") != "").then(pl.col("user")).otherwise(pl.col("id"))
        self._unit = unit.alias("unit")
        self._held_out = data.validation + data.router
        self._bounds = np.array([data.test, data.test + data.validation, data.test + self._held_out])
        self._of_train = np.array([data.validation, self._held_out])

    def of(self, posts: pl.DataFrame) -> np.ndarray:
        """(N,) int8: the split by all shares, and where the post is taken out of train the one by the rest, as
        numbers in SPLITS: 8 times the second, and the first."""
        units = posts.select(self._unit)["unit"]
        names = units.unique()
        places = names.to_frame("unit").with_columns(pl.Series("place", [place_of(name) for name in names], pl.Float64))
        place_N = units.to_frame("unit").join(places, on="unit", how="left", maintain_order="left")["place"].to_numpy()
        by_hash = np.array([SPLITS.index(name) for name in ("test", "validation", "router", "train")], np.int8)
        of_train = by_hash[1:]
        rest_N = of_train[_first_above(self._of_train, place_N)]
        return rest_N * 8 + by_hash[_first_above(self._bounds, place_N)]


def _first_above(bounds: np.ndarray, place_N: np.ndarray) -> np.ndarray:
    """(N,) the number of the first bound above each place; the number of bounds where none is."""
    above = place_N[:, None] < bounds
    return np.asarray(np.where(above.any(1), above.argmax(1), len(bounds)))


def decide(group_N: np.ndarray, given_N: np.ndarray, place_N: np.ndarray, data: Data) -> np.ndarray:
    """(N,) int8: the split of each post, a number in SPLITS, by what `given_of` and `Places` say of them.

    `group_N`: row of the first post of each post's group, N where the post's id came before. A group's posts get one
    split, unless the source gives several: then those are kept, or, with data.leaks = "remove", only the one that is
    most held out; posts of such a group that are given none are dropped.
    """
    top_N, bottom_N = given_range(group_N, given_N)
    # a source that gives its posts train and validation alone has nothing to test on
    untested = len(given_N) > 0 and bool((given_N > 0).all()) and not bool((given_N == _RANK["test"] + 1).any())
    name_of = np.array([SPLITS.index(name) for name in ("dropped", *sorted(_RANK, key=_RANK.__getitem__))], np.int8)
    split_N = np.full(len(group_N), SPLITS.index("dropped"), np.int8)
    for first in range(0, len(group_N), PART):
        some = slice(first, first + PART)
        alone = group_N[some] == len(group_N)
        group = np.where(alone, 0, group_N[some])
        top, bottom, given = top_N[group], bottom_N[group], given_N[some]
        by_hash, of_train = place_N[group] % 8, place_N[group] // 8
        kept = (given > 0) & ((given == top) | (data.leaks == "report"))
        found = np.where(top == _RANK["train"] + 1, by_hash if untested else of_train, name_of[top])
        found = np.where(top != bottom, np.where(kept, name_of[given], name_of[0]), found)
        split_N[some] = np.where(alone, name_of[0], np.where(top == 0, by_hash, found))
    return split_N


def given_range(group_N: np.ndarray, given_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) int8 twice, at the first post of each group: the most and the least held out that the source gives in it,
    as `given_of` says; 0 where it gives none."""
    top_N, bottom_N = np.zeros(len(group_N), np.int8), np.full(len(group_N), len(_RANK) + 1, np.int8)
    for first in range(0, len(group_N), PART):
        some = slice(first, first + PART)
        at = np.flatnonzero((given_N[some] > 0) & (group_N[some] < len(group_N)))
        group, given = group_N[some][at], given_N[some][at]
        np.maximum.at(top_N, group, given)
        np.minimum.at(bottom_N, group, given)
    bottom_N[bottom_N > len(_RANK)] = 0
    return top_N, bottom_N


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
