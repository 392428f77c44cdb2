"""Scans of a source: which files can be read, what their content hashes are, and the shards that follow."""

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from moe_core.data.sources.files import File, is_remote
from moe_core.errors import BadSource
from moe_core.store.files import write_text
from moe_core.store.hashing import content_hash, file_hash
from moe_core.store.locks import exclusive

LARGE = 256 << 20  # bytes of a file that is hashed by one process at a time, and that are hashed between two saves


@dataclass(frozen=True)
class Shard:
    """One input file. `content_hash` is that of its content and of how it is read."""

    key: str
    path: str  # a local path or a URI; empty for synthetic data
    content_hash: str


@dataclass(frozen=True)
class Unready:
    """A file that cannot be read as it is now, perhaps because it is still being copied; `why` names it."""

    path: str
    why: str


@lru_cache(maxsize=100_000)
def hash_of_content(path: str, size: int, changed: int, touched: int) -> str:
    """Content hash of a local file in a state; remembered while the process lives."""
    return file_hash(Path(path))


class ContentHashes:
    """Content hashes of files, remembered by path, size and times of change, so that no file is read twice.

    Only `save` writes. With `autosave`, hashes of large files are saved as soon as they are known, and a large file is
    read by one process at a time: what takes minutes is neither lost with a process nor done by several.
    """

    def __init__(self, path: Path | None = None, autosave: bool = False) -> None:
        self.path = path
        self.autosave = autosave and path is not None
        self._known = self._read()
        self._learned: dict[str, list[object]] = {}  # since the last save
        self._unsaved = 0  # bytes hashed since the last save

    def __contains__(self, file: File) -> bool:
        """Whether the file is as it was when it was remembered."""
        entry = self._known.get(file.path)
        return entry is not None and entry[:-1] == [file.size, file.changed, file.touched]

    def was_read(self, file: File) -> bool:
        """Whether the file could be read before, in this state or another."""
        return file.path in self._known

    def remember(self, file: File) -> None:
        """Notes that a file could be read, without a hash of it."""
        if file not in self:
            self._note(file, "")

    def of(self, file: File) -> str:
        """Hash of a file's content; of its name, size and time for a remote one, which is not fetched to be hashed."""
        if file not in self and is_remote(file.path):
            self._note(file, content_hash([file.name, file.size, file.changed]))
        elif file not in self:
            alone = self.path if self.autosave and file.size >= LARGE else None
            with exclusive(alone.with_suffix(".lock")) if alone else nullcontext():
                if alone:  # another process may have read it meanwhile
                    self._known = self._known | self._read() | self._learned
                if file not in self:
                    self._note(file, hash_of_content(file.path, file.size, file.changed, file.touched))
                    self._unsaved += file.size
                if self.autosave and self._unsaved >= LARGE:
                    self.save()
        return str(self._known[file.path][-1])

    def _note(self, file: File, content: str) -> None:
        self._known[file.path] = self._learned[file.path] = [file.size, file.changed, file.touched, content]

    def _read(self) -> dict[str, list[object]]:
        """The saved hashes; none where they cannot be read, since they only save time."""
        try:
            known: dict[str, list[object]] = json.loads(self.path.read_text("utf-8")) if self.path else {}
        except (FileNotFoundError, ValueError):
            return {}
        return known

    def save(self) -> None:
        """Writes what was learned since the last save; nothing where that is nothing."""
        if self.path and self._learned:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps(self._read() | self._learned))  # others may have saved meanwhile
            self._learned, self._unsaved = {}, 0


@dataclass(frozen=True)
class Scan:
    """One scan of a source's files: which can be read, and the content hash of each.

    With a list `unready`, a new file that cannot be read is noted there and left out; without, it is an error. With a
    path `only`, all other new files are left out unread.
    """

    hashes: ContentHashes
    unready: list[Unready] | None = None
    only: str = ""

    def readable(self, files: Sequence[File], check: Callable[[File], object]) -> list[File]:
        """The files that can be read. `check` is called for new and changed ones, and raises BadSource for others.

        Raises that error for a file that could be read before, since its posts would leave the study, and where no file
        is left.
        """
        good, errors = [], list[BadSource]()
        for file in files:
            if self.only not in ("", file.path) and file not in self.hashes:
                continue
            try:
                if file not in self.hashes:
                    check(file)
                good.append(file)
            except BadSource as error:
                if self.unready is None or self.hashes.was_read(file):
                    raise
                self.unready.append(Unready(file.path, str(error)))
                errors.append(error)
        if errors and not good:
            raise errors[0]
        return good
