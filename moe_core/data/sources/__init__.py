"""Readers of what users have: each gives its shards, and for each shard batches of one schema, as written.

A shard is one input file (or one slice of the drawn data); it is ingested, versioned and re-ingested by itself. One
file a format, with the same three functions: `find` the shards, `read` one, `count` the rows.
"""

import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from moe_core.data.sources.byproducts import foreign
from moe_core.data.sources.files import WILDCARD, ContentHashes, Scan, Shard, Unready, is_remote, local, unreachable
from moe_core.data.sources.path_splits import split_of_path
from moe_core.data.sources.raw import IMAGE_SUFFIXES, RAW
from moe_core.settings import Source
from moe_core.store.hashing import content_hash

__all__ = [
    "RAW",
    "ContentHashes",
    "Shard",
    "Unready",
    "absolute",
    "describe",
    "find_shards",
    "guess_format",
    "read_shard",
]

VERSION = "3"  # raised when a reader makes something else of the same file
MODULES = {
    "parquet": "parquet",
    "arrow": "parquet",
    "lance": "lance_table",
    "folder": "folder",
    "webdataset": "webdataset",
    "yfcc": "yfcc",
    "imagefolder": "imagefolder",
    "coco": "coco",
}
DOCUMENTS = 50  # JSON files of a folder that are looked into for COCO's
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
    if source.format == "drawn":
        from moe_core.data import synthetic

        about = {"posts": source.posts, "shards": source.shards, "seed": source.seed, "code": synthetic.VERSION}
        return [Shard(f"s{n:04d}", "", content_hash(about | {"shard": n})) for n in range(source.shards)]
    shards: dict[str, Shard] = {}
    try:
        found = _reader(source).find(source, Scan(hashes or ContentHashes(), unready))
    except OSError as error:
        raise unreachable(source.uri, error) from None
    for key, path, content in found:
        if key in shards:
            raise ValueError(f"{shards[key].path} and {path} would both be shard {key}: rename one of them")
        shards[key] = Shard(key, path, content_hash(_reading(source, path) | {"content": content}))
    return [shards[key] for key in sorted(shards)]


def read_shard(
    source: Source, shard: Shard, cache: Path | None = None, hashes: ContentHashes | None = None
) -> Iterator[pa.RecordBatch]:
    """Batches of schema RAW, with a `reason` in each row that cannot be used. Raises BadSource for a damaged file.

    `cache` is a folder in which indices of tars are kept, `hashes` what `find_shards` was given. Raises BadSource
    behind the last batch where the source is no longer what the shard's content hash names.
    """
    if source.format == "drawn":
        from moe_core.data.synthetic import draw_shard

        yield from draw_shard(int(shard.key[1:]), source.shards, source.posts, source.seed)
        return
    before = _written(shard)
    try:
        split = split_by_name(source, shard.path)
        for batch in _reader(source).read(source, shard, cache):
            yield batch if split is None else _with_split(batch, split)
    except OSError as error:
        raise unreachable(shard.path, error) from None
    except MemoryError:
        raise ValueError(f"{shard.path} needs more memory to be read than this process may use (ulimit -v?)") from None
    # the hash alone would not tell of another file that was there for a while
    if shard.content_hash and (_written(shard) != before or _hash_now(source, shard, hashes) != shard.content_hash):
        raise ValueError(
            f"{shard.path} or its images changed while they were read: run the same command again when nothing writes "
            "to them"
        )


def _written(shard: Shard) -> tuple[int, int, int] | None:
    """Size and times of a local file, the last of which cannot be set back; None elsewhere, and where it is gone."""
    if is_remote(shard.path) or not os.path.isfile(place := local(shard.path)):
        return None
    about = os.stat(place)
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns


def _hash_now(source: Source, shard: Shard, hashes: ContentHashes | None) -> str:
    """Content hash of the shard as it is now, "" where it is gone; no other new file is read."""
    try:
        found = _reader(source).find(source, Scan(hashes or ContentHashes(), [], only=shard.path))
    except OSError as error:
        raise unreachable(source.uri, error) from None
    content = next((content for _, path, content in found if path == shard.path), None)
    return "" if content is None else content_hash(_reading(source, shard.path) | {"content": content})


def _reading(source: Source, path: str) -> dict[str, Any]:
    split = split_by_name(source, path)
    how = {"version": VERSION, "settings": source.model_dump(exclude=WHERE | SYNTHETIC)}
    return how | ({"split": split} if split else {})


def split_by_name(source: Source, path: str) -> str | None:
    """The split that a shard's name gives to rows without one, where the source has a reader's usual columns."""
    if source.split_column or source.format in ("drawn", "yfcc", "imagefolder"):
        return None
    return split_of_path(path, source.uri)


def _with_split(batch: pa.RecordBatch, split: str) -> pa.RecordBatch:
    place = RAW.get_field_index("split")
    return batch.set_column(place, RAW.field(place), pc.fill_null(batch["split"], split))


def count_rows(source: Source, shards: list[Shard]) -> tuple[int, bool]:
    """Rows of all the shards, and whether they were counted rather than judged by the size of the files."""
    if source.format == "drawn":
        return source.posts, True
    rows, exact = _reader(source).count(source, shards)
    return rows, exact


