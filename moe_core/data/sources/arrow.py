"""Converts columns of Arrow, whatever their types, to the schema RAW: for Parquet, Arrow files and Lance."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from moe_core.data.captions import hashtags_in
from moe_core.data.sources.arrow_values import (
    class_tags,
    decoded,
    has_field,
    is_bytes,
    is_list,
    is_text,
    names_of,
    plain,
    tags_of,
    texts_of,
    times_of,
)
from moe_core.data.sources.columns import BY_ROW, NAMED, choose
from moe_core.data.sources.declared import RATIO, Absurd
from moe_core.data.sources.files import damaged, is_remote, local
from moe_core.data.sources.images import ImageFolder
from moe_core.data.sources.joining import Joined, RowText
from moe_core.data.sources.originals import root_of, shard_name
from moe_core.data.sources.raw import BATCH, BATCH_BYTES, RAW, TAGS, Row, Unusable, in_batches, reasons_noted
from moe_core.data.sources.scan import Shard
from moe_core.errors import BadSource
from moe_core.settings import Source
from moe_core.text import shown

BROKEN = (pa.ArrowException, OSError, EOFError, UnicodeDecodeError)
ROW_BYTES = 1000  # of a row in Python, whatever it holds
TEXT_BYTES = 4 * BATCH_BYTES  # of a row, as _sizes counts them: more than a million tags


def names_images(schema: pa.Schema, source: Source, where: str) -> bool:
    """Whether the image column may name files beside the table."""
    return _is_name(plain(schema.field(columns_of(schema, source, where)["image"]).type))


def _is_name(image: pa.DataType) -> bool:
    return is_text(image) or has_field(image, "path")


def class_names(schema: pa.Schema, column: str | None) -> list[str] | None:
    """Names for the numbers of a column, from Hugging Face's metadata (ClassLabel, or a list of them); None without."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        while not (isinstance(feature, dict) and feature.get("_type") == "ClassLabel"):
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        return [str(name) for name in feature["names"]]
    except (KeyError, IndexError, TypeError, ValueError, RecursionError):
        return None


def columns_of(schema: pa.Schema, source: Source, where: str) -> dict[str, str]:
    """Column of the file for each of ours. Raises BadSource for one that is missing or of a wrong type."""
    columns = choose(schema.names, source, where)
    for name in columns.values():
        if schema.names.count(name) > 1:
            raise BadSource(f"{where} has two columns {name}: rename one")
    image = plain(schema.field(columns["image"]).type)
    if not (_is_name(image) or is_bytes(image) or has_field(image, "bytes")):
        raise BadSource(
            f"{where}: column {columns['image']} is {image}, wanted binary (an encoded file), a struct with `bytes` "
            "or `path`, or text (a file name)"
        )
    if "id" not in columns and not _is_name(image):
        raise BadSource(
            f"{where} has no column id: it has {', '.join(map(shown, schema.names[:NAMED]))}; "
            f'name it in source.id_column, or set source.id_column = "{BY_ROW}" to number the rows'
        )
    for ours in ("id", "user", "split", "caption"):
        if ours in columns and columns[ours] != BY_ROW:
            kind = plain(schema.field(columns[ours]).type)
            number = pt.is_integer(kind) or pt.is_floating(kind) or pt.is_boolean(kind)
            if not (is_text(kind) or pt.is_null(kind) or (number and ours != "caption")):
                raise BadSource(f"{where}: column {columns[ours]} is {kind}, wanted text or whole numbers")
    if "original" in columns and not is_text(plain(schema.field(columns["original"]).type)):
        if source.original_column:
            raise BadSource(f"{where}: column {columns['original']} is no text (source.original_column)")
        del columns["original"]
    if "tags" in columns:
        kind = plain(schema.field(columns["tags"]).type)
        inner = plain(kind.value_type) if is_list(kind) else kind
        if not (is_text(inner) or pt.is_integer(inner) or pt.is_null(inner)):
            raise BadSource(f"{where}: column {columns['tags']} is {kind}, wanted a list of strings, or text")
    return columns


