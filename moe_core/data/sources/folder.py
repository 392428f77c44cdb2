"""A folder of images with a CSV, TSV or JSON-lines table (or several) that names them. One shard a table."""

import csv
import json
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from moe_core.data.image_files import IMAGE_SUFFIXES
from moe_core.data.sources.byproducts import foreign
from moe_core.data.sources.columns import BY_ROW, choose
from moe_core.data.sources.files import file_of, files_at, key_of, listing, local
from moe_core.data.sources.images import ImageFolder
from moe_core.data.sources.joining import Joined, RowText
from moe_core.data.sources.raw import BATCH_BYTES, Row, Unusable, in_batches, reasons_noted
from moe_core.data.sources.reader import Reader
from moe_core.data.sources.registry import FORMATS
from moe_core.data.sources.scan import Scan, Shard
from moe_core.data.sources.text_values import MAX_LINE, lines_of, tags_of, text_of, time_of, too_long
from moe_core.errors import BadSource
from moe_core.settings import Source
from moe_core.store.hashing import content_hash

SUFFIXES = FORMATS["folder"].suffixes
WHAT = "a CSV, TSV or JSON-lines file of image names and tags (source.table)"
HEAD, MAX_KEYS = 100, 10_000  # of JSON lines: rows whose keys are read first, and keys that are known
MAX_LINES = 10_000  # of one row of a CSV: a quote that spans more was never meant as one


def find(source: Source, scan: Scan) -> list[Shard]:
    folder, tables = _tables(source)
    images = listing(folder, IMAGE_SUFFIXES, hidden=True)
    # a changed picture changes every table of its folder: which table names it is not known without reading them
    return [
        Shard(key_of(table.name, (Path(table.name).suffix,)), table.path, content_hash([scan.hashes.of(table), images]))
        for table in scan.readable(tables, lambda table: next(_rows(Path(table.path), source), None))
    ]


def _tables(source: Source) -> tuple[Path, list[Any]]:
    """The folder of images, and its tables."""
    folder = local(source.uri)
    if folder.is_file():
        if refusal := foreign(folder):
            raise BadSource(refusal)
        return folder.parent, [file_of(folder, folder.parent)]
    if not folder.is_dir():
        raise BadSource(f"no folder at {source.uri!r}: wanted a folder of images (source.uri)")
    if source.table:
        return folder, files_at(str(folder / source.table), SUFFIXES, WHAT)
    tables = [p for p in sorted(folder.iterdir()) if p.name.lower().endswith(SUFFIXES) and p.name[0] not in "._"]
    if not tables:  # as Hugging Face has it: train/metadata.csv, test/metadata.csv
        tables = [p for p in sorted(folder.glob("*/metadata.*")) if p.name.lower().endswith(SUFFIXES)]
        if tables:
            return folder, [file_of(table, folder) for table in tables]
    if len(tables) != 1:
        names = ", ".join(p.name for p in tables) or "none"
        raise BadSource(
            f"{folder} has {len(tables)} tables ({names}), wanted one of {', '.join(SUFFIXES)}: set source.table, "
            "which may be a glob"
        )
    return folder, [file_of(tables[0], folder)]


def read(source: Source, shard: Shard, cache: Path | None) -> Iterator[pa.RecordBatch]:
    """Names are looked up in the folder, and beside the table where that lies deeper."""
    table = Path(shard.path)
    folder, _ = _tables(source)
    below = table.parent.resolve().is_relative_to(folder.resolve())
    images = ImageFolder(folder, table.parent) if below else ImageFolder(folder)
    within = table.parent.relative_to(folder).as_posix() + "/" if below and table.parent != folder else ""
    return images.watching(in_batches(_posts(source, shard, images, within)))


def columns(source: Source, shard: Shard) -> tuple[dict[str, str], list[str]] | None:
    """Columns; for JSON lines those of the first rows."""
    used, names = dict[str, str](), dict[str, None]()
    for _, values, chosen in islice(_rows(Path(shard.path), source), HEAD):
        used = chosen
        names |= dict.fromkeys(values) if isinstance(values, dict) else {}
    return (used, list(names)) if used else None


