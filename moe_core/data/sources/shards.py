"""The shards of a source of any format, and the rows of one."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from moe_core.data.sources.files import is_remote, local, unreachable
from moe_core.data.sources.path_splits import split_of_path
from moe_core.data.sources.reader import reader_of
from moe_core.data.sources.registry import FORMATS
from moe_core.data.sources.scan import ContentHashes, Scan, Shard, Unready
from moe_core.errors import BadSource
from moe_core.settings import Source
from moe_core.store.hashing import content_hash

VERSION = "3"  # raised when a reader makes something else of the same file
# settings that do not change what is read from a file; every other one does
WHERE = {"uri", "table", "images"}
SYNTHETIC = {"shards", "posts", "seed"}


def find_shards(
    source: Source, hashes: ContentHashes | None = None, unready: list[Unready] | None = None
) -> list[Shard]:
    """The shards of a source in the order of their keys. Raises BadSource where there is none.

    `hashes` remembers content hashes of files: what it knows is not read again, and what it learns is there to be
    saved; nothing is written here. With a list `unready`, new files that cannot be read (half of one is copied) go
    there, and the others are found; a file that could be read before, as `hashes` remembers, is an error all the same.
    """
    shards: dict[str, Shard] = {}
    for shard in _find(source, Scan(hashes or ContentHashes(), unready)):
        if shard.key in shards:
            raise BadSource(
                f"{shards[shard.key].path} and {shard.path} would both be shard {shard.key}: rename one of them"
            )
        shards[shard.key] = shard
    return [shards[key] for key in sorted(shards)]


def read_shard(
    source: Source, shard: Shard, cache: Path | None = None, hashes: ContentHashes | None = None
) -> Iterator[pa.RecordBatch]:
    """Batches of schema RAW, with a `reason` in each row that cannot be used. Raises BadSource for a damaged file.

    `cache` is a folder in which indices of tars are kept, `hashes` what `find_shards` was given. Raises BadSource
    behind the last batch where the source is no longer what the shard's content hash names.
    """
    before = _state_of(shard)
    try:
        split = split_by_name(source, shard.path)
        for batch in reader_of(source.format).read(source, shard, cache):
            yield batch if split is None else _with_split(batch, split)
    except OSError as error:
        raise unreachable(shard.path, error) from None
    except MemoryError:
        raise BadSource(f"{shard.path} needs more memory to be read than this process may use (ulimit -v?)") from None
    # the hash alone would not tell of another file that was there for a while
    if shard.content_hash and (_state_of(shard) != before or _hash_now(source, shard, hashes) != shard.content_hash):
        raise BadSource(
            f"{shard.path} or its images changed while they were read: run the same command again when nothing writes "
            "to them"
        )


def split_by_name(source: Source, path: str) -> str | None:
    """The split that a shard's name gives to rows without one."""
    if source.split_column or not reader_of(source.format).splits_by_name:
        return None
    return split_of_path(path, source.uri)


def _find(source: Source, scan: Scan) -> Iterator[Shard]:
    """Shards whose hash is that of their content and of what is read from it."""
    if not source.uri and source.format != "synthetic":
        what = FORMATS[source.format].what
        raise BadSource(f"source.uri is empty: wanted {what}; `hardmoe init DIR --source ...` sets it")
    try:
        shards = reader_of(source.format).find(source, scan)
    except OSError as error:
        raise unreachable(source.uri, error) from None
    # a study from before `original` was kept is not stale for that: nothing that is computed reads it
    unset = set() if source.original_column else {"original_column"}
    settings = source.model_dump(exclude=WHERE | SYNTHETIC | unset)
    for shard in shards:
        read = {"content": shard.content_hash, "version": VERSION, "settings": settings}
        if split := split_by_name(source, shard.path):
            read["split"] = split
        yield replace(shard, content_hash=content_hash(read))


def _state_of(shard: Shard) -> tuple[int, int, int] | None:
    """Size and times of a local file, the last of which cannot be set back; None for a folder, a URI or no file."""
    if is_remote(shard.path) or not os.path.isfile(path := local(shard.path)):
        return None
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _hash_now(source: Source, shard: Shard, hashes: ContentHashes | None) -> str:
    """Content hash of the shard as it is now, "" where it is gone; no other new file is read."""
    shards = _find(source, Scan(hashes or ContentHashes(), [], only=shard.path))
    return next((now.content_hash for now in shards if now.key == shard.key), "")


def _with_split(batch: pa.RecordBatch, split: str) -> pa.RecordBatch:
    column = batch.schema.get_field_index("split")
    return batch.set_column(column, batch.schema.field(column), pc.fill_null(batch["split"], split))
