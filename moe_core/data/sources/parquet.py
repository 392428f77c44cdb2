"""Parquet and Arrow IPC (Feather, Hugging Face's .arrow): a file, a folder, a glob or a URI. One shard a file."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from moe_core.data.image_files import IMAGE_SUFFIXES
from moe_core.data.sources.arrow import BROKEN, columns_of, names_images, to_raw
from moe_core.data.sources.byproducts import of_saved_datasets, refuse_tables
from moe_core.data.sources.declared import RATIO, SMALL, Absurd, check_arrow, rows_at_once
from moe_core.data.sources.files import (
    WILDCARD,
    File,
    damaged,
    files_at,
    fixed_part,
    is_remote,
    key_of,
    listing,
    local,
    opened,
)
from moe_core.data.sources.raw import BATCH, BATCH_BYTES
from moe_core.data.sources.reader import Reader
from moe_core.data.sources.registry import FORMATS
from moe_core.data.sources.scan import Scan, Shard
from moe_core.errors import BadSource
from moe_core.settings import Source
from moe_core.store.hashing import content_hash
from moe_core.text import utf8

END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def find(source: Source, scan: Scan) -> list[Shard]:
    """A shard a file. New and changed files are opened, so that a wrong one is reported early."""
    format = FORMATS[source.format]
    shards = []
    files = files_at(source.uri, format.suffixes, format.what)
    refuse_tables(source.uri, files)
    if source.format == "arrow":
        files = of_saved_datasets(source.uri, files)
        if not files:
            raise BadSource(f"no Arrow file at {source.uri} but caches: wanted {format.what}")
    files = scan.readable(files, lambda file: _check(file, source))
    named = names_images(schema_of(files[0], source), source, files[0].path)
    images_in = cache(partial(listing, suffixes=IMAGE_SUFFIXES, hidden=True))
    for file in files:
        content = scan.hashes.of(file)
        if named and not is_remote(file.path):  # the images lie beside the file, and count too
            content = content_hash([content, images_in(local(file.path).parent)])
        if by_folder := hive_of(file.path, source):
            content = content_hash([content, by_folder])
        shards.append(Shard(key_of(file.name, format.suffixes), file.path, content))
    return shards


def _check(file: File, source: Source) -> None:
    """Raises BadSource for a file that is cut short or has other columns. The end of an Arrow stream is marked."""
    with _readable(file.path, source.format) as (raw, schema, opened_file):
        columns_of(_with_folders(schema, hive_of(file.path, source)), source, file.path)
        if isinstance(opened_file, pa.RecordBatchStreamReader) and not _ends(raw):
            raise BadSource(f"{file.path} is cut short, or still being copied: it has no end-of-stream mark")


def schema_of(file: File, source: Source) -> pa.Schema:
    """Columns of a file, with those that the names of its folders give."""
    with _readable(file.path, source.format) as (_, schema, _):
        return _with_folders(schema, hive_of(file.path, source))


def hive_of(path: str, source: Source) -> dict[str, str | None]:
    """Columns that the names of a file's folders below the source give, as in `split=train/part-0.parquet`."""
    root = source.uri if is_remote(source.uri) else str(fixed_part(local(source.uri)))
    if is_remote(root) and (wild := WILDCARD.search(root)):
        root = root[: wild.start()].rpartition("/")[0]
    parts = [part.partition("=") for part in utf8(path.removeprefix(root)).split("/")[:-1]]
    return {
        unquote(name): None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)
        for name, equals, value in parts
        if name and equals
    }


def _with_folders(schema: pa.Schema, by_folder: dict[str, str | None]) -> pa.Schema:
    """With the columns that the names of folders give, unless the file has its own."""
    for name in by_folder.keys() - set(schema.names):
        schema = schema.append(pa.field(name, pa.string()))
    return schema


def _filled(batch: pa.RecordBatch, values: dict[str, str | None]) -> pa.RecordBatch:
    for name, value in values.items():
        batch = batch.append_column(name, pa.repeat(pa.scalar(value, pa.string()), len(batch)))
    return batch


def read(source: Source, shard: Shard, cache: Path | None) -> Iterator[pa.RecordBatch]:
    with _readable(shard.path, source.format) as (raw, schema, _):
        by_folder = {name: value for name, value in hive_of(shard.path, source).items() if name not in schema.names}
        limit = max(SMALL, RATIO * raw.size())

    def batches(names: list[str]) -> Iterator[pa.RecordBatch]:
        with _readable(shard.path, source.format) as (raw, _, file):
            batches_of = _parquet if source.format == "parquet" else _arrow
            own = batches_of(raw, file, [name for name in names if name not in by_folder])
            yield from (_filled(batch, by_folder) for batch in own)

    return to_raw(batches, source, shard, _with_folders(schema, by_folder), limit)


