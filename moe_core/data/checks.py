"""Checks the rows of a shard without their images: ids, tags, splits, takedowns. A batch at a time, by column."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from moe_core.data.rejects import MAX_DETAIL
from moe_core.data.splits import GIVEN
from moe_core.data.tags import canonical_lists
from moe_core.data.takedowns import MAX_ID
from moe_core.settings import Data

MAX_TAGS, MAX_TAG_BYTES = 1000, 100_000  # of one post
MAX_ORIGINAL = 2048  # bytes: what is longer is no address, but perhaps a picture in a data: URL
TAGS_OF_REJECTED, TAG_OF_REJECTED = 20, 100  # tags, and characters of each, kept of a post with too many
FIRST, LAST = pl.datetime(1826, 1, 1), pl.datetime(2100, 1, 1)  # outside of these years a camera's clock was wrong
CHUNK_ROWS, CHUNK_BYTES = 128, 8 << 20  # of image files, decoded by one thread in one go


@dataclass(frozen=True)
class Chunk:
    """Some rows of a shard: their text, checked, and their image files."""

    text: pl.DataFrame  # position, id, written, tags, user, taken_at, given, reason (null: none so far), detail
    files: pa.Array  # binary
    read: int  # rows up to its end


def chunks_of(
    batches: Iterable[pa.RecordBatch], data: Data, taken_down: Callable[[str | None, str | None], bool] | None
) -> Iterator[Chunk]:
    """Rows with their text checked, in slices that one thread decodes."""
    read = 0
    for batch in batches:
        text, files = checked(batch, read, data), batch["image"]
        if taken_down is not None:
            text = _without(text, taken_down)
        starts = np.cumsum(pc.fill_null(pc.binary_length(files), 0).to_numpy(zero_copy_only=False))
        first = 0
        while first < len(batch):
            already = starts[first - 1] if first else 0
            fits = int(np.searchsorted(starts, already + CHUNK_BYTES, side="right"))
            last = max(first + 1, min(fits, first + CHUNK_ROWS, len(batch)))
            yield Chunk(text[first:last], files.slice(first, last - first), read + last)
            first = last
        read += len(batch)


def checked(batch: pa.RecordBatch, before: int, data: Data) -> pl.DataFrame:
    """Checks rows without their images. The first reason that holds is given."""
    rows = pl.DataFrame(batch.drop_columns(["image"]))
    rows = rows.with_row_index("position", before).with_columns(pl.col("position").cast(pl.Int64))
    written = pl.col("tags").list.drop_nulls()
    bytes_in_tags = written.list.eval(pl.element().str.len_bytes()).list.sum()
    rows = rows.with_columns(
        written.alias("written"),
        ((written.list.len() > MAX_TAGS) | (bytes_in_tags > MAX_TAG_BYTES)).fill_null(False).alias("many"),
    )
    short = pl.col("written").list.head(TAGS_OF_REJECTED).list.eval(pl.element().str.head(TAG_OF_REJECTED))
    rows = rows.with_columns(
        pl.when("many").then(short).otherwise("written").alias("written"),
        pl.format("{} tags, {} bytes", pl.col("written").list.len(), bytes_in_tags).alias("many_detail"),
    )
    given = pl.col("split").str.strip_chars().str.to_lowercase().fill_null("")
    usable = rows.select(pl.when(~pl.col("many")).then("written").alias("tags")).to_series()
    rows = rows.with_columns(
        canonical_lists(usable, data.accents).alias("tags"),
        given.replace_strict(GIVEN, default=None, return_dtype=pl.String).alias("given"),
        given.alias("given_text"),
        pl.when(pl.col("taken_at").is_between(FIRST, LAST, closed="left")).then("taken_at").alias("taken_at"),
    )
    no_tags = pl.col("tags").list.len() == 0
    none_written = pl.col("written").list.len().fill_null(0) == 0
    characters = pl.col("id").str.len_chars()
    checks = (
        (pl.col("reason").fill_null("") != "", pl.col("reason"), pl.col("detail")),
        (pl.col("id").str.strip_chars().fill_null("") == "", pl.lit("no_id"), pl.lit("")),
        (characters > MAX_ID, pl.lit("bad_id"), pl.format("{} characters", characters)),
        (pl.col("id").str.contains(r"\p{Cc}"), pl.lit("bad_id"), pl.lit("control characters")),
        (pl.col("many"), pl.lit("too_many_tags"), pl.col("many_detail")),
        (no_tags & none_written, pl.lit("no_tags"), pl.lit("none written")),
        (no_tags, pl.lit("no_tags"), pl.lit("none left of those written")),
        (pl.col("given").is_null() & (pl.col("given_text") != ""), pl.lit("bad_split"), pl.col("split").str.head(50)),
    )
    return rows.select(
        "position",
        pl.col("id").str.head(MAX_ID),
        "written",
        "tags",
        "user",
        "taken_at",
        "given",
        pl.when(pl.col("original").str.len_bytes() <= MAX_ORIGINAL).then("original").alias("original"),
        pl.coalesce(pl.when(holds).then(reason) for holds, reason, _ in checks).alias("reason"),
        pl.coalesce(pl.when(holds).then(detail.fill_null("")) for holds, _, detail in checks)
        .str.head(MAX_DETAIL)
        .alias("detail"),
    )


def _without(text: pl.DataFrame, taken_down: Callable[[str | None, str | None], bool]) -> pl.DataFrame:
    """Leaves nothing but a reason of the rows that were taken down."""
    gone = pl.Series([taken_down(*row) for row in text.select("id", "user").iter_rows()], dtype=pl.Boolean)
    emptied = [pl.when(~gone).then(pl.col(name)).alias(name) for name in text.columns if name != "position"]
    reason = pl.when(gone).then(pl.lit("taken_down")).otherwise("reason").alias("reason")
    return text.with_columns(emptied).with_columns(reason)
