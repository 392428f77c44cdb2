"""Cuts an image file down to what Pillow needs: pixels, transparency and orientation.

Pillow reads every text, profile and comment, one by one, and refuses pictures over those that it finds too large or too
short. Files hold up to millions of them.
"""

import re
import struct
import zlib
from collections.abc import Iterator

PARTS = 100_000  # chunks, segments or blocks of a file that are walked through; photographs have some dozens
TEXT = 1 << 20  # bytes of a chunk that may have the orientation
PNG, GIF, JPEG = b"\x89PNG\r\n\x1a\n", (b"GIF87a", b"GIF89a"), b"\xff\xd8"
ORIENTED = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
LEAST = {0: 2, 2: 6}  # bytes of tRNS for gray and for color
NOT_FF = re.compile(rb"[^\xff]")
GIF_BLOCK = re.compile(rb"[\x21\x2c\x3b]")


class TooManyParts(Exception):
    """A header of more parts than any photograph's."""


def slim(data: bytes) -> bytes:
    """The same picture without what is not needed. A damaged file is kept whole from where the damage begins."""
    walk = _png if data.startswith(PNG) else _gif if data.startswith(GIF) else _jpeg if data.startswith(JPEG) else None
    if walk is None:
        return data
    kept, end = list[tuple[int, int]](), 0
    for number, (start, stop) in enumerate(walk(data)):
        if number > PARTS:
            raise TooManyParts(f"more than {PARTS:,} parts before the end of its header")
        if start == stop:
            continue
        if kept and start == end:
            kept[-1] = kept[-1][0], stop
        else:
            kept.append((start, stop))
        end = stop
    return data if kept == [(0, len(data))] else b"".join(data[start:stop] for start, stop in kept)


def _png(data: bytes) -> Iterator[tuple[int, int]]:
    """Offsets of chunks to keep, and empty ranges for the others. Chunks with a capital are critical."""
    yield 0, 8
    at, oriented = 8, False
    color = data[25] if len(data) > 25 else 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, stop = data[at + 4 : at + 8], at + 12 + length
        if stop > len(data):
            break
        keep = not data[at + 4] & 0x20 or (kind == b"tRNS" and length >= LEAST.get(color, 0))
        if not keep and not oriented:
            keep = oriented = length <= TEXT + 1000 and _has_orientation(kind, data[at + 8 : at + 8 + length])
        yield (at, stop) if keep else (at, at)
        at = stop
        if kind == b"IEND":
            return
    yield at, len(data)


def _has_orientation(kind: bytes, body: bytes) -> bool:
    """Whether Pillow finds the orientation in a chunk, within bounds."""
    if kind == b"eXIf":
        return True
    if kind not in (b"tEXt", b"zTXt", b"iTXt") or not body.startswith(ORIENTED):
        return False
    rest = body.partition(b"\0")[2]
    if kind == b"iTXt" and rest[:1] == b"\1":
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    elif kind == b"zTXt":
        rest = rest[1:]
    else:
        return True
    try:
        unpacked = zlib.decompressobj()
        return len(unpacked.decompress(rest, TEXT)) < TEXT and unpacked.eof
    except zlib.error:
        return False


def _jpeg(data: bytes) -> Iterator[tuple[int, int]]:
    """Offsets of segments to keep: tables and frames, Adobe's mark of the colors, the first EXIF and XMP."""
    yield 0, 2
    at, seen = 2, set[bytes]()
    while True:
        start_of_marker = data.find(b"\xff", at)
        code = NOT_FF.search(data, start_of_marker) if start_of_marker >= 0 else None
        if code is None:
            return
        start, marker = code.start() - 1, data[code.start()]
        at = code.end()
        if marker == 0xDA:  # the pixels
            yield start, len(data)
            return
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD9:
            yield (start, at) if marker == 0xD9 else (start, start)
            continue
        if at + 2 > len(data):
            yield start, len(data)
            return
        stop = at + max(2, int.from_bytes(data[at : at + 2], "big"))
        if stop > len(data):
            yield start, len(data)
            return
        named = data[at + 2 : at + 8]
        keep = not (0xE0 <= marker <= 0xEF or marker == 0xFE)
        if marker in (0xE0, 0xE1, 0xEE) and named not in seen and len(seen) < 10:
            seen.add(named)
            keep = named.startswith((b"JFIF\0", b"Exif\0\0", b"http:/", b"Adobe"))
        yield (start, stop) if keep else (start, start)
        at = stop


def _gif(data: bytes) -> Iterator[tuple[int, int]]:
    """Offsets of the blocks before the first picture: how to draw it is kept, comments are not."""
    at = 13 + (3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 0x80 else 0)
    yield 0, min(at, len(data))
    while (block := GIF_BLOCK.search(data, at)) is not None:
        at = start = block.start()
        if data[start] != 0x21:
            yield start, len(data)
            return
        at += 2
        while at < len(data) and data[at]:
            at += 1 + data[at]
            yield start, start
        at += 1
        yield (start, min(at, len(data))) if data[start + 1 : start + 2] == b"\xf9" else (start, start)
