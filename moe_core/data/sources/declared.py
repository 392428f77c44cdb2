"""Sizes that Parquet and Arrow files declare, read before anything is decoded: a small file may unfold to terabytes.

Arrow's readers allocate what a file declares. Parquet's page header is Thrift's compact protocol
(https://parquet.apache.org/docs/file-format/metadata/), Arrow's messages are FlatBuffers
(https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc).
"""

import struct
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

SMALL = 256 << 20  # what any file may unfold to at once
RATIO = 1000  # of unfolded to stored bytes: about 1 for pictures, dozens for repeated words
BATCH_LIMIT = 1 << 30  # bytes of a batch of Parquet if all its values were of the greatest possible length
VALUES = 100_000_000  # of one column of a row group: ten tags a post in groups of ten million posts
DICTIONARY_PAGE = 2
NOT_COMPRESSED = -1


class Absurd(Exception):
    """A size that no collection of pictures has; the text tells where."""


def too_much(stored: int, unfolded: int) -> bool:
    return unfolded > max(SMALL, RATIO * stored)


def rows_at_once(raw: Any, file: Any, group: int, names: list[str]) -> int:
    """Rows of a row group that can be decoded at once. Raises Absurd for a group that holds absurdly much.

    A dictionary stores a value once for any number of rows, and delta encoding stores a repeated beginning once.
    """
    metadata = file.metadata.row_group(group)
    row = 1
    for number in range(metadata.num_columns):
        column = metadata.column(number)
        if not any(column.path_in_schema == name or column.path_in_schema.startswith(f"{name}.") for name in names):
            continue
        stored, unfolded = column.total_compressed_size, column.total_uncompressed_size
        if too_much(stored, unfolded):
            raise Absurd(f"column {column.path_in_schema} unfolds from {stored:,} bytes to {unfolded:,}")
        if column.num_values > VALUES:
            raise Absurd(
                f"column {column.path_in_schema} has {column.num_values:,} values in {metadata.num_rows:,} rows"
            )
        longest = 0
        if column.physical_type == "FIXED_LEN_BYTE_ARRAY":
            longest = file.schema.column(number).length
        elif column.physical_type == "BYTE_ARRAY" and "DELTA_BYTE_ARRAY" in column.encodings:
            longest = unfolded
        elif column.physical_type == "BYTE_ARRAY" and not file.schema.column(number).max_repetition_level:
            longest = min(unfolded, dictionary_bytes(raw, column))
        row += longest * -(-column.num_values // max(1, metadata.num_rows))
    return max(1, BATCH_LIMIT // row)


def dictionary_bytes(raw: Any, column: Any) -> int:
    """Uncompressed bytes of a column's dictionary; 0 where its first page is none."""
    starts = [column.data_page_offset, *([column.dictionary_page_offset] if column.has_dictionary_page else [])]
    header = raw.read_at(32, min(start for start in starts if start > 0))
    kind, at = _field(header, 0)
    size, _ = _field(header, at)
    return size if kind == DICTIONARY_PAGE else 0


def _field(header: bytes, at: int) -> tuple[int, int]:
    """The int32 of the next field, and where it ends. Raises ArrowInvalid where there is none."""
    value = shift = 0
    for offset in range(at + 1, min(at + 6, len(header))):
        value |= (header[offset] & 0x7F) << shift
        shift += 7
        if header[offset] < 0x80 and header[at] == 0x15:  # the next number, an int32
            return (value >> 1) ^ -(value & 1), offset + 1
    raise pa.ArrowInvalid("a page without a header")


def check_arrow(raw: Any) -> None:
    """Raises Absurd for an Arrow file or stream whose compressed batches declare absurdly much."""
    try:
        for message in _messages(raw):
            stored, unfolded = _unfolded(message)
            if too_much(stored, unfolded):
                raise Absurd(f"a batch unfolds from {stored:,} bytes to {unfolded:,}")
    except (struct.error, IndexError, OverflowError) as error:
        raise pa.ArrowInvalid(f"a message is damaged: {error}") from None


def _messages(raw: Any) -> Iterator[pa.ipc.Message]:
    """The messages of a stream in their order, or those of a file that its footer names."""
    if raw.read_at(6, 0) != b"ARROW1":
        raw.seek(0)
        yield from pa.ipc.MessageReader.open_stream(raw)
        return
    size = raw.size()
    (length,) = struct.unpack("<i", raw.read_at(4, size - 10))
    footer = _Table(raw.read_at(length, size - 10 - length))
    for field in (2, 3):  # dictionaries, record batches
        for place in footer.vector(field, 24):
            raw.seek(*struct.unpack_from("<q", footer.data, place))
            yield pa.ipc.read_message(raw)


def _unfolded(message: pa.ipc.Message) -> tuple[int, int]:
    """Bytes of a batch as stored and when decompressed."""
    if message.type not in ("dictionary", "record batch"):
        return 0, 0
    batch = _Table(message.metadata.to_pybytes()).table(2)
    if message.type == "dictionary":
        batch = batch.table(1)
    stored = message.body.size
    if not batch.field(3):  # no compression
        return stored, 0
    unfolded = 0
    for place in batch.vector(2, 16):
        offset, length = struct.unpack_from("<qq", batch.data, place)
        if length >= 8:
            (declared,) = struct.unpack_from("<q", message.body, offset)
            unfolded += length if declared == NOT_COMPRESSED else declared
    return stored, unfolded


class _Table:
    """A table of FlatBuffers: its fields by number, in the order of the schema."""

    def __init__(self, data: bytes, at: int | None = None) -> None:
        self.data = data
        self.at = struct.unpack_from("<I", data)[0] if at is None else at
        self.fields = self.at - struct.unpack_from("<i", data, self.at)[0]

    def field(self, number: int) -> int:
        """Offset of a field; 0 where it is absent."""
        (size,) = struct.unpack_from("<H", self.data, self.fields)
        if 4 + 2 * number >= size:
            return 0
        (offset,) = struct.unpack_from("<H", self.data, self.fields + 4 + 2 * number)
        return self.at + offset if offset else 0

    def table(self, number: int) -> "_Table":
        at = self.field(number)
        return _Table(self.data, at + struct.unpack_from("<I", self.data, at)[0])

    def vector(self, number: int, width: int) -> Iterator[int]:
        """Offsets of a vector's elements of `width` bytes."""
        at = self.field(number)
        if not at:
            return
        first = at + struct.unpack_from("<I", self.data, at)[0]
        (length,) = struct.unpack_from("<I", self.data, first)
        if first + 4 + length * width > len(self.data):
            raise pa.ArrowInvalid("a message ends behind the file: cut short?")
        yield from range(first + 4, first + 4 + length * width, width)
