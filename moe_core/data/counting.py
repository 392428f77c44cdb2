"""How many posts and how many distinct users carry each tag, in memory that does not grow with the posts.

Letters: N posts of a batch, T their tags, R rows of one part, V distinct tags.

A tag of a post becomes one 64-bit number: the tag's code, then half of a hash of the user. Another byte of the hash
tells to which part the number belongs; numbers that do not fit into memory lie in files, one a part. All posts of a
user are in one part, so each part is counted by itself (a sort and the lengths of its runs) and the counts of the parts
add up. Forty bits of hash tell users apart: of a million users of one tag, half a pair is not told apart.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl

from moe_core.data.tags import Spellings, as_lists, flattened

PAIRS_IN_MEMORY = 8_000_000  # tags of posts; 9 bytes each, some 0.3 GB while they are sorted
PARTS = 256


class TagCounter:
    """Counts canonical tags, each once a post. A post without a user counts as a user of its own."""

    def __init__(self, scratch: Path, synonyms: Mapping[str, str], limit: int = PAIRS_IN_MEMORY) -> None:
        """`scratch`: an empty folder, for what does not fit into memory."""
        self.posts = 0
        self._synonyms, self._scratch, self._limit = synonyms, scratch, limit
        self._spellings = Spellings()
        self._meant = pl.Series([], dtype=pl.UInt32)  # code of a tag -> code of the tag that is meant
        self._alone_V = np.zeros(1, np.int64)  # posts without a user
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []  # keys and parts of the posts with a user
        self._held = 0

    def add(self, tags: pl.Series, users: pl.Series) -> None:
        """Posts: lists of canonical tags, each once, and their users (null or empty: unknown)."""
        self.posts += len(tags)
        starts_N1, flat = flattened(tags.cast(pl.List(pl.String)))
        assert not flat.null_count(), "a canonical tag is never null"
        codes = self._spellings.codes(flat)
        if self._synonyms:
            starts_N1, codes = flattened(as_lists(starts_N1, self._means(codes)).list.unique())
        code_T = codes.to_numpy()
        user = pl.col("user").cast(pl.String)
        table = users.to_frame("user").select(user.hash().alias("hash"), (user.fill_null("") != "").alias("named"))
        lengths_N = np.diff(starts_N1)
        named_T = np.repeat(table["named"].to_numpy(), lengths_N)
        hash_T = np.repeat(table["hash"].to_numpy(), lengths_N)
        if not named_T.all():
            alone_T = code_T[~named_T]
            self._grow(int(alone_T.max()) + 1)
            np.add.at(self._alone_V, alone_T, 1)
        code_T, hash_T = code_T[named_T], hash_T[named_T]
        keys_T = code_T.astype(np.uint64) << np.uint64(32) | hash_T >> np.uint64(32)
        self._pairs.append((keys_T, hash_T.astype(np.uint8)))
        self._held += len(keys_T)
        if self._held > self._limit:
            self._spill()

    def totals(self) -> pl.DataFrame:
        """Columns tag, posts, users and most_by_one_user: a row a tag, in no order."""
        words = self._spellings.words()
        self._grow(len(words))
        alone_V = self._alone_V[: len(words)]
        posts_V, users_V, most_V = alone_V.copy(), alone_V.copy(), np.zeros(len(words), np.int64)
        for keys_R in self._parts():
            keys_R.sort()
            first_U = np.flatnonzero(np.diff(keys_R, prepend=~keys_R[:1]))
            times_U = np.diff(first_U, append=len(keys_R))
            code_U = (keys_R[first_U] >> np.uint64(32)).astype(np.int64)
            first_W = np.flatnonzero(np.diff(code_U, prepend=-1))
            code_W = code_U[first_W]
            posts_V[code_W] += np.add.reduceat(times_U, first_W)
            users_V[code_W] += np.diff(first_W, append=len(code_U))
            most_V[code_W] = np.maximum(most_V[code_W], np.maximum.reduceat(times_U, first_W))
        totals = pl.DataFrame({"tag": words, "posts": posts_V, "users": users_V, "most_by_one_user": most_V})
        return totals.filter(pl.col("posts") > 0)  # a tag that means another has none

    def _grow(self, size: int) -> None:
        if size > len(self._alone_V):
            self._alone_V = np.concatenate([self._alone_V, np.zeros(max(size, len(self._alone_V)), np.int64)])

    def _means(self, codes: pl.Series) -> pl.Series:
        while (new := self._spellings.words(first=len(self._meant))).len():  # tags that are meant may be new as well
            meant = new.replace(list(self._synonyms), list(self._synonyms.values()))
            self._meant.append(self._spellings.codes(meant))
        return self._meant.gather(codes)

    def _parts(self) -> Iterator[np.ndarray]:
        """All keys, those of a user in one part."""
        if any(self._scratch.iterdir()):
            self._spill()
            yield from (np.fromfile(file, np.uint64) for file in sorted(self._scratch.iterdir()))
        elif self._held:
            yield np.concatenate([keys for keys, _ in self._pairs])

    def _spill(self) -> None:
        if not self._held:
            return
        keys, parts = (np.concatenate(arrays) for arrays in zip(*self._pairs, strict=True))
        self._pairs, self._held = [], 0
        keys = keys[np.argsort(parts, kind="stable")]  # of bytes: one pass
        ends = np.bincount(parts, minlength=PARTS).cumsum()
        for part, of_part in enumerate(np.split(keys, ends[:-1])):
            if len(of_part):
                with open(self._scratch / f"{part:03d}", "ab") as file:
                    of_part.tofile(file)