def columns_of(source: Source, shard: Shard) -> tuple[dict[str, str], list[str]] | None:
    """Column of a shard for each of ours, and all its columns; None for a format without columns."""
    find = getattr(_reader(source), "columns", None) if source.format != "drawn" else None
    return find(source, shard) if find else None


def describe(source: Source, shards: list[Shard], image_size: int = 32) -> list[str]:
    """Lines on what a source holds. Raises ValueError for an empty one."""
    from moe_core.data.sources import describing

    return describing.describe(source, shards, image_size)


def _reader(source: Source) -> Any:
    return import_module(f"{__name__}.{MODULES[source.format]}")


def absolute(uri: str) -> str:
    """A path as it is from everywhere; a URI as it is."""
    return uri if is_remote(uri) else str(local(uri).absolute())


def guess_format(uri: str) -> str:
    """The format by what lies there, or 'drawn' by its name. Raises ValueError where nothing does, or several."""
    if uri == "drawn":
        return "drawn"
    kinds = _kinds_of_name(uri.rstrip("/"))
    if kinds or is_remote(uri):
        return kinds or _guess_remote(uri)
    path = local(uri)
    if path.is_dir():
        return _guess_folder(path)
    if path.is_file():
        return _guess_text(path)
    if WILDCARD.search(uri):
        from moe_core.data.sources.files import files_at

        return guess_format(files_at(uri, ("",), "a file")[0].path)
    raise ValueError(
        f"nothing at {uri}: wanted a Parquet, Arrow or Lance file, tars, a YFCC100M metadata file, a folder or glob of "
        "them, a folder of images with a table, of class folders, or with COCO JSON"
    )


def _kinds_of_name(name: str) -> str:
    from moe_core.data.sources import folder, parquet, webdataset

    lower = name.lower()
    if lower.endswith(".lance"):
        return "lance"
    for kind, suffixes in (*parquet.SUFFIXES.items(), ("webdataset", webdataset.SUFFIXES)):
        if lower.endswith(suffixes):
            return kind
    yfcc = "yfcc" in lower.rpartition("/")[2]
    return "folder" if lower.endswith(folder.SUFFIXES) and not yfcc and not WILDCARD.search(name) else ""


def _guess_remote(uri: str) -> str:
    from moe_core.data.sources.files import files_at

    found = {_kinds_of_name(file.name) for file in files_at(uri, ("",), "a file")} - {"", "folder"}
    if len(found) == 1:
        return found.pop()
    raise ValueError(f"{uri} holds {' and '.join(sorted(found)) or 'no format that is known'}: say --format")


def _guess_text(path: Path) -> str:
    from moe_core.data.sources import coco, yfcc

    if path.suffix.lower() == ".json" and coco.is_coco(path):
        return "coco"
    if told := foreign(path):
        raise ValueError(told)
    try:
        yfcc.layout_of(path)
        return "yfcc"
    except ValueError as error:
        raise ValueError(
            f"{path} is of no format that is known (as YFCC100M metadata: {error}): say --format"
        ) from None


def _guess_folder(path: Path) -> str:
    """By one pass over the names. Parquet beside tars is img2dataset's, and says nothing that the tars do not."""
    from moe_core.data.sources import coco

    if (path / "_versions").is_dir():
        return "lance"
    found: dict[str, set[str]] = {}
    yfcc, classes, documents, others = False, False, list[str](), list[str]()
    for folder, folders, names in os.walk(path):
        if any(name.endswith(".lance") for name in folders):
            found.setdefault("lance", set())
        folders[:] = [name for name in folders if name[0] not in "._" and not name.endswith(".lance")]
        for name in names:
            if name.lower().endswith(".json") and name[0] != "." and len(documents) < DOCUMENTS:
                documents.append(os.path.join(folder, name))  # also _annotations.coco.json
            if name[0] in "._":
                continue
            classes |= folder != str(path) and name.lower().endswith(IMAGE_SUFFIXES)
            yfcc |= name.lower().startswith("yfcc100m_dataset")
            if not name.lower().endswith(IMAGE_SUFFIXES) and (kind := _kinds_of_name(name)):
                found.setdefault(kind, set()).add(os.path.join(folder, name.split(".")[0]))
            elif told := foreign(os.path.join(folder, name)):
                others.append(told)
    if yfcc:
        return "yfcc"
    if found.get("webdataset") and found.get("parquet", set()) <= found["webdataset"]:
        found.pop("parquet", None)
    if len(found) > 1 and "folder" in found:
        found.pop("folder")  # notes beside the data
    if len(found) > 1:
        raise ValueError(f"{path} holds {' and '.join(sorted(found))}: say --format, or name one kind with a glob")
    if not found and any(map(coco.is_coco, documents)):
        return "coco"
    if not found and classes:
        return "imagefolder"
    if not found and others:
        raise ValueError(others[0] + (f" ({len(others) - 1} other files are not read either)" if others[1:] else ""))
    return next(iter(found), "folder")
