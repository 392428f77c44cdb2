"""Text of users, made fit for a terminal."""

import os
import sys
from pathlib import Path

from moe_core.errors import BadSetting

MOST = 60
ZWJ = "\u200d"  # joins emoji and is harmless


def shown(text: object, most: int | None = MOST) -> str:
    """On one line, without control characters or marks that turn the line around, of at most `most` characters."""
    line = str(text)
    if most is not None and len(line) > most:
        line = line[: most - 1] + "…"
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() or c == ZWJ else c.encode("unicode_escape").decode() for c in line)


def one_line(error: Exception, most: int = 200) -> str:
    """The text of an error on one line, of at most `most` characters."""
    return " ".join(str(error).split())[:most]


def utf8(name: str) -> str:
    """The name of a file as text that can be stored: bytes that are not UTF-8 are escaped."""
    return name.encode(errors="backslashreplace").decode()


def refuse_bytes(path: Path | str, what: str) -> None:
    """Raises BadSetting for a path that is not UTF-8: safetensors, polars and study.toml cannot name it."""
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8" and not str(path).isascii():
        raise BadSetting(f"{what} {shown(path, 300)}: this locale has file names in {encoding}: set PYTHONUTF8=1")
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        byte = os.fsencode(error.object[error.start])[0]
        raise BadSetting(
            f"{what} {shown(path, 300)} has the byte {byte:#04x} in its name, which is not UTF-8: rename it"
        ) from None


def format_duration(seconds: float) -> str:
    """Such as 0.3 s, 12 s, 3 min, 1 h 20 min: what took time is never 0 s."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60} min"
