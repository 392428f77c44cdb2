"""hashtags.parquet of an evaluation, a row for each hashtag, as reports and Dagster show it. Evaluations of before have
none."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_core.evaluation.measures import MEASURES
from moe_core.store.artifact import Artifact

HASHTAGS_FILE = "hashtags.parquet"
BAND_MEASURES = ("r_at_5", "r_at_10", "map")
BAND_HEAD = ("band", "hashtags", "training posts", "test posts", "row", *(MEASURES[m].title for m in BAND_MEASURES))
POSTS = 5  # test posts that carry a hashtag, from which it is named among those that gain or lose most

Row = dict[str, Any]


def hashtags_file(evaluation: Artifact) -> Path | None:
    """The file, checked; None where the evaluation has none."""
    return evaluation.file(HASHTAGS_FILE) if HASHTAGS_FILE in evaluation.files else None


def most_tested(evaluation: Artifact, most: int) -> list[Row]:
    """Rows of the hashtags on the most test posts, at most so many, by falling training posts; none without a file."""
    import polars as pl

    file = hashtags_file(evaluation)
    if file is None:
        return []
    frame = pl.read_parquet(file, glob=False).with_row_index("id")
    return frame.sort("test_posts", "id", descending=[True, False]).head(most).sort("id").to_dicts()


def gained_and_lost(evaluation: Artifact, most: int) -> tuple[list[Row], list[Row]]:
    """(hashtags whose average precision gained most over the trunk, those that lost most), the largest first."""
    import polars as pl

    file = hashtags_file(evaluation)
    if file is None:
        return [], []
    frame = pl.read_parquet(file, glob=False).filter(pl.col("map_posts") >= POSTS, pl.col("ap_gain").is_not_null())
    gained, lost = frame.filter(pl.col("ap_gain") > 0), frame.filter(pl.col("ap_gain") < 0)
    return gained.sort("ap_gain", descending=True).head(most).to_dicts(), lost.sort("ap_gain").head(most).to_dicts()


def band_lines(bands: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """`bands` of table.json as the cells under BAND_HEAD; first the published row of each band."""
    lines = []
    for band in bands["bands"]:
        head = (
            band["band"],
            f"{band['hashtags']:,}",
            f"{band['from_posts']:,} to {band['to_posts']:,}",
            f"{band['test_posts']:,}",
        )
        for name, row in band["rows"].items():
            lines.append((*head, name, *(_cell(row, measure) for measure in BAND_MEASURES)))
            head = ("", "", "", "")
    return lines


def _cell(row: Row, measure: str) -> str:
    if row[measure] is None:
        return ""
    low, high = row[f"{measure}_ci95"]
    return f"{row[measure]:.3f} ({low:.3f} to {high:.3f})"


def mistaken_text(mistaken: Sequence[Mapping[str, Any]]) -> str:
    """Such as "sea 3, sand 1"."""
    return ", ".join(f"{each['tag']} {each['n']:,}" for each in mistaken)