def count(source: Source, shards: Sequence[Shard]) -> tuple[int, bool]:
    """Lines, without the header's: rows of a CSV with line ends in its fields are fewer."""
    rows = 0
    for shard in shards:
        with open(shard.path, "rb") as table:
            rows += sum(1 for _ in lines_of(table)) - (not shard.path.lower().endswith((".jsonl", ".ndjson")))
    return rows, True


def _posts(source: Source, shard: Shard, images: ImageFolder, within: str) -> Iterator[Row]:
    """Rows that agree on id and picture are one post with the tags of all: some tables have a row a tag.

    `within` is the table's folder in the source's, so that 0.jpg of train/ and of test/ have ids of their own.
    """

    def texts() -> Iterator[tuple[Row, RowText]]:
        for number, (where, values, columns) in enumerate(_rows(Path(shard.path), source)):
            if isinstance(values, Unusable):
                yield {"id": where, "reason": values.reason, "detail": values.detail}, (None, [], None)
                continue
            row = _text(values, columns, f"{shard.key}/{number}", within)
            post = None if row.get("reason") else _key(values, columns)
            yield row, (post, row.get("tags") or [], row.get("caption"))

    joined = Joined(row_keys(source, shard))
    with joined.opened(text for _, text in texts()) as joined:
        for number, (row, text) in enumerate(texts()):
            together = joined.post_of(number, text)
            if together is None:
                continue
            name = row.pop("name", "")
            if not row.get("reason"):
                row["tags"], row["caption"] = together
                with reasons_noted(row):
                    row["image"] = images.read(name)
                    row["original"] = row.get("original") or images.found
            yield row


def row_keys(source: Source, shard: Shard) -> Iterator[str | None]:
    """For each row what rows of one post agree on; None for a row that is joined with no other."""
    for _, values, columns in _rows(Path(shard.path), source):
        yield None if isinstance(values, Unusable) else _key(values, columns)


def _key(values: dict[str, Any], columns: dict[str, str]) -> str | None:
    """What rows of one post agree on: id and picture. None for a row that is a post of its own."""
    if columns.get("id") == BY_ROW:
        return None
    try:
        name = text_of(values.get(columns["image"]), columns["image"])
        own = text_of(values.get(columns["id"]), columns["id"]) if "id" in columns else name
    except Unusable:
        return None
    return f"{own}\0{name}" if own and name else None


def _text(values: dict[str, Any], columns: dict[str, str], number: str, within: str) -> Row:
    """A row of RAW without the image, whose `name` it has; `within` is the folder of the table."""
    row: Row = {"name": "", "id": None}
    with reasons_noted(row):
        row["name"] = text_of(values.get(columns["image"]), columns["image"]) or ""
        if "id" not in columns:
            row["id"] = within + row["name"] if row["name"] else None
        elif columns["id"] == BY_ROW:
            row["id"] = number
        else:
            row["id"] = text_of(values.get(columns["id"]), columns["id"])
        for ours in ("user", "split", "caption", "original"):
            if ours in columns:
                row[ours] = text_of(values.get(columns[ours]), columns[ours])
        if "tags" in columns:
            row["tags"] = tags_of(values.get(columns["tags"]))
        if "taken_at" in columns:
            row["taken_at"] = time_of(values.get(columns["taken_at"]))
    if row.get("reason"):
        row["id"] = row["id"] or row["name"] or None
    return row


TableRow = tuple[str, dict[str, Any] | Unusable, dict[str, str]]  # line, values or what is wrong, columns


