"""A program in a real pseudo-terminal of some size, and what a person can read there, scrolled-out lines included."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios

TOKEN = re.compile(
    r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\r\n\b\x07]|[^\x1b\r\n\b\x07]+|\x1b."
)


class Screen:
    """Lines as they stand after all that was written: the cursor moves by what programs of today use."""

    def __init__(self, columns, rows=24):
        self.columns, self.rows = columns, rows
        self.cells, self.row, self.column = [[]], 0, 0
        self.fed = ""  # all that was written, also what was overwritten since

    @property
    def lines(self):
        return ["".join(cells).rstrip() for cells in self.cells]

    def feed(self, text):
        self.fed += text
        for token in TOKEN.finditer(text):
            if token[2]:
                self._move(token[1], token[2])
            elif token[0] == "\r":
                self.column = 0
            elif token[0] == "\n":
                self._down()
            elif token[0][0] not in "\x1b\b\x07":
                for character in token[0]:
                    self._write(character)

    def _down(self):
        self.row += 1
        if self.row == len(self.cells):
            self.cells.append([])

    def _write(self, character):
        if self.column == self.columns:
            self.column = 0
            self._down()
        line = self.cells[self.row]
        line.extend(" " * (self.column + 1 - len(line)))
        line[self.column] = character
        self.column += 1

    def _move(self, numbers, what):
        count = int(numbers) if numbers.isdigit() else 1
        if what == "A":
            self.row = max(self.row - count, len(self.cells) - self.rows, 0)  # never into what has scrolled out
        elif what == "K":
            line = self.cells[self.row]
            self.cells[self.row] = [] if numbers == "2" else line[: self.column]
        elif what not in "mhl":  # colors, and whether the cursor is shown
            raise ValueError(f"escape {numbers}{what} is not known here")


def in_terminal(command, columns, environment, rows=24):
    """(exit code, Screen) of a command whose standard output and error are a terminal of this size."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {k: v for k, v in environment.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment | {"TERM": "xterm-256color"}
    )
    os.close(theirs)
    data = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # all that wrote to it have ended
            break
        if not part:
            break
        data += part
    os.close(ours)
    screen = Screen(columns, rows)
    screen.feed(data.decode("utf-8"))
    return process.wait(), screen
