"""splits: which post is for training, choosing, testing or routing, with near-duplicates of all shards on one side.

Reads signatures and no pixels. Everything downstream takes a post's split from here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moe_core.clustering.neighbors import near_pairs, pairs_by_scan
from moe_core.data.duplicates import (
    RADIUS,
    SIGNATURE_BYTES,
    codes,
    group,
    is_plain,
    number_of_each,
    same_picture,
    signature,
)
from moe_core.engine.context import Context
from moe_core.engine.stage import Stage
from moe_core.stages import reading
from moe_core.stages.data.rows import remove_gone_shards
from moe_core.store.artifact import Artifact, StageOutput
from moe_core.tables import advance_lance_tags, read_positions, read_rows

if TYPE_CHECKING:
    import polars as pl

SAMPLE = 1000  # held-out posts that the check searches again among all others, one by one


def _make(context: Context, key: str | None, folder: Path) -> StageOutput:
    import polars as pl

    from moe_core.data.splits import ALONE, SPLITS, assign, first_of_each_id, leaks, users_apart

    tables = context.store.layout.tables
    remove_gone_shards(tables, [shard.key for shard in context.shards])
    for table in tables:  # all shards at one version: each reader opens one
        advance_lance_tags(table)
    data = context.study.data
    posts, signature_NW = _read(context)
    rows = np.flatnonzero(first_of_each_id(posts["id"]))
    group_N = np.full(len(posts), ALONE)
    group_N[rows] = rows
    if data.near_duplicates == "group":
        group_N[rows] = rows[group(signature_NW[rows], data.near_duplicate_levels, near_pairs)]
    posts = posts.with_columns(pl.Series("group", group_N, pl.Int64))
    posts = posts.with_columns(assign(posts, group_N, data))
    number_N = number_of_each(signature_NW)
    leaking = leaks(posts, number_N)
    posts.select("shard", "position", "id", "group", "split").write_parquet(folder / "splits.parquet", statistics=False)
    leaking.write_parquet(folder / "leaks.parquet", statistics=False)
    _, sizes = np.unique(group_N[rows], return_counts=True)
    removed = (leaking["split"] == "dropped").sum()
    counts = posts["split"].value_counts()
    splits = dict.fromkeys(SPLITS, 0) | dict(counts.iter_rows())
    return StageOutput(
        {
            "posts": len(posts),
            "splits": splits,
            "duplicate_ids": len(posts) - len(rows),
            "pictures": len(sizes),
            "groups": int((sizes > 1).sum()),
            "largest_group": int(sizes.max(initial=0)),
            "near_duplicates": len(rows) - len(sizes),
            "equal_signatures": len(rows) - len(np.unique(number_N[rows])),
            "leaking_groups": leaking["group"].n_unique(),
            "leaking_groups_same": leaking.filter(pl.col("same"))["group"].n_unique(),
            "leaking_posts": len(leaking),
            "leaks_removed": int(removed),
            "users_apart": users_apart(posts),
            "snapshot": {shard.key: context.version("posts", shard.key) for shard in context.shards},
        }
    )


def _read(context: Context) -> tuple[pl.DataFrame, np.ndarray]:
    """(shard, position, id, user and given, signatures (N, W) uint8) of all the posts, shard by shard."""
    import polars as pl

    frames, signatures = [], []
    for number, place in enumerate(reading.places(context)):
        columns = ["shard", "position", "id", "user", "given", "signature"]
        rows = read_rows(context.store.layout.posts_table, place.version, place.shard, columns)
        for chunk in rows["signature"].chunks:
            end = (chunk.offset + len(chunk)) * SIGNATURE_BYTES
            flat = np.frombuffer(chunk.buffers()[1], np.uint8, end)
            signatures.append(flat.reshape(-1, SIGNATURE_BYTES)[chunk.offset :])
        frame = pl.from_arrow(rows.drop_columns(["signature"]))
        assert isinstance(frame, pl.DataFrame)
        frames.append(frame)
        context.report({"shards": number + 1})
    empty = np.zeros((0, SIGNATURE_BYTES), np.uint8)
    return pl.concat(frames), np.concatenate([empty, *signatures])


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
    """Looks for what must not be, in what was written and in what lies in posts.lance, by other means than `_make`.

    Every post: the table is that of the posts, an id is used once, equal signatures lie in one split. A sample of
    held-out posts: their signature follows from their stored pixels, and a scan finds none of them in another split.
    """
    import polars as pl

    from moe_core.data.splits import USED, across

    data = context.study.data
    posts, signature_NW = _read(context)
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
    unexplained, own = across(posts["split"], posts["given"], _digests(signature_NW))
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
    seen_QW, exact_Q = _signatures_of_pixels(context, posts, sample)
    stale_Q = exact_Q & (seen_QW != signature_NW[sample]).any(axis=1)
    found.violations["stale_signatures"] = int(stale_Q.sum())
    code_NB = codes(signature_NW)
    busy = np.flatnonzero(~is_plain(code_NB) & (split_N != "dropped"))
    asked = sample[~is_plain(code_NB[sample])]
    query, row = pairs_by_scan(code_NB[asked], code_NB[busy], RADIUS)
    one, other = asked[query], busy[row]
    apart = split_N[one] != split_N[other]
    one, other = one[apart], other[apart]
    same = same_picture(signature_NW[one], signature_NW[other], levels * 0.999)  # as near as rounding lets be sure
    pairs = list(zip(one[same].tolist(), other[same].tolist(), strict=True))
    bad = [(a, b) for a, b in pairs if given[a] is None or given[b] is None or given[a] == given[b]]
    found.violations["near_duplicates"] = len(bad)
    found.given = max(found.given, len({a for a, _ in pairs}) - len({a for a, _ in bad}))
    ids = posts["id"]
    found.examples += [f"{ids[a]} in {split_N[a]} is {ids[b]} in {split_N[b]}" for a, b in bad[:3]]


def _signatures_of_pixels(context: Context, posts: pl.DataFrame, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((Q, W) signatures recomputed from the stored pictures of some posts, (Q,) bool: pixels are as they were signed).

    JPEG and WebP move pixels, and there is no telling how far.
    """
    from moe_core.data.images import pixels_of

    size = context.study.data.image_size
    chosen = posts[rows].select("shard", "position")
    out, exact = [], []
    for place in reading.places(context):
        positions = chosen.filter(chosen["shard"] == place.shard)["position"].to_list()
        if positions:
            table = read_positions(context.store.layout.posts_table, place.version, place.shard, positions, ["image"])
            for image in table["image"]:
                out.append(signature(pixels_of(image.as_py(), size)[None]))
                exact.append(len(image.as_py()) == 3 * size * size)
    return np.concatenate(out), np.array(exact)


def _digests(signature_NW: np.ndarray) -> np.ndarray:
    """(N,) int64, equal for equal signatures: by their hashes, where `_make` sorts them."""
    found = (hashlib.blake2b(row, digest_size=8).digest() for row in signature_NW)
    return np.frombuffer(b"".join(found), np.int64)


def _ids(artifact: Artifact) -> list[str]:
    import polars as pl

    return pl.read_parquet(artifact.file("splits.parquet"), columns=["id"], glob=False)["id"].to_list()


SPLITS = Stage(
    name="splits",
    keys=None,
    code="2",
    reads=("posts",),
    settings=lambda study: study.data.settings_of("splits"),
    inputs=lambda planner, key: {"posts": planner.posts_snapshot},
    make=_make,
    uses_gpu=False,
    post_ids=_ids,
)
