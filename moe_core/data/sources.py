"""Readers of what users have: each gives its shards, and for each shard batches of one schema, as written.

A shard is one input file (or one slice of the drawn data); it is ingested, versioned and re-ingested by itself.
"""

import csv
import glob
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moe_core.settings import Source
from moe_core.store import digest, file_digest, write_text

RAW = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.binary()),
        ("tags", pa.list_(pa.string())),
        ("user", pa.string()),
        ("taken_at", pa.timestamp("us")),
        ("split", pa.string()),
    ]
)
BATCH = 1000
TAG_COLUMNS = ("tags", "raw_tags")  # the first that is there, unless source.tags_column says otherwise
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"}


@dataclass(frozen=True)
class Shard:
    """One input file. `digest` names its content."""

    key: str
    path: str  # empty for drawn data
    digest: str


def find_shards(source: Source, cache: Path | None = None) -> list[Shard]:
    """The shards of a source in the order of their keys. Raises ValueError when there is none, or not what was said.

    `cache` remembers digests of files by size and time of change, so that looking again does not read again.
    """
    if source.format == "drawn":
        from moe_core.data import drawn

        about = {"posts": source.posts, "shards": source.shards, "seed": source.seed, "code": drawn.VERSION}
        return [Shard(f"s{n:04d}", "", digest(about | {"shard": n})) for n in range(source.shards)]
    remembered = _Digests(cache)
    if source.format == "parquet":
        paths = _parquet_files(source.uri)
        for path in paths:
            _parquet_columns(path, source.tags_column)
        shards = [Shard(key, str(p), remembered.of(p)) for key, p in zip(_keys(paths), paths, strict=True)]
    else:
        table = _table_of(source)
        images = [p for p in sorted(Path(source.uri).rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES]
        said = [remembered.of(table), *(f"{p.relative_to(source.uri)} {remembered.of(p)}" for p in images)]
        shards = [Shard(_keys([table])[0], str(table), digest(said))]
    remembered.save()
    return shards


def read_shard(source: Source, shard: Shard) -> Iterator[pa.RecordBatch]:
    """Batches of schema RAW. An image that cannot be read from its file is empty, for the ingest to count."""
    if source.format == "drawn":
        from moe_core.data.drawn import draw_shard

        return draw_shard(int(shard.key[1:]), source.shards, source.posts, source.seed)
    if source.format == "parquet":
        return _read_parquet(Path(shard.path), source.tags_column)
    return _read_folder(Path(source.uri), Path(shard.path))


def guess_format(uri: str) -> str:
    """'parquet' or 'folder', by what lies there, or 'drawn' by its name. Raises ValueError where nothing does."""
    if uri == "drawn":
        return "drawn"
    path = Path(uri)
    if path.suffix == ".parquet" or any(c in uri for c in "*?[") or (path.is_dir() and any(path.rglob("*.parquet"))):
        return "parquet"
    if path.is_dir():
        return "folder"
    raise ValueError(f"nothing at {uri}: wanted a Parquet file, a folder of them, a glob, or a folder of images")


def describe(source: Source, shards: list[Shard]) -> list[str]:
    """Lines on what a source holds, from its shards and the first posts. Raises ValueError for an empty one."""
    first = next(read_shard(source, shards[0]), None)
    if first is None or not len(first):
        raise ValueError(f"{shards[0].path or 'the drawn data'} holds no post: wanted at least one row")
    tags = [len(row or ()) for row in first["tags"].to_pylist()]
    there = [name for name in ("user", "taken_at", "split") if first[name].null_count < len(first)]
    return [
        f"Found {len(shards)} shard{'s' if len(shards) > 1 else ''} of format {source.format}"
        + (f" at {source.uri}" if source.uri else ""),
        f"First {len(first)} posts: {sum(tags) / len(tags):.1f} tags each, {sum(t == 0 for t in tags)} without; "
        f"columns there beside id, image and tags: {', '.join(there) or 'none'}",
        "Split: the source's own" if "split" in there else "Split: by hash (data.test, data.validation)",
    ]


def _parquet_files(uri: str) -> list[Path]:
    if not uri:
        raise ValueError("source.uri is empty: wanted a Parquet file, a folder of them or a glob")
    path = Path(uri)
    found = sorted(path.rglob("*.parquet")) if path.is_dir() else [Path(p) for p in sorted(glob.glob(uri))]
    if not found:
        raise ValueError(f"no Parquet file at {uri}: wanted a file, a folder of *.parquet or a glob")
    return found


def _parquet_columns(path: Path, tags_column: str) -> dict[str, str]:
    """Column of the file for each of ours. Raises ValueError with what is missing and what is there."""
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a readable Parquet file: {error}") from None
    names = (tags_column,) if tags_column else TAG_COLUMNS
    tags = next((name for name in names if name in schema.names), None)
    missing = [name for name in ("id", "image") if name not in schema.names]
    if tags is None:
        missing.append(" or ".join(names))
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}: it has {', '.join(schema.names)}")
    assert tags is not None
    kind = schema.field(tags).type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not _is_text(kind.value_type):
        raise ValueError(f"{path}: column {tags} is {kind}, wanted a list of strings")
    image = schema.field("image").type
    if not (_is_bytes(image) or (pa.types.is_struct(image) and image.get_field_index("bytes") >= 0)):
        raise ValueError(f"{path}: column image is {image}, wanted binary (an encoded file) or a struct with `bytes`")
    optional = {name: name for name in ("user", "taken_at", "split") if name in schema.names}
    return {"id": "id", "image": "image", "tags": tags} | optional


