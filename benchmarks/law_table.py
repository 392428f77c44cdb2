"""The tables of law.py: parts of one table of real pictures, checked before anything is trained.

VALIDATION of its training posts are set apart for choices, and each number of posts is a part of the next larger one.
Where fewer are left than are wanted, all are taken: photos.parquet has 229,637 for 235000. But ENOUGH of that number,
which names the cell, must be there.
"""

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import polars.selectors as cs

from moe_core.store.files import part_of

VALIDATION = 5_000
ENOUGH = 0.85  # of --posts


def rows_of(source: Path) -> pl.LazyFrame:
    """The table with ids, splits and sources as text; a source that is not given is "none"."""
    table = pl.scan_parquet(source, glob=False)
    text = pl.col([name for name in ("id", "split", "source") if name in table.collect_schema()]).cast(pl.String)
    return table.with_columns(text).with_columns(cs.by_name("source", require_all=False).fill_null("none"))


def labels_of(source: Path, numbers: Sequence[int]) -> pl.DataFrame:
    """The table without its images.

    Raises SystemExit for what is no such table, or has too few training posts for one of the numbers, or none to test.
    """
    try:
        labels = rows_of(source).select("id", "tags", "split", cs.by_name("source", require_all=False)).collect()
        pl.scan_parquet(source, glob=False).select("image", pl.col("tags").list.len()).collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        why = str(error).splitlines()[0]
        raise SystemExit(
            f"--source {source}: {why}; wanted a Parquet file with the columns id, image, tags (lists), split"
        ) from None
    twice = labels.filter(pl.col("id").is_duplicated() | pl.col("id").is_null())["id"]
    if len(twice):
        raise SystemExit(f"{source} has {len(twice):,} rows without an id of their own, such as {twice[0]}: mend them")
    train, test = ((labels["split"] == split).sum() for split in ("train", "test"))
    if not test:
        raise SystemExit(f"{source} has no row of split test: wanted some, which the networks are judged by")
    for posts in numbers:
        if train - VALIDATION < ENOUGH * posts:
            raise SystemExit(
                f"--posts {posts}: wanted {posts:,} + {VALIDATION:,} rows of split train, {source} has {train:,}: "
                "lower --posts, or give a larger table"
            )
    return labels


def part(rows: pl.DataFrame, posts: int) -> pl.DataFrame:
    """So many training posts, and VALIDATION more; all test posts."""
    train = rows.filter(pl.col("split") == "train").sort(pl.col("id").hash(seed=0))
    held = train.head(VALIDATION).with_columns(split=pl.lit("validation"))
    return pl.concat([train.slice(VALIDATION, posts), held, rows.filter(pl.col("split") == "test")])


def table_of(source: Path, posts: int, to: Path) -> None:
    """The part of the table with so many training posts. Raises SystemExit where another table's part is there."""
    if not to.exists():
        unfinished = part_of(to)  # several processes may write the same
        part(rows_of(source).collect(), posts).write_parquet(unfinished)
        unfinished.rename(to)
        return
    wanted, kept = (table.with_columns(pl.col("image").hash()) for table in (rows_of(source), rows_of(to)))
    wanted_rows, kept_rows = part(wanted.collect(), posts), kept.collect()
    others = [
        name
        for name in wanted_rows.columns
        if name not in kept_rows.columns or not wanted_rows[[name]].equals(kept_rows[[name]])
    ]
    if others:
        raise SystemExit(
            f"{to} ({len(kept_rows):,} rows) was made from another table: {source} gives {len(wanted_rows):,} rows "
            f"that differ in {', '.join(others)}; give another --root, or the table that it was made from"
        )
