"""Text of tables and JSON: lines of bounded length, and values that are tags, names or times."""

import html
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import IO, AnyStr

from moe_core.data.sources.raw import Unusable

MAX_DETAIL = 200  # characters of a line that cannot be used
MAX_LINE = 16 << 20  # characters of one line of text: a post with a million tags has half of that
# between tags: commas, semicolons and bars of all scripts, bullets, tabs and line ends
SEPARATORS = ",，、،﹐﹑､;；؛﹔|｜•\t\n\r\v\f\x85\u2028\u2029"
SEPARATOR = re.compile(f"[{SEPARATORS}]")
CLOSING = {"[": "]", "{": "}", "(": ")"}
ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z]\w{1,31});")  # its ';' and '#' separate nothing
_QUOTED = r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|“[^“”]*”)"""
QUOTED_PART = re.compile(rf"(?:(?<=[{SEPARATORS}])|\A)\s*{_QUOTED}\s*(?=[{SEPARATORS}]|\Z)")
PART = re.compile(rf"\s*(?:{_QUOTED}\s*(?=[{SEPARATORS}]|\Z)|([^{SEPARATORS}]+))(?:[{SEPARATORS}]|\Z)")
WORD = re.compile(rf"{_QUOTED}(?!\S)|(\S+)")
GLUED_HASHES = re.compile(r"[#＃].*?[^\s#＃][#＃]+\w", re.DOTALL)  # as in "#new york#cat": '#' separates, not the space
ESCAPED = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
NEXT_HASH = re.compile(r"(?<![#＃])(?=[#＃]+(?:\w|[^\x00-\x7f]))")
ABSENT = {"", "nan", "none", "null", "n/a", "\\n"}  # how tables of text write an absent value


def lines_of(file: IO[AnyStr]) -> Iterator[tuple[AnyStr, bool]]:
    """Lines with their ends, and whether each is whole: a line of MAX_LINE or more is cut to its first characters.

    The rest of such a line is skipped in parts, so memory does not grow with it.
    """
    while line := file.readline(MAX_LINE):
        if len(line) < MAX_LINE or _ends(line):
            yield line, True
            continue
        yield line[:MAX_DETAIL], False
        while (line := file.readline(MAX_LINE)) and not _ends(line):
            pass


def _ends(line: str | bytes) -> bool:
    return line[-1:] in ("\n", "\r", b"\n")


def too_long(where: str) -> Unusable:
    return Unusable("too_long", f"{where} has {MAX_LINE:,} characters or more: is a line end missing?")


def tags_of_text(text: str) -> list[str]:
    """Tags of one text. Raises Unusable for JSON that is not a flat list.

    A JSON list, or one as Python, numpy and Postgres write it; or tags separated by SEPARATORS; or, without one, by
    spaces. What is in quotes is one tag; a '#' within a tag begins the next one.
    """
    text = text.strip()
    if text.lower() in ABSENT:
        return []
    if text[0] in "[{(" and text[-1] == CLOSING[text[0]]:
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            text = " ".join(text[1:-1].splitlines())  # such as numpy's way of writing a list, over several lines
        else:
            return tags_of(parsed)
    text = ENTITY.sub(lambda match: html.unescape(match[0]), text)
    if SEPARATOR.search(QUOTED_PART.sub("", text)):
        parts = [match.groups() for match in PART.finditer(text)]
    elif GLUED_HASHES.match(text):
        parts = [(None, text)]
    else:
        parts = [match.groups() for match in WORD.finditer(text)]
    tags: list[str] = []
    for quoted, plain in parts:
        tags += [ESCAPED.sub(_unescaped, quoted[1:-1])] if quoted else NEXT_HASH.split(plain)
    return [tag for part in tags if (tag := part.strip()).lower() not in ABSENT]


def holds_separator(tag: str) -> bool:
    """Whether a tag may be several that a list or quotes hold together."""
    return bool(SEPARATOR.search(tag.strip()) or len([part for part in NEXT_HASH.split(tag) if part.strip()]) > 1)


def _unescaped(match: re.Match[str]) -> str:
    escape = match[1]
    return chr(int(escape[1:], 16)) if len(escape) > 1 and int(escape[1:], 16) < 0x110000 else escape


def tags_of(value: object) -> list[str]:
    """Tags of a value of JSON or of a table of text. Raises Unusable for what can be none."""
    if value is None or value is False:
        return []
    if isinstance(value, str):
        return tags_of_text(value)
    if isinstance(value, list):
        return [tag for item in value if (tag := text_of(item, "tags")) is not None]
    tag = text_of(value, "tags")
    return [] if tag is None else [tag]


def text_of(value: object, column: str) -> str | None:
    """Text of a value of JSON or of a table of text. Raises Unusable for an object or a list."""
    if value is None:
        return None
    if isinstance(value, str):
        return None if value.strip().lower() in ABSENT else value
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float):
        if value != value:
            return None
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else str(value)
    raise Unusable("bad_row", f"{column} holds {'an object' if isinstance(value, dict) else 'a list'}, wanted text")


def time_of(value: object) -> datetime | None:
    """Naive UTC of ISO 8601, of EXIF's and Twitter's ways, or of seconds (milli-, microseconds) since 1970.

    None for what is no time, or none of the years 1 to 9999: the post is kept without one.
    """
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return _since_1970(value)
    moment = value if isinstance(value, datetime) else _parsed(str(value).strip())
    with suppress(OverflowError):
        return moment.astimezone(UTC).replace(tzinfo=None) if moment and moment.tzinfo else moment
    return None


def _parsed(text: str) -> datetime | None:
    if re.fullmatch(r"\d{9,19}(\.\d*)?", text, re.ASCII):
        return _since_1970(float(text))
    with suppress(ValueError):
        return datetime.fromisoformat(text)
    for form in ("%Y:%m:%d %H:%M:%S", "%Y/%m/%d %H:%M:%S", "%Y/%m/%d", "%a %b %d %H:%M:%S %z %Y"):
        with suppress(ValueError):
            return datetime.strptime(text, form)
    return None


def _since_1970(number: float) -> datetime | None:
    scale = next((unit for limit, unit in ((1e11, 1), (1e14, 10**3), (1e17, 10**6)) if abs(number) < limit), 10**9)
    with suppress(OverflowError, ValueError):
        return datetime(1970, 1, 1) + timedelta(microseconds=round(number * 10**6 / scale))
    return None
