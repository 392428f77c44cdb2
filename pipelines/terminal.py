"""What hardmoe writes to the terminal: names, tags and ids of users are seen there, never obeyed."""

import json
import sys
from dataclasses import dataclass
from typing import Any

import click

from moe_core.text import ZWJ, shown


@dataclass(frozen=True)
class Colored:
    """A word of a line, in a color where the output is a terminal."""

    text: str
    color: str


def echo(*parts: object, err: bool = False) -> None:
    """One line of some parts, with control characters, line ends and marks that turn the line around escaped."""
    stream = sys.stderr if err else sys.stdout
    encoding = stream.encoding or "utf-8"
    line = ""
    for part in parts:
        text = shown(part.text if isinstance(part, Colored) else part, most=None)
        text = text.encode(encoding, "backslashreplace").decode(encoding)
        line += click.style(text, fg=part.color) if isinstance(part, Colored) else text
    click.echo(line, file=stream)


def echo_json(document: Any, before: str = "", end: str = "\n") -> None:
    """A JSON document on standard output: UTF-8 in any locale; JSON's escapes for what does not print."""
    text = json.dumps(document, ensure_ascii=False)
    if not text.isprintable():
        text = "".join(c if c.isprintable() or c == ZWJ else _escaped(c) for c in text)
    click.echo((before + text + end).encode(), nl=False)


def _escaped(character: str) -> str:
    """As in JSON: two halves of a pair above U+FFFF. A byte of a file name that is not UTF-8 is half a pair already."""
    code = ord(character)
    units = [code] if code < 0x10000 else [0xD800 + (code - 0x10000 >> 10), 0xDC00 + (code & 0x3FF)]
    return "".join(f"\\u{unit:04x}" for unit in units)
