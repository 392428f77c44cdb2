"""YFCC100M's metadata, in both of its layouts, joined to image files or tars by photo id or by hash. One shard a file.

Fields are tab-separated and URL-encoded with '+' for a space; tags are split at commas BEFORE they are decoded, since a
tag may have a comma of its own.
"""

import bz2
import gzip
import os
import re
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote_plus

import pyarrow as pa

from moe_core.data.image_files import IMAGE_SUFFIXES
from moe_core.data.sources.files import damaged, files_at, key_of, listing, local
from moe_core.data.sources.images import ImageFolder
from moe_core.data.sources.raw import Row, Unusable, in_batches, reasons_noted
from moe_core.data.sources.reader import Contents, Reader
from moe_core.data.sources.registry import FORMATS
from moe_core.data.sources.scan import Scan, Shard
from moe_core.data.sources.tars import RATIO, UNFOLDED, TarImages
from moe_core.data.sources.text_values import lines_of, time_of, too_long
from moe_core.errors import BadSource
from moe_core.settings import Source
from moe_core.store.hashing import content_hash

FORMAT = FORMATS["yfcc"]
COMPANION = re.compile(r"yfcc100m_(?!dataset)[^/]*$", re.IGNORECASE)  # hashes, autotags, places, EXIF: no posts
BROKEN = (OSError, EOFError, zlib.error)
COUNTED = 20_000  # lines from which the number of all is estimated


@dataclass(frozen=True)
class Layout:
    """Indices of the fields; `hash` is -1 where there is none."""

    fields: int
    id: int
    hash: int
    user: int
    taken: int
    tags: int
    machine_tags: int
    url: int  # of the image
    marker: int


LAYOUTS = {23: Layout(23, 0, -1, 1, 3, 8, 9, 14, 22), 25: Layout(25, 1, 2, 3, 5, 10, 11, 16, 24)}


def find(source: Source, scan: Scan) -> list[Shard]:
    images = _images(source)
    if isinstance(images, TarImages):
        images_hash = content_hash([[tar.name, tar.size, tar.changed] for tar in images.tars])
    else:
        images_hash = listing(local(source.images), IMAGE_SUFFIXES, hidden=True)
    files = files_at(str(local(source.uri)), FORMAT.suffixes, FORMAT.what)
    if not local(source.uri).is_file():
        files = [file for file in files if not COMPANION.search(file.name)]
    if local(source.uri).is_dir():
        files = [file for file in files if "yfcc" in file.name.lower()]
    if not files:
        raise BadSource(f"no YFCC100M metadata file at {source.uri}: wanted {FORMAT.what}")
    files = scan.readable(files, lambda file: _check(Path(file.path)))
    return [
        Shard(key_of(file.name, FORMAT.suffixes), file.path, content_hash([scan.hashes.of(file), images_hash]))
        for file in files
    ]


def _check(path: Path) -> None:
    """Raises BadSource for a file of another layout, and for a compressed one that is cut short."""
    layout_of(path)
    with open(path, "rb") as raw:
        compressed = _plain(path, raw) is not raw
    if compressed:
        deque(_lines(path), maxlen=0)


def _images(source: Source, cache: Path | None = None) -> ImageFolder | TarImages:
    what = "the folder of the images, or a glob of tars of them (source.images, or `hardmoe init --images`)"
    if not source.images:
        raise BadSource(f"source.images is empty: YFCC100M's metadata hold no pictures, wanted {what}")
    path = local(source.images)
    if path.is_dir() and not any(p.suffix == ".tar" for p in path.iterdir()):
        return ImageFolder(path)
    if not path.is_dir() and not path.exists() and not re.search(r"[*?\[]", source.images):
        raise BadSource(f"no folder at {source.images}: wanted {what}")
    return TarImages(files_at(str(path), (".tar",), what), cache)


def read(source: Source, shard: Shard, cache: Path | None) -> Iterator[pa.RecordBatch]:
    path = Path(shard.path)
    layout = layout_of(path)
    images = _images(source, cache)
    rows = (_post(line, number, layout, images) for number, line in enumerate(_lines(path), 1))
    return images.watching(in_batches(rows))


def count(source: Source, shards: Sequence[Shard]) -> tuple[int, bool]:
    """Lines of the first file up to COUNTED; the rest is estimated by size."""
    path = Path(shards[0].path)
    lines = 0
    with open(path, "rb") as raw:
        for _ in lines_of(_plain(path, raw)):
            lines += 1
            if lines == COUNTED:
                break
        read_bytes = raw.tell()
    exact = lines < COUNTED and len(shards) == 1
    total = sum(Path(shard.path).stat().st_size for shard in shards)
    return (lines if exact else round(lines * total / max(1, read_bytes))), exact