def to_raw(
    read: Callable[[list[str]], Iterable[pa.RecordBatch]],
    source: Source,
    shard: Shard,
    schema: pa.Schema,
    limit: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """Small batches of RAW. Files that the image column names are looked up beside the table.

    `read` gives batches with some columns of `schema`. It is called again where images are named by text: rows that
    agree on id and picture are one post, with the tags of all. Raises BadSource for more than `limit` bytes in all of
    the rows.
    """
    where = shard.path
    folder = None if is_remote(where) else ImageFolder(local(where).parent, root=root_of(source))
    file = shard_name(source, where)
    columns = columns_of(schema, source, where)
    names = list(dict.fromkeys(name for name in columns.values() if name != BY_ROW))
    classes = class_names(schema, columns.get("tags"))
    named = is_text(plain(schema.field(columns["image"]).type)) and columns.get("id") != BY_ROW
    read_rows = 0  # rows of the file behind the last batch

    def pieces() -> Iterator[tuple[int, pa.RecordBatch]]:
        return _pieces(read(names), columns["image"], where, limit)

    def texts() -> Iterator[tuple[int, pa.RecordBatch, dict[str, pa.Array]]]:
        for row, piece in pieces():
            yield row, piece, _text_columns(piece, columns, shard, row, classes) | _origin(piece, columns, file, row)

    def keys() -> Iterator[str | None]:
        for _, piece in pieces() if named else ():
            image = piece[columns["image"]]
            own = piece[columns["id"]] if "id" in columns else image
            pairs = zip(names_of(own), names_of(image), strict=True)
            yield from (f"{own_id}\0{name}" if own_id and name else None for own_id, name in pairs)

    def rows() -> Iterator[RowText]:
        posts_of_rows = keys()
        for _, _, text in texts():
            for tags, reason in zip(text["tags"].to_pylist(), text["reason"].to_pylist(), strict=True):
                post = next(posts_of_rows)
                yield (None if reason else post), tags or [], None

    def posts() -> Iterator[pa.RecordBatch]:
        nonlocal read_rows
        joined = Joined(keys())
        with joined.opened(rows()):
            row_texts = rows() if joined else iter(())
            for row, piece, text in texts():
                image = piece[columns["image"]]
                if joined:
                    together = [joined.post_of(row + n, next(row_texts)) for n in range(len(piece))]
                    kept = pa.array([n for n, post in enumerate(together) if post is not None], pa.int64())
                    text = {name: column.take(kept) for name, column in text.items()}
                    text["tags"] = pa.array([post[0] for post in together if post is not None], TAGS)
                    image = image.take(kept)
                yield from _with_images(text, image, where, folder, "id" not in columns)
                read_rows = row + len(piece)

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            yield from posts()
        except Absurd as error:
            raise BadSource(f"{where} is refused after row {read_rows}: {error}") from None
        except MemoryError:
            raise
        except BROKEN as error:  # such as an index beyond the end of a dictionary
            raise damaged(where, error, f"damaged after row {read_rows}") from None

    return folder.watching(batches()) if folder else batches()


def _pieces(
    batches: Iterable[pa.RecordBatch], image: str, where: str, limit: int | None
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """First row of each slice, and slices of at most BATCH rows, and of BATCH_BYTES once nothing is shared."""
    row = total = 0
    for batch in batches:
        for start in range(0, len(batch), BATCH):
            piece = batch.slice(start, BATCH)
            texts = [_sizes(piece[name]) for name in piece.schema.names if name != image]
            text_N = sum(texts, np.full(len(piece), ROW_BYTES))
            size_N = _sizes(piece[image]) + text_N
            if text_N.max() > TEXT_BYTES:
                raise BadSource(f"{where}: row {row + int(text_N.argmax())} has more text than any post: take it out")
            for first, last in _cuts(size_N):
                total += int(size_N[first:last].sum())
                if limit is not None and total > limit:
                    raise BadSource(
                        f"{where} is refused: it unfolds to more than {RATIO:,} times its size by row {row}"
                    )
                yield row, piece.slice(first, last - first)
                row += last - first


def _sizes(column: pa.Array) -> np.ndarray:
    """(N,) int64: bytes of each row once nothing is shared; a word's are counted eight times, as it becomes a str."""
    kind = column.type
    if pt.is_dictionary(kind):
        sizes = pa.array(_sizes(column.dictionary)).take(column.indices)
    elif pt.is_binary_view(kind) or pt.is_string_view(kind):
        views = np.frombuffer(column.buffers()[1] or b"", np.int32)[4 * column.offset :: 4][: len(column)]
        sizes = pc.if_else(column.is_valid(), pa.array(views, pa.int32()), 0)
    elif is_text(kind) or is_bytes(kind):
        sizes = pc.binary_length(column)
    elif pt.is_struct(kind):
        return sum(
            (_sizes(pc.struct_field(column, n)) for n in range(kind.num_fields)), np.zeros(len(column), np.int64)
        )
    elif is_list(kind):
        return _list_sizes(column)
    elif isinstance(kind, pa.BaseExtensionType):
        return _sizes(column.storage)
    else:
        return np.full(len(column), 8)
    size_N = pc.fill_null(sizes, 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return 8 * size_N if is_text(kind) else size_N


def _list_sizes(column: pa.Array) -> np.ndarray:
    length_N = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    if pt.is_null(column.type.value_type):  # any number of them is stored in no bytes
        return 16 * length_N
    if pt.is_fixed_size_list(column.type):
        first_N = (np.arange(len(column)) + column.offset) * column.type.list_size
    else:
        first_N = column.offsets.to_numpy(zero_copy_only=False)[: len(column)].astype(np.int64)
    first_N = np.where(length_N > 0, first_N, 0)
    low = int(first_N[length_N > 0].min(initial=2**62))
    high = int((first_N + length_N).max(initial=0))
    if low >= high:
        return np.zeros(len(column), np.int64)
    end_V1 = np.concatenate([[0], np.cumsum(_sizes(column.values[low:high]) + 8)])
    return np.where(length_N > 0, end_V1[first_N + length_N - low] - end_V1[np.maximum(first_N - low, 0)], 0)


def _text_columns(
    batch: pa.RecordBatch, columns: dict[str, str], shard: Shard, row: int, classes: Sequence[str] | None
) -> dict[str, pa.Array]:
    """All columns of RAW but the image; `reason` where text is not UTF-8."""
    reasons: list[str | None] = [None] * len(batch)
    out: dict[str, pa.Array] = {}
    for ours in ("id", "user", "split"):
        if columns.get(ours) == BY_ROW:
            out[ours] = pa.array([f"{shard.key}/{row + n}" for n in range(len(batch))])
        elif ours in columns:
            out[ours] = texts_of(batch[columns[ours]], f"{shard.path}: column {columns[ours]}", reasons)
        else:
            out[ours] = pa.nulls(len(batch), pa.string())
    tags = pa.nulls(len(batch), TAGS)
    if "tags" in columns and classes is not None:
        tags = class_tags(batch[columns["tags"]], classes, reasons)
    elif "tags" in columns:
        tags = tags_of(batch[columns["tags"]], f"{shard.path}: column {columns['tags']}", reasons)
    if "caption" in columns:
        texts = texts_of(batch[columns["caption"]], f"{shard.path}: column {columns['caption']}", reasons)
        hashtags = hashtags_in(texts.to_pylist())
        written = tags.to_pylist()
        tags = pa.array([[*(a or ()), *b] for a, b in zip(written, hashtags, strict=True)], TAGS)
    out["tags"] = tags
    taken = batch[columns["taken_at"]] if "taken_at" in columns else pa.nulls(len(batch), pa.timestamp("us"))
    out["taken_at"] = times_of(taken)
    out["reason"] = pa.array(["bad_row" if why else None for why in reasons], pa.string())
    out["detail"] = pa.array(reasons, pa.string())
    return out


def _origin(batch: pa.RecordBatch, columns: dict[str, str], file: str, row: int) -> dict[str, pa.Array]:
    """`original`: the URL of each row, null without one. `place`: where the row lies."""
    place = pa.array([f"{file}#{row + n}" for n in range(len(batch))])
    if "original" not in columns:
        return {"original": pa.nulls(len(batch), pa.string()), "place": place}
    unreadable: list[str | None] = [None] * len(batch)  # text that is not UTF-8 costs no post here
    return {"original": texts_of(batch[columns["original"]], "", unreadable), "place": place}


def _with_images(
    text: dict[str, pa.Array], image: pa.Array, where: str, folder: ImageFolder | None, name_is_id: bool
) -> Iterator[pa.RecordBatch]:
    """Batches of a piece: one, or, where files are read, of as many rows as have BATCH_BYTES, and one more row."""
    image = decoded(image)
    paths = None
    if pt.is_struct(image.type):
        if has_field(image.type, "path"):
            paths = names_of(pc.struct_field(image, "path"))
        held = has_field(image.type, "bytes")
        image = decoded(pc.struct_field(image, "bytes")) if held else pa.nulls(len(image), pa.binary())
    elif is_text(image.type):
        paths = names_of(image)
        image = pa.nulls(len(image), pa.binary())
    image = image.cast(pa.binary())
    if name_is_id and paths is not None:
        text = text | {"id": pa.array(paths, pa.string())}
    # a URL of the row, else the image's file, else the place of the row
    known_N = text["original"].is_valid().to_pylist()
    columns = text | {"image": image, "original": pc.coalesce(text["original"], text["place"])}
    batch = pa.RecordBatch.from_arrays([columns[field.name] for field in RAW], schema=RAW)
    if paths is not None and image.null_count and any(paths):
        yield from in_batches(_with_files(batch, paths, known_N, where, folder))
    elif len(batch):
        yield batch


def _with_files(
    batch: pa.RecordBatch, paths: list[str | None], known_N: list[bool], where: str, folder: ImageFolder | None
) -> Iterator[Row]:
    for row, path, known in zip(batch.to_pylist(), paths, known_N, strict=True):
        if row["image"] is None and not row["reason"]:
            with reasons_noted(row):
                if folder is None:
                    raise Unusable("no_image_file", f"{where} is not on this machine: files it names are not read")
                row["image"] = folder.read(path or "", absolute=True)
                row["original"] = row["original"] if known else folder.found
        yield row


def _cuts(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    start, total = 0, 0
    for row, size in enumerate(sizes):
        total += int(size)
        if total >= BATCH_BYTES:
            yield start, row + 1
            start, total = row + 1, 0
    if start < len(sizes):
        yield start, len(sizes)
