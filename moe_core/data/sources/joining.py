"""Rows of a table that are one post: some tables have a row for each tag of a picture, side by side or far apart."""

import json
import sqlite3
from array import array
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager

import numpy as np

Said = tuple[str | None, list[str], str | None]  # key (None: never joined), tags, caption


class Joined:
    """Rows by their key. Memory is 8 bytes a row; the tags of keys with several rows are in a file of SQLite's."""

    def __init__(self, keys: Iterable[str | None]) -> None:
        hashes_N = np.array(array("q", (hash(key) for key in keys if key is not None)), np.int64)
        hashes_N.sort()
        self._again = np.unique(hashes_N[1:][hashes_N[1:] == hashes_N[:-1]])
        self._rows: sqlite3.Connection | None = None

    def __bool__(self) -> bool:
        return len(self._again) > 0

    def _comes_again(self, key: str | None) -> bool:
        if key is None or not self:
            return False
        wanted = hash(key)
        place = int(np.searchsorted(self._again, wanted))
        return place < len(self._again) and int(self._again[place]) == wanted

    @contextmanager
    def opened(self, rows: Iterable[Said]) -> Iterator["Joined"]:
        """With the tags of `rows`, which are those whose keys were given, in the same order. They may not be read."""
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
                    if key is not None and self._comes_again(key)
                ),
            )
            yield self

    def of(self, row: int, said: Said) -> tuple[list[str], str | None] | None:
        """Tags and caption of all the rows of a key at its first row, None at the others."""
        key, tags, caption = said
        if key is None or self._rows is None or not self._comes_again(key):
            return tags, caption
        (first,) = self._rows.execute("SELECT min(row) FROM rows WHERE key = ?", (_blob(key),)).fetchone()
        if first != row:
            return None
        found = self._rows.execute("SELECT tags FROM rows WHERE key = ? ORDER BY row", (_blob(key),))
        lists, captions = zip(*(json.loads(text) for (text,) in found), strict=True)
        return [tag for one in lists for tag in one], "\n".join(text for text in captions if text) or None


def _blob(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")
