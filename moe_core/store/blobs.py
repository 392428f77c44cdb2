"""Bytes under names: what the store asks of the place where it lies, and that on a local folder.

A name is a relative path with "/" between its parts, such as expert/e003/<version>/artifact.json. No name is a folder
of another one. `Bucket` (bucket.py) gives the same on an object store; `place_of` (places.py) chooses between them.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from moe_core.errors import CorruptArtifact
from moe_core.store.files import errors_with_path, fsync, part_of, remove_atomically, size_of, write_bytes
from moe_core.store.hashing import file_hash


class Entry(NamedTuple):
    """A blob that there is. `tag` changes whenever its bytes do."""

    name: str
    size: int  # bytes
    tag: str


class Blobs(Protocol):
    """Reads, lists, writes and removes blobs. A blob is complete or is not there, whatever is killed meanwhile.

    Methods raise OSError (a folder), or StorageFailed and BadSetting (an object store: unreachable, or refused).
    """

    @property
    def uri(self) -> str:
        """Where it lies, as messages name it."""

    def with_patience(self, seconds: float) -> "Blobs":
        """The same place, whose requests end after so long, in error where there was no answer."""

    def read(self, name: str) -> bytes | None:
        """All bytes of a blob; None where there is none."""

    def create(self, name: str, data: bytes) -> bool:
        """Writes a blob where there is none. True exactly where `data` lies there afterwards.

        Of several writers with different data one gets True, so what is to be won must hold something of one's own.
        After an error the data may be there or not, or come there later.
        """

    def write(self, name: str, data: bytes) -> None:
        """Writes or replaces a blob; the last one counts. After an error the old bytes lie there, or the new ones."""

    def upload(self, name: str, file: Path) -> None:
        """Writes a blob of any size from a local file, as `write` does."""

    def hash(self, name: str) -> str | None:
        """SHA-256 of the bytes of a blob where it lies, past any cache; None where there is none."""

    def fetch(self, name: str, sha256: str) -> Path:
        """A local file with the bytes of a blob, checked, not to be changed. Its path ends in `name`.

        It stays until `release`, or until this process ends. Raises CorruptArtifact where there is no such blob or
        its bytes are others, CacheFull.
        """

    def release(self, path: Path) -> None:
        """Gives up a file of `fetch`, so that its room in a cache may be used; what is open stays open."""

    def discard(self, sha256: str) -> None:
        """Removes a file from this machine's cache, which nobody will fetch again."""

    def release_all(self) -> None:
        """Gives up all files that this process fetched."""

    def names(self, folder: str = "") -> Iterator[Entry]:
        """All blobs under a folder, at any depth, by name; none where there is no such folder."""

    def size(self, name: str) -> int:
        """Bytes of a blob, and of all that lie under that name as a folder."""

    def remove(self, name: str) -> None:
        """Removes the blob of that name, and all that lie under it as a folder; there may be none.

        Of several blobs a reader may see some for a while.
        """


class Folder:
    """Blobs as files under a local folder, or one that several machines mount.

    A store that is a folder (store.py) reads, measures and removes by it. The rest serves tests of what else runs in a
    bucket alone: artifacts by put-if-absent, leases, documents in records.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def uri(self) -> str:
        return str(self.root)

    def path(self, name: str) -> Path:
        """Where a blob lies."""
        assert name.strip("/") == name != "", name
        assert ".." not in name.split("/"), name
        return self.root / name

    def with_patience(self, seconds: float) -> "Folder":
        return self

    def read(self, name: str) -> bytes | None:
        try:
            return self.path(name).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def create(self, name: str, data: bytes) -> bool:
        path = self.path(name)
        with _unfinished(path) as part:
            write_bytes(part, data)
            try:
                os.link(part, path)
            except FileExistsError:  # over a network it may be the second answer to a link that was made
                return self.read(name) == data
        fsync(path.parent)
        return True

    def write(self, name: str, data: bytes) -> None:
        path = self.path(name)
        with _unfinished(path) as part:
            write_bytes(part, data)
            part.replace(path)
        fsync(path.parent)

    def upload(self, name: str, file: Path) -> None:
        path = self.path(name)
        with _unfinished(path) as part:
            with errors_with_path(path):
                shutil.copyfile(file, part)
            fsync(part)
            part.replace(path)
        fsync(path.parent)

    def hash(self, name: str) -> str | None:
        path = self.path(name)
        return file_hash(path) if path.is_file() else None

    def fetch(self, name: str, sha256: str) -> Path:
        path = self.path(name)
        if not path.is_file():
            raise CorruptArtifact(f"{path} is missing", path)
        if file_hash(path) != sha256:
            raise CorruptArtifact(f"{path} is not the file that was written (SHA-256 differs from its manifest)", path)
        return path

    def release(self, path: Path) -> None:
        pass

    def discard(self, sha256: str) -> None:
        pass

    def release_all(self) -> None:
        pass

    def names(self, folder: str = "") -> Iterator[Entry]:
        top = self.path(folder) if folder else self.root
        found = (Path(parent, file) for parent, _, files in os.walk(top) for file in files)
        for path in sorted(path for path in found if not (path.name.startswith(".") and path.suffix == ".part")):
            try:
                state = path.stat()
            except FileNotFoundError:  # removed meanwhile
                continue
            name = path.relative_to(self.root).as_posix()
            yield Entry(name, state.st_size, f"{state.st_ino}-{state.st_mtime_ns}-{state.st_size}")

    def size(self, name: str) -> int:
        return size_of(self.path(name))

    def remove(self, name: str) -> None:
        remove_atomically(self.path(name))


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """A name beside `path` for what is not complete; each call gives another one, for threads of one process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}"))
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)
