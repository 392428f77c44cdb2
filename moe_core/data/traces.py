"""Finds ids in files, as they are or escaped: what is left of posts that were taken down.

It searches for the text itself and for what encoders make of it: JSON (also JSON within JSON), Python's repr, percent
encoding, HTML's character references, UTF-16 after its mark, and the beginning with an ellipsis that is shown of a long
id. Both sides are brought to one form, so that how an id was escaped, and how often, does not matter.

An id is found as a whole: `12345-a` is not found in `12345-ab`, `x12345-a` or `12345-a_b`. Ids that cannot be told from
other text are not searched for in files (`telling`): fewer than six bytes of ASCII, and plain words.
"""

from __future__ import annotations

import re
import sqlite3
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from urllib.parse import quote

from moe_core.text import MOST

SHORT = 6  # bytes
NESTED = 4  # encoders, each on the output of the one before
CHUNK = 32 << 20  # bytes read at once
LOCKED_SECONDS = 5.0  # that another program may hold a database before it is left as it is
SQLITE = b"SQLite format 3\0"
LENGTHS = (MOST, 200)  # at which a long text is cut when it is shown

_RUN = re.compile(rb"[0-9A-Za-z]+")
_ESCAPE = re.compile(  # its first character is one of three: re skips all the others at once
    rb"""(?ix) [\\%&] (?:
    (?<=\\)\\* (?: (?P<units>(?-i:u)[0-9a-f]{4}(?:\\+(?-i:u)[0-9a-f]{4})*)
        | (?-i:U)(?P<point>000[0-9a-f]{5}|0010[0-9a-f]{4}) | x(?P<byte>[0-9a-f]{2}) | (?P<named>(?-i:[nrtbf0av])) | )
    | (?<=%)(?P<percent>[0-9a-f]{2})
    | (?<=&)(?: \#x(?P<hex>[0-9a-f]{1,6}); | \#(?P<decimal>[0-9]{1,7}); | (?P<entity>quot|apos|lt|gt|amp); )
    )"""
)
_UNIT = re.compile(rb"u([0-9a-fA-F]{4})")
_NAMED = dict(zip(b"nrtbf0av", b"\n\r\t\b\f\0\a\v", strict=True))
_ENTITIES = {b"quot": b'"', b"apos": b"'", b"lt": b"<", b"gt": b">", b"amp": b"&"}


def telling(text: str) -> bool:
    """Whether an id is searched for in files: fewer than SHORT bytes of ASCII, or a plain word, occur by chance."""
    if not text.isascii():
        return True
    return len(text) >= SHORT and not text.isalpha() and any(c.isalnum() for c in text)


class Traces:
    """The ids to search for."""

    def __init__(self, texts: Iterable[str]) -> None:
        texts = set(texts)
        self.telling = {text for text in texts if telling(text)}
        self.short = texts - self.telling
        self._exact = {_bytes(text) for text in texts}
        forms = (lambda data: data, partial(_unescaped, by_bytes=False), partial(_unescaped, by_bytes=True))
        self._forms = [_Needles(self.telling, form) for form in forms]
        self._longest = max((len(_bytes(text)) for text in self.telling), default=0)

    def __bool__(self) -> bool:
        return bool(self.telling)

    def within(self, data: bytes) -> bool:
        """Whether bytes hold an id."""
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            with suppress(UnicodeDecodeError):
                data = data.decode("utf-16", "surrogatepass").encode("utf-8", "surrogatepass")
        plain, points, by_bytes = self._forms
        if plain.within(data):
            return True
        if not (b"\\" in data or b"%" in data or b"&" in data):
            return False
        return points.within(data) or (b"\\x" in data and by_bytes.within(data))

    def occur_in(self, path: Path) -> bool:
        """Whether a file holds an id. A database of SQLite is searched by its cells, and by its bytes.

        Raises sqlite3.Error for a database that is damaged or locked.
        """
        if not self:
            return False
        with open(path, "rb") as file:
            before = b""
            while block := file.read(CHUNK):
                if self.within(before + block):
                    return True
                before = (before + block)[-(32 * self._longest + 4096) :]  # an escape has at most 32 times the bytes
        return is_sqlite(path) and any(True for _ in self.rows_with_ids(path))

    def rows_with_ids(self, path: Path, exactly: bool = False) -> Iterator[tuple[str, dict[str, object]]]:
        """(table, row) of a database of SQLite. `exactly`: cells that are an id, however short.

        Reads cells, since a long one is scattered over pages. Raises sqlite3.Error for one that is damaged or locked.
        """
        address = f"file:{quote(str(path), errors='surrogateescape')}?mode=ro"
        with closing(sqlite3.connect(address, uri=True, timeout=LOCKED_SECONDS)) as database:
            database.text_factory = bytes
            for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type='table'").fetchall():
                table = name.decode()
                rows = database.execute('SELECT * FROM "{}"'.format(table.replace('"', '""')))
                names = [column[0] for column in rows.description]
                for row in rows:
                    cells = [cell for cell in row if isinstance(cell, bytes)]
                    if any(self.within_cell(cell) or (exactly and cell in self._exact) for cell in cells):
                        yield table, dict(zip(names, row, strict=True))

    def within_cell(self, cell: bytes) -> bool:
        """Whether a value of a database holds an id: it may be compressed, as Dagster's snapshots are."""
        if cell[:1] == b"x":
            with suppress(zlib.error):
                cell += b"\0" + zlib.decompress(cell)
        return self.within(cell)


