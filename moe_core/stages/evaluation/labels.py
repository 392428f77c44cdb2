"""The user's table of labels, which embeddings are to tell: a file with a post's id and its label in each row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from moe_core.errors import BadSetting
from moe_core.settings import Evaluation
from moe_core.store.hashing import file_hash
from moe_core.text import one_line, shown

if TYPE_CHECKING:
    import polars as pl

SUFFIXES = (".parquet", ".csv", ".tsv")
NAMED = 50  # columns listed in an error


def hash_of_labels(evaluation: Evaluation) -> str:
    """Hash of the file's bytes. Raises BadSetting where it is not there or no table, or has not the two columns."""
    import polars as pl

    path = Path(evaluation.labels_file)
    if not path.is_file() or path.suffix.lower() not in SUFFIXES:
        raise BadSetting(
            f"evaluation.labels_file: no table at {path}: wanted a file whose name ends in {', '.join(SUFFIXES)}"
        )
    try:
        columns = scan_labels(evaluation).collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise BadSetting(f"evaluation.labels_file: {path} cannot be read: {one_line(error)}") from None
    for setting in ("labels_id_column", "labels_column"):
        name = getattr(evaluation, setting)
        if name not in columns:
            there = ", ".join(map(shown, columns[:NAMED]))
            raise BadSetting(f"evaluation.{setting}: {path} has no column {shown(name)}: it has {there}")
    return file_hash(path)


def scan_labels(evaluation: Evaluation) -> pl.LazyFrame:
    """The table, none of it read yet."""
    import polars as pl

    path = Path(evaluation.labels_file)
    if path.suffix.lower() == ".parquet":
        return pl.scan_parquet(path, glob=False)
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    return pl.scan_csv(path, separator=separator, infer_schema=False, glob=False)
