"""Rows of a table that are one post: some tables have a row for each tag of a picture, side by side or far apart."""

import json
import sqlite3
from array import array
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager

import numpy as np

RowText = tuple[str | None, list[str], str | None]  # key (None: never joined), tags, caption


class Joined:
    """Rows by their key. Memory is 8 bytes a row; the tags of keys with several rows are in a file of SQLite's."""

    def __init__(self, keys: Iterable[str | None]) -> None:
        hashes_N = np.array(array("q", (hash(key) for key in keys if key is not None)), np.int64)
        hashes_N.sort()
        self._repeated = np.unique(hashes_N[1:][hashes_N[1:] == hashes_N[:-1]])
        self._rows: sqlite3.Connection | None = None

    def __bool__(self) -> bool:
        return len(self._repeated) > 0

    def _is_repeated(self, key: str | None) -> bool:
        if key is None or not self:
            return False
        wanted = hash(key)
        index = int(np.searchsorted(self._repeated, wanted))
        return index < len(self._repeated) and int(self._repeated[index]) == wanted

    @contextmanager
    def opened(self, rows: Iterable[RowText]) -> Iterator["Joined"]:
        """Stores the tags of `rows`: those whose keys were given, in their order; none where no key comes twice."""
        if not self:
            yield self
            return
        # lance takes the batches from one thread, then from another, never from two at once
        with closing(sqlite3.connect("", check_same_thread=False)) as self._rows:
            self._rows.execute("CREATE TABLE rows (key BLOB, row INT, tags TEXT, PRIMARY KEY (key, row)) WITHOUT ROWID")
            self._rows.executemany(
                "INSERT INTO rows VALUES (?, ?, ?)",
                (
                    (_blob(key), row, json.dumps([tags, caption]))
                    for row, (key, tags, caption) in enumerate(rows)
                    if key is not None and self._is_repeated(key)
                ),
            )
            yield self

    def post_of(self, row: int, text: RowText) -> tuple[list[str], str | None] | None:
        """Tags and caption of all the rows of a key at its first row; None at the others."""
        key, tags, caption = text
        if key is None or self._rows is None or not self._is_repeated(key):
            return tags, caption
        (first,) = self._rows.execute("SELECT min(row) FROM rows WHERE key = ?", (_blob(key),)).fetchone()
        if first != row:
            return None
        stored = self._rows.execute("SELECT tags FROM rows WHERE key = ? ORDER BY row", (_blob(key),))
        lists, captions = zip(*(json.loads(row_text) for (row_text,) in stored), strict=True)
        return [tag for tags in lists for tag in tags], "\n".join(filter(None, captions)) or None


def _blob(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")
