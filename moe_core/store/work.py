"""What an unfinished build leaves for the next attempt: a folder with checkpoints.

In a store that is a folder it stays where it is. For a bucket it is a local folder whose checkpoints travel:

    <base>/<generation>/<number>.json     a snapshot of the folder: SHA-256 of each file
    <base>/<generation>/<SHA-256>         a file

A generation is one builder's, so a builder that was overtaken and does not know it yet spoils nothing of the next.
"""

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from moe_core.errors import CorruptArtifact, StorageFailed
from moe_core.failpoints import failpoint
from moe_core.store.blobs import Blobs
from moe_core.store.files import errors_with_path, hidden_name
from moe_core.store.hashing import file_hash, with_checksum, without_checksum

REPLACED, APPENDED = "*.safetensors", "*.jsonl"  # files that travel: checkpoints, replaced in one move, and logs


class Work(Protocol):
    """The folder in which an artifact is being built, from one attempt to the next."""

    folder: Path

    def publish(self) -> None:
        """Lets other machines resume from the checkpoints that lie in the folder now; does not wait for that.

        To be called often: nothing happens while there is nothing new. Raises Overtaken where another process builds.
        """


class LocalWork:
    """Lies where the next attempt finds it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def publish(self) -> None:
        pass


class Check(Protocol):
    """What a builder holds."""

    @property
    def generation(self) -> int: ...

    def check(self) -> None:
        """Raises Overtaken where another process has it."""


class TravelingWork:
    """A local folder whose checkpoints are saved under `base` of a place."""

    def __init__(self, place: Blobs, base: str, folder: Path, lease: Check | None) -> None:
        self.place, self.base, self.folder, self.lease = place, base, folder, lease
        self._own = f"{base}/{lease.generation if lease else 0:06d}"
        self._number, self._uploaded = 0, set[str]()  # SHA-256
        self._saved: dict[str, tuple[int, int]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._saving: Future[None] | None = None

    def restore(self) -> None:
        """Fills the folder with the newest snapshot of all builders; a damaged one counts as none."""
        names = [entry.name for entry in self.place.names(self.base) if entry.name.endswith(".json")]
        for name in sorted(names, reverse=True):
            with suppress(CorruptArtifact, ValueError):
                files = without_checksum(self.place.read(name) or b"")
                at = name.rpartition("/")[0]
                fetched = {file: self.place.fetch(f"{at}/{sha256}", sha256) for file, sha256 in files.items()}
                for file, path in fetched.items():
                    with errors_with_path(self.folder / file):
                        shutil.copyfile(path, self.folder / file)
                    self.place.release(path)
                self._saved = self._state()
                return

    def publish(self) -> None:
        if self._saving and not self._saving.done():
            return
        saving, self._saving = self._saving, None
        if saving:
            with suppress(StorageFailed):  # the next one may get there
                saving.result()
        if self._state() != self._saved:
            self._saving = self._thread.submit(self.save)

    def save(self) -> None:
        """Saves the checkpoints in place of all earlier ones. Raises Overtaken where another process builds now."""
        if self.lease:
            self.lease.check()
        failpoint("work.checked", self._own)
        with self._snapshot() as (state, folder):
            files = {}
            for path in sorted(folder.iterdir()):
                files[path.name] = sha256 = file_hash(path)
                if sha256 not in self._uploaded:
                    self.place.upload(f"{self._own}/{sha256}", path)
                    self._uploaded.add(sha256)
        self._number += 1
        name = f"{self._own}/{self._number:09d}.json"
        self.place.write(name, json.dumps(with_checksum(files)).encode())
        self._saved = state
        failpoint("work.saved", name)
        kept = {name, *(f"{self._own}/{sha256}" for sha256 in files.values())}
        for entry in self.place.names(self.base):
            if entry.name < f"{self._own}0" and entry.name not in kept:  # of earlier builders, or our own
                self.place.remove(entry.name)
        self._uploaded &= set(files.values())

    def close(self) -> None:
        """Waits for a save that has begun: what comes later would be garbage."""
        self._thread.shutdown()

    def _state(self) -> dict[str, tuple[int, int]]:
        """Which checkpoints there are; one that is replaced is another file."""
        found = {}
        for path in self.folder.glob(REPLACED):
            with suppress(FileNotFoundError):
                status = path.stat()
                found[path.name] = status.st_ino, status.st_mtime_ns
        return found

    @contextmanager
    def _snapshot(self) -> Iterator[tuple[dict[str, tuple[int, int]], Path]]:
        """A folder with the checkpoints of one moment, while several processes replace and remove them."""
        folder = hidden_name(self.folder)
        try:
            while True:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                before = self._state()
                with suppress(FileNotFoundError):
                    for name in before:
                        os.link(self.folder / name, folder / name)
                    if self._state() == before:
                        break
            for log in self.folder.glob(APPENDED):  # of the same moment or later: steps may be in it twice
                shutil.copyfile(log, folder / log.name)
            yield before, folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
