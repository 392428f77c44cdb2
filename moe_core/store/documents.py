"""Documents: small files that are replaced whole, such as pointers, requests, the publication log and the takedowns.

In a folder a document is a file, replaced in one move under a lock. In a bucket it is a row of records, each written
by a put-if-absent and never changed:

    documents/<name>/000012         the document; or that it was removed, which is a record, too

The highest number counts. A writer reads it, creates the next one, and looks again: only where its own is the highest
is its change the document's, and then it removes the lower ones. So a writer that sleeps between 12 and 13 while
others come to 40 may create 13 a second time, but 40 stays the highest, and the writer starts over from it. A reader
whose record was removed under its hands lists again.
"""

import random
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath
from typing import Protocol

from moe_core.errors import StorageFailed
from moe_core.failpoints import failpoint
from moe_core.store.blobs import Blobs
from moe_core.store.files import fsync, stamp_of, write_bytes
from moe_core.store.layout import Layout
from moe_core.store.locks import exclusive

Change = Callable[[bytes | None], bytes | None]

FOLDER = "documents"
THERE, REMOVED = b"hardmoe document ", b"hardmoe document removed "  # before an id of the record, in its first line
TRIES = 100  # of a reader, each of which a writer overtakes
PAUSE = 0.05  # seconds after such a try


class Documents(Protocol):
    """Reads and replaces documents under names of the layout, relative to the root, such as NAMES.request("trunk").

    Raises OSError (a folder), or StorageFailed and BadSetting (a bucket).
    """

    def where(self, name: PurePath) -> str:
        """Where a document lies, as messages name it."""

    def names(self, folder: PurePath) -> list[PurePath]:
        """Documents in a folder; of a bucket also those that were removed."""

    def read(self, name: PurePath) -> bytes | None:
        """All of a document; None where there is none."""

    def update(self, name: PurePath, change: Change) -> bool:
        """Replaces a document by what `change` makes of it, durably; None is no document. False where that is equal.

        Nothing of another writer is lost: where one came between, `change` is called again with what that one wrote,
        even, after a long stop of this process, where its own change was made before: it must find what it did then.
        """

    def stamps(self, names: Iterable[PurePath]) -> list[str]:
        """One for each document, which changes whenever it does. Cheap: a bucket is asked once for all."""


class FolderDocuments:
    """Documents as files under a root."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)

    def where(self, name: PurePath) -> str:
        return str(self.layout.document(name))

    def names(self, folder: PurePath) -> list[PurePath]:
        return sorted(folder / path.name for path in self.layout.document(folder).glob("*.json") if path.is_file())

    def read(self, name: PurePath) -> bytes | None:
        try:
            return self.layout.document(name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def update(self, name: PurePath, change: Change) -> bool:
        path = self.layout.document(name)
        with exclusive(self.layout.document_lock(name)):
            before = self.read(name)
            after = change(before)
            if after == before:
                return False
            if after is None:
                path.unlink(missing_ok=True)
                return True
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, after)
            fsync(path.parent)
            return True

    def stamps(self, names: Iterable[PurePath]) -> list[str]:
        return [stamp_of(self.layout.document(name)) for name in names]


class BucketDocuments:
    """Documents as numbered records in a bucket."""

    def __init__(self, place: Blobs) -> None:
        self.place = place

    def where(self, name: PurePath) -> str:
        return f"{self.place.uri}/{_folder(name)}"

    def names(self, folder: PurePath) -> list[PurePath]:
        found = {PurePath(entry.name).relative_to(FOLDER).parent for entry in self.place.names(_folder(folder))}
        return sorted(name for name in found if name.parent == folder)

    def read(self, name: PurePath) -> bytes | None:
        return self._newest(name)[1]

    def update(self, name: PurePath, change: Change) -> bool:
        while True:
            number, before = self._newest(name)
            after = change(before)
            if after == before:
                return False
            failpoint("document.changed", name)
            created = self.place.create(_record(name, number + 1), _content(after))
            failpoint("document.created", name)
            numbers = self._numbers(name)
            if created and numbers[-1] == number + 1:
                for old in numbers[:-1]:
                    self.place.remove(_record(name, old))
                    failpoint("document.trimmed", name)
                return True
            time.sleep(PAUSE * random.random())

    def stamps(self, names: Iterable[PurePath]) -> list[str]:
        newest = {entry.name.rpartition("/")[0]: entry for entry in self.place.names(FOLDER)}  # the last of each
        entries = [newest.get(_folder(name)) for name in names]
        return [f"{entry.name} {entry.tag}" if entry else "" for entry in entries]

    def _newest(self, name: PurePath) -> tuple[int, bytes | None]:
        """Number and content of the record that counts; 0 where there never was one."""
        for _ in range(TRIES):
            numbers = self._numbers(name)
            if not numbers:
                return 0, None
            failpoint("document.listed", name)
            content = self.place.read(_record(name, numbers[-1]))
            if content is not None:
                return numbers[-1], _document(content)
            time.sleep(PAUSE * random.random())
        raise StorageFailed(
            f"{self.where(name)}: each of {TRIES} records that were listed was gone when it was read: either many "
            "processes write at once, or the server lists what is not there; run the same command to resume"
        )

    def _numbers(self, name: PurePath) -> list[int]:
        last = (entry.name.rpartition("/")[2] for entry in self.place.names(_folder(name)))
        return sorted(int(part) for part in last if part.isdigit())


def _folder(name: PurePath) -> str:
    return f"{FOLDER}/{name.as_posix()}"


def _record(name: PurePath, number: int) -> str:
    return f"{_folder(name)}/{number:06d}"


def _content(document: bytes | None) -> bytes:
    """A record of a document; no two are equal, so that only one of two writers is told that its own lies there."""
    start = REMOVED if document is None else THERE
    return start + uuid.uuid4().hex.encode() + b"\n" + (document or b"")


def _document(content: bytes) -> bytes | None:
    """What a record holds; all its bytes where it is no record: its reader finds them damaged."""
    first, _, document = content.partition(b"\n")
    if first.startswith(REMOVED) and not document:
        return None
    return document if first.startswith(THERE) else content
