"""A second look at the splits, by other means than they were made."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from moe_core.clustering.neighbors import pairs_by_scan
from moe_core.data.duplicates import RADIUS, codes, is_plain, same_picture, signature
from moe_core.data.images import stored_as
from moe_core.data.loading import open_images
from moe_core.data.splits import USED, across
from moe_core.engine.context import Context
from moe_core.stages import reading
from moe_core.stages.data.splits import read_signed
from moe_core.tables.location import tables_of

READ = 100  # pictures in memory at once
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
    data = context.study.data
    posts, signature_NW = read_signed(context)
    written = reading.splits(context)
    found = Checked()
    if not written.select("shard", "position", "id").equals(posts.select("shard", "position", "id")):
        found.violations["rows"] = 1
        found.examples.append(
            f"splits.parquet has {len(written)} posts in another order than the {len(posts)} of posts"
        )
        return found
    posts = posts.with_columns(written["split"])
    used = posts.filter(pl.col("split") != "dropped")
    found.violations["unknown_splits"] = used.filter(~pl.col("split").is_in(USED)).height
    found.violations["ids"] = len(used) - used["id"].n_unique()
    if data.near_duplicates == "off":
        return found
    unexplained, own = across(posts["split"], posts["given"], _hashes(signature_NW))
    found.violations["equal_signatures"] = unexplained
    found.given = own
    _search(context, posts, signature_NW, found)
    if data.leaks == "remove":
        found.violations["given_leaks"], found.given = found.given, 0
    return found


def _search(context: Context, posts: pl.DataFrame, signature_NW: np.ndarray, found: Checked) -> None:
    """Looks for a sample of held-out posts among those of other splits; notes into `found` what it finds."""
    split_N, given = posts["split"].to_numpy(), posts["given"].to_list()
    held_N = np.flatnonzero(~np.isin(split_N, ("train", "dropped")))
    sample = np.sort(np.random.default_rng(0).permutation(held_N)[:SAMPLE])
    found.searched = len(sample)
    if not len(sample):
        return
    levels = context.study.data.near_duplicate_levels
    found.violations["stale_signatures"] = _stale(context, signature_NW, sample)
    code_NB = codes(signature_NW)
    busy = np.flatnonzero(~is_plain(code_NB) & (split_N != "dropped"))
    sampled = sample[~is_plain(code_NB[sample])]
    query, row = pairs_by_scan(code_NB[sampled], code_NB[busy], RADIUS)
    one, other = sampled[query], busy[row]
    apart = split_N[one] != split_N[other]
    one, other = one[apart], other[apart]
    same = same_picture(signature_NW[one], signature_NW[other], levels * 0.999)  # as near as rounding lets be sure
    pairs = list(zip(one[same].tolist(), other[same].tolist(), strict=True))
    bad = [(a, b) for a, b in pairs if given[a] is None or given[b] is None or given[a] == given[b]]
    found.violations["near_duplicates"] = len(bad)
    found.given = max(found.given, len({a for a, _ in pairs}) - len({a for a, _ in bad}))
    ids = posts["id"]
    found.examples += [f"{ids[a]} in {split_N[a]} is {ids[b]} in {split_N[b]}" for a, b in bad[:3]]


def _stale(context: Context, signature_NW: np.ndarray, rows: np.ndarray) -> int:
    """Of some posts, how many have another signature than their stored pixels."""
    data = context.study.data
    if stored_as(data.image_size, data.store) not in ("raw", "png"):  # others move pixels, there is no telling how far
        return 0
    images = open_images(tables_of(context.store).posts, reading.places(context), data.image_size)
    seen = [signature(images.read(part)) for part in np.array_split(rows, -(-len(rows) // READ))]
    return int((np.concatenate(seen) != signature_NW[rows]).any(axis=1).sum())


def _hashes(signature_NW: np.ndarray) -> np.ndarray:
    """(N,) int64, equal for equal signatures: by their hashes, where `splits.make` sorts them."""
    found = (hashlib.blake2b(row, digest_size=8).digest() for row in signature_NW)
    return np.frombuffer(b"".join(found), np.int64)
