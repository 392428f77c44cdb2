"""What a module of this folder gives for its format, and where it is found."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pyarrow as pa

from moe_core.data.sources.registry import FORMATS
from moe_core.data.sources.scan import Scan, Shard
from moe_core.settings import Source


@dataclass(frozen=True)
class Contents:
    """What one pass over the names of a local source found: a file, or a folder."""

    path: Path
    documents: Sequence[str] = ()  # JSON files, the first of them
    images_in_folders: bool = False


@dataclass(frozen=True)
class Reader:
    """How a format is read.

    `find` gives the shards, each with a hash of its content alone. `read` gives batches of schema RAW; its folder is
    for indices that make the next read faster. `count` gives rows, and whether they were counted rather than estimated.
    """

    find: Callable[[Source, Scan], list[Shard]]
    read: Callable[[Source, Shard, Path | None], Iterator[pa.RecordBatch]]
    count: Callable[[Source, Sequence[Shard]], tuple[int, bool]]
    # column of the shard for each of ours, and all its columns; None where it has none
    columns: Callable[[Source, Shard], tuple[dict[str, str], list[str]] | None] | None = None
    # for each row what rows of one post agree on; None for a row that is a post of its own
    row_keys: Callable[[Source, Shard], Iterator[str | None]] | None = None
    # whether a source whose names do not tell its format has this one; BadSource says why not
    recognizes: Callable[[Contents], bool] | None = None
    splits_by_name: bool = True  # names of files give the split of rows without one


def reader_of(format: str) -> Reader:
    """The Reader of a format, from the module that its row of FORMATS names."""
    reader: Reader = import_module(f"{__package__}.{FORMATS[format].module or format}").READERS[format]
    return reader