def layout_of(path: Path) -> Layout:
    """By the first line. Raises BadSource where it has neither 23 nor 25 fields."""
    first = next(_lines(path), None)
    if first is None:
        raise BadSource(f"{path} is empty, wanted YFCC100M metadata: copy it again, or remove it")
    if isinstance(first, Unusable):
        raise BadSource(f"{path}: {first.detail}")
    fields = first.count(b"\t") + 1
    if fields not in LAYOUTS:
        raise BadSource(f"{path}: its first line has {fields} tab-separated fields, wanted YFCC100M's 23 or 25")
    return LAYOUTS[fields]


def _lines(path: Path) -> Iterator[bytes | Unusable]:
    """Lines without their ends; empty lines are left out."""
    number = 0
    try:
        with open(path, "rb") as raw:
            limit, plain = max(UNFOLDED, RATIO * os.fstat(raw.fileno()).st_size), _plain(path, raw)
            for line, whole in lines_of(plain):
                number += 1
                if plain.tell() > limit:
                    raise EOFError(f"it unfolds to more than {RATIO} times its size")
                if line.strip(b"\r\n"):
                    yield line.rstrip(b"\r\n") if whole else too_long(f"line {number}")
    except BROKEN as error:
        raise damaged(path, error, f"damaged or cut short after line {number}") from None


def _plain(path: Path, raw: BinaryIO) -> Any:
    magic = raw.read(3)
    raw.seek(0)
    if magic == b"BZh":
        return bz2.BZ2File(raw)
    return gzip.GzipFile(fileobj=raw) if magic[:2] == b"\x1f\x8b" else raw


def _post(line: bytes | Unusable, number: int, layout: Layout, images: ImageFolder | TarImages) -> Row:
    row: Row = {"id": None}
    with reasons_noted(row):
        if isinstance(line, Unusable):
            raise line
        try:
            fields = line.decode().split("\t")
        except UnicodeDecodeError:
            raise Unusable("bad_row", f"row {number}: text that is not UTF-8") from None
        if len(fields) != layout.fields:
            row["id"] = fields[0] or None
            raise Unusable("bad_row", f"row {number}: {len(fields)} fields, wanted {layout.fields}")
        photo = fields[layout.id].strip()
        # what Flickr calls machine tags is kept as written; the canonical form leaves ns:pred=value out
        tags = [*fields[layout.tags].split(","), *fields[layout.machine_tags].split(",")]
        row |= {
            "id": photo or None,
            "user": unquote_plus(fields[layout.user]) or None,
            "tags": [unquote_plus(tag) for tag in tags if tag],
            "taken_at": time_of(unquote_plus(fields[layout.taken])),
        }
        if fields[layout.marker].strip() == "1":
            raise Unusable("video", "marker 1")
        if fields[layout.marker].strip() != "0":
            raise Unusable("bad_row", f"row {number}: marker {fields[layout.marker]!r}, wanted 0 (photo) or 1 (video)")
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", photo):
            raise Unusable("bad_row", f"row {number}: {photo!r} is not a photo id")
        hashed = fields[layout.hash].strip() if layout.hash >= 0 else ""
        row["image"] = _image(images, photo, hashed if re.fullmatch(r"[0-9a-fA-F]{8,64}", hashed) else "")
        row["original"] = unquote_plus(fields[layout.url]).strip() or images.found
    return row


def _image(images: ImageFolder | TarImages, photo: str, hashed: str) -> bytes:
    if isinstance(images, TarImages):
        return images.read(photo, *([hashed] if hashed else ()))
    names = [f"{photo}{suffix}" for suffix in IMAGE_SUFFIXES]
    if hashed:
        path = f"{hashed[0:3]}/{hashed[3:6]}/{hashed}.jpg"
        names = [f"data/images/{path}", f"images/{path}", path, f"{hashed}.jpg", *names]
    return images.read(*names)


def recognizes(contents: Contents) -> bool:
    """By the fields of a file's first line. Raises BadSource for other ones."""
    return contents.path.is_file() and layout_of(contents.path) is not None


READERS = {"yfcc": Reader(find, read, count, recognizes=recognizes, splits_by_name=False)}
