"""Values of one column of Arrow, whatever its type: text, names of files, tags, times."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from moe_core.data.sources.raw import TAGS, Unusable
from moe_core.data.sources.text_values import tags_of_text, time_of
from moe_core.errors import BadSource


def is_text(kind: pa.DataType) -> bool:
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind))


def is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_binary_view(kind) or pt.is_fixed_size_binary(kind)
    )


def is_list(kind: pa.DataType) -> bool:
    return bool(
        pt.is_list(kind)
        or pt.is_large_list(kind)
        or pt.is_fixed_size_list(kind)
        or pt.is_list_view(kind)
        or pt.is_large_list_view(kind)
    )


def has_field(kind: pa.DataType, name: str) -> bool:
    return bool(pt.is_struct(kind)) and kind.get_field_index(name) >= 0


def plain(kind: pa.DataType) -> pa.DataType:
    """The type of a column after `decoded`."""
    if pt.is_dictionary(kind):
        return plain(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name == "lance.blob.v2":
            return pa.large_binary()  # as the scanner of moe_core.tables gives it
        return pa.string() if isinstance(kind, pa.UuidType) else plain(kind.storage_type)
    return kind


def decoded(column: pa.Array) -> pa.Array:
    """Without dictionaries and extension types; a UUID is its usual text, JSON is text."""
    if pt.is_dictionary(column.type):
        return decoded(column.dictionary_decode())
    if isinstance(column.type, pa.UuidType):
        numbers = column.storage.to_pylist()
        return pa.array([None if number is None else str(UUID(bytes=number)) for number in numbers], pa.string())
    return decoded(column.storage) if isinstance(column.type, pa.BaseExtensionType) else column


def texts_of(column: pa.Array, where: str, reasons: list[str | None]) -> pa.Array:
    column = decoded(column)
    if pt.is_floating(column.type):  # whole numbers with gaps, as pandas writes them
        try:
            column = pc.if_else(pc.is_nan(column), None, column).cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise BadSource(f"{where} is {column.type}, wanted text or whole numbers: {error}") from None
    column = column.cast(pa.string())
    try:
        column.validate(full=True)
        return column
    except pa.ArrowInvalid:
        out = []
        for row, data in enumerate(column.cast(pa.binary()).to_pylist()):
            try:
                out.append(None if data is None else data.decode())
            except UnicodeDecodeError:
                out.append(data.decode("utf-8", "backslashreplace"))
                reasons[row] = "text that is not UTF-8"
        return pa.array(out, pa.string())


def names_of(column: pa.Array) -> list[str | None]:
    """File names; one that is not UTF-8 is escaped, so that no file has it."""
    names = decoded(column).cast(pa.string()).cast(pa.binary()).to_pylist()
    return [None if name is None else name.decode("utf-8", "backslashreplace") for name in names]


def tags_of(column: pa.Array, where: str, reasons: list[str | None]) -> pa.Array:
    column = decoded(column)
    kind = column.type
    if not is_list(kind):
        split = tags_of_text if is_text(kind) else lambda text: [text]
        return _each(texts_of(column, where, reasons).to_pylist(), split, reasons)
    if pt.is_list(kind) or pt.is_large_list(kind):
        try:
            plain = column.cast(TAGS)
            plain.validate(full=True)
            return plain
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            pass
    return _each(column, _texts_in, reasons)


def _texts_in(value: pa.Scalar) -> list[str | None] | None:
    try:
        tags = value.as_py()
    except UnicodeDecodeError:
        raise Unusable("bad_row", "tags that are not UTF-8") from None
    return None if tags is None else [None if tag is None else str(tag) for tag in tags]


def class_tags(column: pa.Array, classes: Sequence[str], reasons: list[str | None]) -> pa.Array:
    """Tags by the numbers of their classes; -1 is none, as Hugging Face writes it."""

    def is_known(number: Any) -> bool:
        return isinstance(number, str) or (isinstance(number, int) and 0 <= number < len(classes))

    def named(value: Any) -> list[str]:
        values = value if isinstance(value, list) else [value]
        numbers = [number for number in values if number is not None and number != -1]
        if not all(map(is_known, numbers)):
            raise Unusable("bad_row", f"class {numbers}, of {len(classes)} named ones")
        return [number if isinstance(number, str) else classes[number] for number in numbers]

    return _each(decoded(column).to_pylist(), named, reasons)


def _each(values: Iterable[Any], tags: Callable[[Any], Any], reasons: list[str | None]) -> pa.Array:
    """The tags of each value; none of what is null, or for which `tags` raises Unusable."""
    lists = []
    for row, value in enumerate(values):
        try:
            lists.append(None if value is None else tags(value))
        except Unusable as why:
            lists.append(None)
            reasons[row] = why.detail
    return pa.array(lists, TAGS)


def times_of(column: pa.Array) -> pa.Array:
    """Naive UTC in microseconds; null for what is no time."""
    column = decoded(column)
    if pt.is_timestamp(column.type):
        column = column.view(pa.timestamp(column.type.unit))  # UTC, whatever time zone it is shown in
        if column.type.unit == "ns":
            column = column.cast(pa.timestamp("us"), safe=False)  # Python has no nanoseconds: they are cut off

    def parse(value: pa.Scalar) -> datetime | None:
        try:
            return time_of(value.as_py())
        except (ValueError, OverflowError):
            return None

    return pa.array([parse(value) for value in column], pa.timestamp("us"))
