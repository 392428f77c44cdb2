"""What hardmoe writes to the terminal: names, tags and ids of users are seen there, never obeyed."""

import json
import sys
import time
from typing import Any

import click

from moe_core.text import ZWJ, format_duration, shown

COUNTER_SECONDS = 0.25  # between two lines of a Counter


def echo(*parts: object, err: bool = False) -> None:
    """One line of some parts, with control characters, line ends and marks that turn the line around escaped.

    A part may be (text, color): in that color where the output is a terminal.
    """
    stream = sys.stderr if err else sys.stdout
    encoding = stream.encoding or "utf-8"
    line = ""
    for part in parts:
        text, color = part if isinstance(part, tuple) else (part, None)
        text = shown(text, most=None).encode(encoding, "backslashreplace").decode(encoding)
        line += click.style(text, fg=color) if color else text
    click.echo(line, file=stream)


def echo_json(document: Any, before: str = "", end: str = "\n") -> None:
    """A JSON document on standard output: UTF-8 in any locale; JSON's escapes for what does not print."""
    text = json.dumps(document, ensure_ascii=False)
    if not text.isprintable():
        text = "".join(c if c.isprintable() or c == ZWJ else _escaped(c) for c in text)
    click.echo((before + text + end).encode(), nl=False)


class Counter:
    """How many are done, on one line of a terminal; where standard error is none, nothing."""

    def __init__(self, what: str, total: int | None, first: int = 0) -> None:
        self.what, self.total, self.first = what, total, first
        self._started = self._shown = time.monotonic()
        self._live = sys.stderr.isatty()

    def __enter__(self) -> "Counter":
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Makes room for another line."""
        if self._live:
            click.echo("\r\033[K", file=sys.stderr, nl=False)

    def show(self, done: int) -> None:
        now = time.monotonic()
        if not self._live or now - self._shown < COUNTER_SECONDS:
            return
        self._shown = now
        speed = (done - self.first) / (now - self._started)
        line = f"{done:,} {self.what}, {speed:,.0f} a second"
        if self.total is not None and speed > 0:
            left = format_duration((self.total - done) / speed)
            line = f"{done:,} of {self.total:,} {self.what}, {speed:,.0f} a second, {left} left"
        click.echo(f"\r\033[K{line}", file=sys.stderr, nl=False)


def _escaped(character: str) -> str:
    """As in JSON: two halves of a pair above U+FFFF. A byte of a file name that is not UTF-8 is half a pair already."""
    code = ord(character)
    units = [code] if code < 0x10000 else [0xD800 + (code - 0x10000 >> 10), 0xDC00 + (code & 0x3FF)]
    return "".join(f"\\u{unit:04x}" for unit in units)