class _Needles:
    """Texts in one form, found by the longest of their runs of ASCII letters and digits: a data set of ids is searched
    for in one pass."""

    def __init__(self, texts: Collection[str], form: Callable[[bytes], bytes]) -> None:
        self.form = form
        self.by_run: dict[bytes, list[bytes]] = {}
        self.others: list[bytes] = []
        for text in texts:
            for variant in _variants(text):
                needle = form(variant)
                runs = _RUN.findall(needle)
                if runs and len(longest := max(runs, key=len)) > 1:
                    self.by_run.setdefault(longest, []).append(needle)
                elif needle:
                    self.others.append(needle)

    def within(self, data: bytes) -> bool:
        data = self.form(data)
        if any(_found(needle, data) for needle in self.others):
            return True
        runs = {run for run in _RUN.findall(data) if run in self.by_run} if self.by_run else ()
        return any(_found(needle, data) for run in runs for needle in self.by_run[run])


def is_sqlite(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(SQLITE)) == SQLITE


def _variants(text: str) -> set[bytes]:
    cut = {_bytes(text[: length - 1] + "…") for length in LENGTHS if len(text) > length}
    plain = {_bytes(text)}
    with suppress(UnicodeEncodeError):  # of a file's name that is no UTF-8
        plain.add(text.encode("utf-8", "surrogateescape"))
    return plain | cut


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _found(needle: bytes, data: bytes) -> bool:
    at = data.find(needle)
    while at >= 0:
        if _is_whole(needle, data, at):
            return True
        at = data.find(needle, at + 1)
    return False


def _is_whole(needle: bytes, data: bytes, at: int) -> bool:
    """Whether what lies there is not a part of a longer id, word or number."""
    end = at + len(needle)
    before, after = _text(data[max(0, at - 4) : at]), _text(data[end : end + 4])
    number = needle.isdigit()
    return not (
        (_joins(_text(needle[:4])[:1]) and _continues(before[::-1], number))
        or (_joins(_text(needle[-4:])[-1:]) and _continues(after, number))
    )


def _text(data: bytes) -> str:
    return data.decode("utf-8", "ignore")


def _joins(character: str) -> bool:
    return character.isalnum() or character in ("-", "_")


def _continues(neighbors: str, number: bool) -> bool:
    """`neighbors` from the nearest on."""
    nearest, next_one = neighbors[:1], neighbors[1:2]
    if _joins(nearest) and (nearest not in "-_" or _joins(next_one)):
        return True
    return number and nearest in (".", ",") and next_one.isdigit()


def _unescaped(data: bytes, by_bytes: bool) -> bytes:
    r"""Without escapes: until nothing changes, as an escaped text may have been escaped by another encoder.

    `by_bytes`: \xe9 is a byte, as Python's repr of bytes has it, else U+00E9, as that of a text has it.
    """
    for _ in range(NESTED):
        before, data = data, _ESCAPE.sub(lambda escape: _plain(escape, by_bytes), data)
        if data == before:
            break
    return data


def _plain(escape: re.Match[bytes], by_bytes: bool) -> bytes:
    kind, digits = escape.lastgroup, escape.group(escape.lastgroup or 0)
    match kind:
        case "units":
            units = bytes.fromhex("".join(unit.decode() for unit in _UNIT.findall(digits)))
            return units.decode("utf-16-be", "surrogatepass").encode("utf-8", "surrogatepass")
        case "byte" if not by_bytes:
            return chr(int(digits, 16)).encode()
        case "byte" | "percent":
            return bytes.fromhex(digits.decode())
        case "point" | "hex":
            return _character(int(digits, 16))
        case "decimal":
            return _character(int(digits))
        case "named":
            return bytes([_NAMED[digits.lower()[0]]])
        case "entity":
            return _ENTITIES[digits.lower()]
    return b""  # backslashes alone: how many there are depends on how often the text was escaped


def _character(number: int) -> bytes:
    return chr(number).encode("utf-8", "surrogatepass") if number <= 0x10FFFF else b""
