"""Lance tables: one, or a folder of them. One shard a table; only moe_core.tables uses lance."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from moe_core.data.image_files import IMAGE_SUFFIXES
from moe_core.data.sources.arrow import columns_of, names_images, to_raw
from moe_core.data.sources.files import File, is_remote, key_of, listing, local
from moe_core.data.sources.raw import BATCH, BATCH_BYTES
from moe_core.data.sources.reader import Reader
from moe_core.data.sources.registry import FORMATS
from moe_core.data.sources.scan import Scan, Shard
from moe_core.errors import BadSource
from moe_core.settings import Source
from moe_core.store.hashing import content_hash
from moe_core.tables.foreign import scan_table, table_info

FORMAT = FORMATS["lance"]


def find(source: Source, scan: Scan) -> list[Shard]:
    if is_remote(source.uri):
        info = table_info(source.uri)
        columns_of(info.schema, source, source.uri)
        key = key_of(source.uri.rstrip("/").rsplit("/", 1)[-1], FORMAT.suffixes)
        return [Shard(key, source.uri, content_hash(info.version))]
    root = local(source.uri)
    tables = [root] if is_table(root) else sorted(p for p in root.rglob("*.lance") if is_table(p))
    if not tables:
        raise BadSource(f"no Lance table at {source.uri}: wanted {FORMAT.what}")
    names = {str(t): t.name if t == root else t.relative_to(root).as_posix() for t in tables}
    files = [File(path, name, 0, 0) for path, name in names.items()]
    shards = []
    for file in scan.readable(files, lambda file: columns_of(table_info(file.path).schema, source, file.path)):
        table, info = Path(file.path), table_info(file.path)
        scan.hashes.remember(file)
        content: list[object] = [info.version, listing(table, ("",))]
        if names_images(info.schema, source, str(table)):
            content.append(listing(table.parent, IMAGE_SUFFIXES, hidden=True))
        shards.append(Shard(key_of(file.name, FORMAT.suffixes), file.path, content_hash(content)))
    return shards


def is_table(path: Path) -> bool:
    return (path / "_versions").is_dir()


def read(source: Source, shard: Shard, cache: Path | None) -> Iterator[pa.RecordBatch]:
    def batches(names: list[str]) -> Iterator[pa.RecordBatch]:
        return scan_table(shard.path, names, BATCH, BATCH_BYTES)

    return to_raw(batches, source, shard, table_info(shard.path).schema)


def columns(source: Source, shard: Shard) -> tuple[dict[str, str], list[str]]:
    schema = table_info(shard.path).schema
    return columns_of(schema, source, shard.path), schema.names


def count(source: Source, shards: Sequence[Shard]) -> tuple[int, bool]:
    return sum(table_info(shard.path).rows for shard in shards), True


READERS = {"lance": Reader(find, read, count, columns, recognizes=lambda contents: is_table(contents.path))}