def _rows(table: Path, source: Source) -> Iterator[TableRow]:
    # bytes that are no UTF-8 pass as half surrogates, so that one bad row is one bad row
    with open(table, "rb") as raw:
        start = raw.read(2)
    with open(table, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        if start in (b"\xff\xfe", b"\xfe\xff"):
            raise BadSource(f"{table} is UTF-16, wanted UTF-8: save it as that")
        if not start:
            raise BadSource(f"{table} is empty (0 bytes), wanted {WHAT}")
        rows_of = _json if table.suffix.lower() in (".jsonl", ".ndjson") else _csv
        yield from rows_of(table, file, source)


class _Lines:
    """Lines of a file that can be given back: a stray quote costs the line it is in, not those it swallows.

    Raises Unusable at a line that is too long, and takes it.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = lines_of(file)
        self._back: deque[tuple[str, bool]] = deque()
        self.taken: list[tuple[str, bool]] = []
        self.done = 0  # lines before those that are taken

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if len(self.taken) == MAX_LINES:
            raise csv.Error(f"a row of more than {MAX_LINES:,} lines")
        line, whole = self._back.popleft() if self._back else next(self._file)
        self.taken.append((line, whole))
        if not whole:
            raise too_long(f"line {self.done + len(self.taken)}")
        return line

    def give_back_after(self, lines: int) -> None:
        """Drops the first of the taken lines and gives the others back."""
        self._back.extendleft(reversed(self.taken[lines:]))
        self.done += min(lines, len(self.taken))
        self.taken = []


def _csv(table: Path, file: IO[str], source: Source) -> Iterator[TableRow]:
    csv.field_size_limit(MAX_LINE)  # csv's own is 128 KiB, less than a post with very many tags
    delimiter = "\t" if table.suffix.lower() == ".tsv" else ","
    lines = _Lines(file)
    try:
        names = [name.strip() for name in next(csv.reader(lines, delimiter=delimiter, strict=True), [])]
    except (csv.Error, Unusable) as error:
        raise BadSource(f"{table}: its first line is no list of columns: {error}") from None
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise BadSource(f"{table} has two columns {', '.join(twice)}: rename one")
    columns = choose(names, source, str(table))
    lines.give_back_after(len(lines.taken))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        where = f"line {lines.done + 1}"
        try:
            row = next(reader, None)
            if len(lines.taken) > 1:
                where = f"lines {lines.done + 1} to {lines.done + len(lines.taken)}"
            if row is None:
                return
            if row and len(row) != len(names):  # [] is an empty line
                raise csv.Error(f"{len(row)} fields, wanted {len(names)}")
            lines.give_back_after(len(lines.taken))
            if any(_escaped(field) for field in row):
                yield where, Unusable("bad_row", f"{where}: text that is not UTF-8"), columns
            elif row:
                yield where, dict(zip(names, row, strict=True)), columns
        except (csv.Error, Unusable) as error:
            # perhaps a quote that was never meant as one: the next line is read again
            where, alone = f"line {lines.done + 1}", len(lines.taken) == 1
            lines.give_back_after(1)
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            if alone and isinstance(error, Unusable):
                yield where, error, columns
            else:
                yield where, Unusable("bad_row", f"{where}: {error}"), columns


def _json(table: Path, file: IO[str], source: Source) -> Iterator[TableRow]:
    """Objects may have different keys: the first hundred decide whether all needed columns exist."""
    rows, size = _objects(file), 0
    head = []
    for where, row, length in islice(rows, HEAD):
        head.append((where, row, length))
        size += length
        if size >= BATCH_BYTES:
            break
    names = dict.fromkeys(name for _, row, _ in head if isinstance(row, dict) for name in row)
    if not names and head:
        raise BadSource(f"{table}, {head[0][1].detail}" if isinstance(head[0][1], Unusable) else f"{table} has no keys")
    columns = choose(list(names), source, str(table))
    for where, row, _ in chain(head, rows):
        if isinstance(row, dict) and len(names) < MAX_KEYS and not names.keys() >= row.keys():
            names |= dict.fromkeys(row)
            columns = choose(list(names), source, str(table))
        yield where, row, columns


def _objects(file: IO[str]) -> Iterator[tuple[str, dict[str, Any] | Unusable, int]]:
    """Line, its object or what is wrong, and its number of characters."""
    for number, (line, whole) in enumerate(lines_of(file), 1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            if not whole:
                raise too_long(where)
            if _escaped(line):
                raise Unusable("bad_row", f"{where}: text that is not UTF-8")
            row = json.loads(line)
            if not isinstance(row, dict):
                raise Unusable("bad_row", f"{where}: wanted an object with an image's name and tags")
            yield where, row, len(line)
        except Unusable as why:
            yield where, why, len(line)
        except (ValueError, RecursionError) as error:
            yield where, Unusable("bad_row", f"{where}: not JSON: {error}"), len(line)


def _escaped(text: str) -> bool:
    return not text.isascii() and any("\udc80" <= c <= "\udcff" for c in text)


READERS = {"folder": Reader(find, read, count, columns, row_keys)}