def columns(source: Source, shard: Shard) -> tuple[dict[str, str], list[str]]:
    schema = schema_of(File(shard.path, "", 0, 0), source)
    return columns_of(schema, source, shard.path), schema.names


def count(source: Source, shards: Sequence[Shard]) -> tuple[int, bool]:
    rows = 0
    for shard in shards:
        with _readable(shard.path, source.format) as (raw, _, file):
            if source.format == "parquet":
                rows += file.metadata.num_rows
            else:
                rows += sum(batch.num_rows for batch in _arrow(raw, file, None))
    return rows, True


@contextmanager
def _readable(path: str, kind: str) -> Iterator[tuple[Any, pa.Schema, Any]]:
    """The bytes, the schema and an open file. Raises BadSource for one that is empty or damaged."""
    what = "Parquet" if kind == "parquet" else "Arrow"
    with opened(path, mapped=kind == "arrow") as raw:
        try:
            if not raw.size():
                raise BadSource(f"{path} is empty (0 bytes), wanted a {what} file: remove it, or copy it again")
            if kind == "parquet":
                # not pre-buffered: a row group may be larger than memory
                file: Any = pq.ParquetFile(raw, pre_buffer=False, buffer_size=1 << 20)
                schema = file.schema_arrow
            else:
                file = _open_arrow(raw, is_remote(path))
                schema = file.schema
            _ = schema.names  # names that are no UTF-8 are seen here
        except Absurd as error:
            raise BadSource(f"{path} is refused: {error}") from None
        except BROKEN as error:
            remedy = "damaged, still being copied, or another format?"
            raise damaged(path, error, f"not a readable {what} file", remedy) from None
        yield raw, schema, file


def _open_arrow(raw: Any, remote: bool) -> Any:
    magic = raw.read_at(6, 0)
    if magic[:4] == b"FEA1":
        raise pa.ArrowInvalid("Feather version 1: write it again as version 2")
    if not remote:  # where each read would be a request
        check_arrow(raw)
        raw.seek(0)
    return pa.ipc.open_file(raw) if magic == b"ARROW1" else pa.ipc.open_stream(raw)


def _parquet(raw: Any, file: pq.ParquetFile, names: list[str]) -> Iterator[pa.RecordBatch]:
    leaves = [file.schema.column(number) for number in range(len(file.schema))]
    lists = [leaf.path for leaf in leaves if leaf.max_repetition_level and leaf.physical_type == "BYTE_ARRAY"]
    # a word of a list stays in the dictionary until its row is read: the number in a row is not known before
    file = pq.ParquetFile(raw, metadata=file.metadata, read_dictionary=lists, pre_buffer=False, buffer_size=1 << 20)
    for group in range(file.metadata.num_row_groups):
        metadata = file.metadata.row_group(group)
        if metadata.num_rows:
            rows = BATCH_BYTES * metadata.num_rows // max(1, metadata.total_byte_size)
            rows = min(BATCH, rows, rows_at_once(raw, file, group, names))
            yield from file.iter_batches(max(1, rows), row_groups=[group], columns=names)


def _arrow(raw: Any, file: Any, names: list[str] | None) -> Iterator[pa.RecordBatch]:
    if isinstance(file, pa.RecordBatchFileReader):
        batches: Any = (file.get_batch(n) for n in range(file.num_record_batches))
    else:
        batches = file
    for batch in batches:
        batch = batch.select(names) if names is not None else batch
        # Arrow trusts the lengths and offsets in a file, and wrong ones would end the process
        batch.validate(full=True)
        yield from (batch.slice(start, BATCH) for start in range(0, len(batch), BATCH))
    if batches is file and not _ends(raw):
        raise pa.ArrowInvalid("no end-of-stream mark where the batches end: cut short")


def _ends(raw: Any) -> bool:
    tail = raw.size() - len(END_OF_STREAM)
    return bool(tail >= 0 and raw.read_at(len(END_OF_STREAM), tail) == END_OF_STREAM)


READERS = dict.fromkeys(("parquet", "arrow"), Reader(find, read, count, columns))