def _is_text(kind: pa.DataType) -> bool:
    # a column of nothing but empty lists has no type of its own
    return (
        pa.types.is_null(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
    )


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _read_parquet(path: Path, tags_column: str) -> Iterator[pa.RecordBatch]:
    columns = _parquet_columns(path, tags_column)
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH, columns=list(columns.values())):
            table = pa.table({ours: batch[theirs] for ours, theirs in columns.items()})
            if pa.types.is_struct(table.schema.field("image").type):
                table = table.set_column(1, "image", pa.chunked_array([batch["image"].field("bytes")]))
            arrays = []
            for field in RAW:
                if field.name not in table.schema.names:
                    arrays.append(pa.nulls(len(table), field.type))
                    continue
                try:
                    arrays.append(table[field.name].combine_chunks().cast(field.type))
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                    raise ValueError(
                        f"{path}: column {columns[field.name]} is not {field.type} and cannot be made so: {error}"
                    ) from None
            yield pa.RecordBatch.from_arrays(arrays, schema=RAW)


def _table_of(source: Source) -> Path:
    folder = Path(source.uri)
    if not source.uri or not folder.is_dir():
        raise ValueError(f"no folder at {source.uri!r}: wanted a folder of images (source.uri)")
    if source.table:
        path = Path(source.table) if Path(source.table).is_absolute() else folder / source.table
        if not path.is_file():
            raise ValueError(f"no file at {path}: wanted a CSV or JSON-lines file of `file` and `tags` (source.table)")
        return path
    tables = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in (".csv", ".jsonl")]
    if len(tables) != 1:
        names = ", ".join(p.name for p in tables) or "none"
        raise ValueError(f"{folder} has {len(tables)} tables ({names}), wanted one .csv or .jsonl: set source.table")
    return tables[0]


def _read_folder(folder: Path, table: Path) -> Iterator[pa.RecordBatch]:
    rows: list[dict[str, object]] = []
    for row in _rows(table):
        name = str(row.get("file") or "")
        path = folder / name
        inside = path.resolve().is_relative_to(folder.resolve())
        image = path.read_bytes() if name and inside and path.is_file() else b""
        taken = row.get("taken_at") or None
        rows.append(
            {
                "id": str(row.get("id") or name),
                "image": image,
                "tags": _tags(row.get("tags")),
                "user": str(row["user"]) if row.get("user") else None,
                "taken_at": pa.scalar(taken, pa.string()).cast(pa.timestamp("us")).as_py() if taken else None,
                "split": str(row["split"]) if row.get("split") else None,
            }
        )
        if len(rows) == BATCH:
            yield pa.RecordBatch.from_pylist(rows, schema=RAW)
            rows = []
    if rows:
        yield pa.RecordBatch.from_pylist(rows, schema=RAW)


def _rows(table: Path) -> Iterator[dict[str, object]]:
    with open(table, encoding="utf-8-sig", newline="") as file:
        if table.suffix.lower() == ".csv":
            reader = csv.DictReader(file)
            _require(table, reader.fieldnames or [])
            yield from reader
            return
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{table}, line {number}: not JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{table}, line {number}: wanted an object with `file` and `tags`")
            _require(table, row)
            yield row


def _require(table: Path, names: object) -> None:
    missing = [name for name in ("file", "tags") if name not in names]  # type: ignore[operator]
    if missing:
        raise ValueError(f"{table} has no column {', '.join(missing)}: it has {', '.join(names)}")  # type: ignore[arg-type]


def _tags(said: object) -> list[str]:
    """A JSON list, or text with tags parted by commas, or by spaces where there is no comma."""
    if isinstance(said, list):
        return [str(tag) for tag in said]
    text = str(said or "")
    return [tag.strip() for tag in (text.split(",") if "," in text else text.split())]


def _keys(paths: list[Path]) -> list[str]:
    """Partition keys: file stems in plain characters, with a number where two are alike."""
    keys: list[str] = []
    for path in paths:
        key = stem = re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem)[:60] or "shard"
        if stem in keys:
            key = f"{stem}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        keys.append(key)
    return keys


class _Digests:
    """Content digests of files, remembered by path, size and time of change."""

    def __init__(self, cache: Path | None) -> None:
        self.cache = cache
        self.known: dict[str, list[object]] = {}
        if cache and cache.is_file():
            try:
                self.known = json.loads(cache.read_text("utf-8"))
            except ValueError:
                self.known = {}  # it only saves time: made again
        self.before = len(self.known)

    def of(self, path: Path) -> str:
        stat = path.stat()
        key, mark = str(path), [stat.st_size, stat.st_mtime_ns]
        said = self.known.get(key)
        if said is None or said[:2] != mark:
            self.known[key] = said = [*mark, file_digest(path)]
            self.before = -1
        return str(said[2])

    def save(self) -> None:
        if self.cache and self.before != len(self.known):
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.cache, json.dumps(self.known))
