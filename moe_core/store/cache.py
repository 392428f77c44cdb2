"""A node's cache of files from an object store, by their SHA-256, with a bound in bytes.

    <cache>/sha256/<2>/<64>     the files
    <cache>/parts/<64>          files being fetched; the process that fetches one holds a lock on it
    <cache>/in-use/<process>/   hard links to the files that a process uses, under the names that they have in the store

A file with a second link is in use and stays; of the others the least recently used go first. A process holds a lock
on its folder of links: the kernel gives it up when the process ends, so that the next one removes the folder. All of it
lies on one local file system and is safe among processes and containers of one machine.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from moe_core.errors import CacheFull, CorruptArtifact
from moe_core.failpoints import failpoint
from moe_core.store.hashing import file_hash
from moe_core.store.locks import exclusive

GIB = 1 << 30
FOLDER = "HARDMOE_CACHE"  # environment variable: where the cache lies
Read = Callable[[int], tuple[bytes, int]]  # bytes of a blob from a position on, and how many it has in all


def default_folder() -> Path:
    """Where the cache of this node lies: HARDMOE_CACHE, else the user's folder for caches."""
    if named := os.environ.get(FOLDER):
        return Path(named).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hardmoe"


class Cache:
    """Files under `root`, of `limit` bytes in all; nothing is written before the first is fetched."""

    def __init__(self, root: Path, limit: int = 50 * GIB) -> None:
        self.root, self.limit = root, limit
        self._links: Path | None = None  # of this process
        self._process = 0
        self._linked: dict[str, str] = {}  # names of links, and what each has

    def fetch(self, name: str, sha256: str, read: Read) -> Path:
        """A file with that SHA-256, under a path that ends in `name`; reads it where the cache has none.

        Raises what `read` raises, CorruptArtifact where it reads other bytes, CacheFull.
        """
        path = self._own_links() / name
        if self._linked.get(name) == sha256 and path.is_file():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        held = path.with_name(f".{uuid.uuid4().hex}")
        try:
            if not self._take(sha256, held):
                self._fetch(name, sha256, read, held)
            held.replace(path)
            self._linked[name] = sha256
        finally:
            held.unlink(missing_ok=True)
        return path

    def release(self, path: Path) -> None:
        """Gives up a file of `fetch`."""
        path.unlink(missing_ok=True)

    def discard(self, sha256: str) -> None:
        """Removes a file; processes that use it keep it until they end."""
        if self._entry(sha256).exists():
            with self._lock():
                self._entry(sha256).unlink(missing_ok=True)

    def release_all(self) -> None:
        """Gives up all files of `fetch`."""
        if self._links is not None and self._process == os.getpid():
            for path in self._links.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            self._linked.clear()

    def size(self) -> int:
        """Bytes of all files, of those that are being fetched too."""
        return sum(state.st_size for _, state in self._states("sha256", "parts"))

    def _entry(self, sha256: str) -> Path:
        return self.root / "sha256" / sha256[:2] / sha256

    def _take(self, sha256: str, held: Path) -> bool:
        """Links what the cache has to `held`; False where it has none. A damaged file is thrown away."""
        entry = self._entry(sha256)
        try:
            os.link(entry, held)
        except FileNotFoundError:
            return False
        if file_hash(held) == sha256:
            with suppress(FileNotFoundError):
                os.utime(entry)
            return True
        with self._lock():
            if entry.exists() and entry.samefile(held):
                entry.unlink()
        held.unlink()
        return False

    def _fetch(self, name: str, sha256: str, read: Read, held: Path) -> None:
        entry, part = self._entry(sha256), self.root / "parts" / sha256
        with _locked(part) as file:
            if self._take(sha256, held):  # another process fetched it meanwhile
                part.unlink()
                return
            try:
                self._copy(file, sha256, read)
            except OSError as error:
                part.unlink(missing_ok=True)
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise CacheFull(
                        f"the disk of the cache {self.root} is full, no room for {name}: free some, set cache_gib "
                        f"below {self.size() / GIB:.3g}, or name a folder on another disk in {FOLDER}"
                    ) from None
                raise
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            entry.parent.mkdir(parents=True, exist_ok=True)
            os.fchmod(file, 0o444)
            os.link(part, held)  # before it is an entry that others may remove
            part.replace(entry)

    def _copy(self, file: int, sha256: str, read: Read) -> None:
        digest, position, size = hashlib.sha256(), 0, -1
        while position != size:
            data, size = read(position)
            if position == 0:
                self._make_room(file, size)
            if not data and size:
                raise CorruptArtifact(f"a file of {size} bytes ended after {position}: fetch it again")
            failpoint("cache.copy", self.root)
            view = memoryview(data)
            while view:
                view = view[os.write(file, view) :]
            digest.update(data)
            position += len(data)
        if digest.hexdigest() != sha256:
            raise CorruptArtifact(f"wanted a file with SHA-256 {sha256}, got {digest.hexdigest()}")

    def _make_room(self, file: int, size: int) -> None:
        """Gives the file its size, by which it counts, after others went. Raises CacheFull."""
        with self._lock():
            self._sweep()
            entries = sorted(self._states("sha256"), key=lambda entry: entry[1].st_mtime_ns)
            left = self.limit - size - self.size()
            for path, state in entries:
                if left >= 0:
                    break
                if state.st_nlink == 1:
                    path.unlink()
                    left += state.st_size
            if left < 0:
                raise CacheFull(
                    f"the cache {self.root} may hold {self.limit / GIB:.3g} GiB, of which processes use "
                    f"{self.size() / GIB:.3g}, and {size / GIB:.3g} more are wanted: raise cache_gib"
                )
            os.ftruncate(file, size)

    def _sweep(self) -> None:
        """Removes what processes that ended left: links, and parts of files."""
        for path in [*(self.root / "in-use").glob("*"), *(self.root / "parts").glob("*")]:
            with suppress(FileNotFoundError):
                handle = os.open(path, os.O_RDONLY)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                except BlockingIOError:
                    pass
                finally:
                    os.close(handle)

    def _states(self, *folders: str) -> Iterator[tuple[Path, os.stat_result]]:
        for folder in folders:
            for path in (self.root / folder).rglob("*"):
                with suppress(FileNotFoundError):
                    if path.is_file():
                        yield path, path.stat()

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with exclusive(self.root / ".lock"):
            yield

    def _own_links(self) -> Path:
        """The folder of links of this process; a forked one gets another."""
        if self._links is None or self._process != os.getpid():
            with self._lock():
                links = self.root / "in-use" / uuid.uuid4().hex
                links.mkdir(parents=True)
                handle = os.open(links, os.O_RDONLY | os.O_CLOEXEC)
                fcntl.flock(handle, fcntl.LOCK_EX)
            self._links, self._process, self._linked = links, os.getpid(), {}
            weakref.finalize(self, _give_up, handle, links, os.getpid())
        return self._links


def _give_up(handle: int, links: Path, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(links, ignore_errors=True)
    os.close(handle)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """A file that this process alone has, empty; waits for another process that has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if _is_at(path, handle):
                os.ftruncate(handle, 0)
                yield handle
                return
        finally:
            os.close(handle)


def _is_at(path: Path, handle: int) -> bool:
    """Whether the open file still has that name: another process may have finished or removed it."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False
