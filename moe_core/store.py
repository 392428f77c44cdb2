"""The store: immutable, content-addressed artefacts under one root, complete or invisible.

    <root>/<asset>[/<key>]/<version>/artefact.json + files

A version is a hash of what the artefact is made from, so that what exists already is found before it is made. An
artefact is written under a temporary name, flushed to the disk, and renamed: a killed process leaves a temporary folder
that no reader sees and the next writer removes.
"""

import errno
import hashlib
import json
import os
import shutil
import socket
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_core.faults import point
from moe_core.processes import is_dead, this_process
from moe_core.text import shown

Json = Any
LISTED = 20  # versions in an error
VERSION_CHARACTERS = 20  # 80 bits of SHA-256: a billion artefacts collide with probability below 1e-6


def digest(value: Json) -> str:
    """Hash of a JSON value, the same for the same value in any key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:VERSION_CHARACTERS]


def with_seal(said: Mapping[str, Json]) -> dict[str, Json]:
    """With a digest of the rest, by which a reader knows that it is what was written."""
    return {**said, "seal": digest(dict(said))}


def without_seal(said: dict[str, Json]) -> dict[str, Json]:
    """What was sealed. Raises ValueError, or KeyError where there is no seal."""
    rest = dict(said)
    if rest.pop("seal") != digest(rest):
        raise ValueError("its seal does not match")
    return rest


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Plan:
    """What an artefact is to be made from; `version` follows from it."""

    asset: str
    key: str | None  # partition, None where the asset has none
    code: str  # version of the code that makes it
    settings: Json
    inputs: Mapping[str, str]  # name of what is read -> its version

    @property
    def version(self) -> str:
        return digest(
            {
                "asset": self.asset,
                "key": self.key,
                "code": self.code,
                "settings": self.settings,
                "inputs": dict(self.inputs),
            }
        )

    @property
    def name(self) -> str:
        return self.asset if self.key is None else f"{self.asset}:{self.key}"


@dataclass(frozen=True)
class Artefact:
    """A complete artefact in the store."""

    path: Path
    asset: str
    key: str | None
    version: str
    inputs: Mapping[str, str]
    digest: str  # of its content, without logs and times: equal for equal results
    metadata: Mapping[str, Json]
    files: Mapping[str, str] = field(repr=False)
    code: str = ""  # version of the code that made it
    settings: Json = None  # those that it was made with

    @property
    def made_at(self) -> float:
        """Seconds since 1970, by the clock of then."""
        return (self.path / "artefact.json").stat().st_mtime

    def file(self, name: str) -> Path:
        """A file of it, after its bytes were checked. Raises ValueError when they are not those that were written."""
        path = self.path / name
        wanted = self.files.get(name)
        if wanted is None:
            raise ValueError(f"{self.path} has no file {name!r}: it holds {sorted(self.files)}")
        if not path.is_file() or file_digest(path) != wanted:
            raise ValueError(
                f"{path} is not the file that was written (SHA-256 differs from its manifest): "
                f"delete the folder {self.path} and run again"
            )
        return path

    def folder(self, name: str) -> Path:
        """A folder in it, after the bytes of all its files were checked. Raises ValueError as `file` does."""
        for file in self.files:
            if file.startswith(f"{name}/"):
                self.file(file)
        return self.path / name


def full_version(start: str, there: Iterable[str], what: str) -> str:
    """The one version that begins with `start`. Raises ValueError, which lists those that do; all where none does."""
    every = sorted(there)
    if start in every:
        return start
    found = [version for version in every if version.startswith(start)]
    if len(found) == 1 and start:  # an unset variable of a shell names none
        return found[0]
    listed = found or every
    names = ", ".join(listed[:LISTED]) + (f" and {len(listed) - LISTED} more" if len(listed) > LISTED else "")
    raise ValueError(
        f"{len(found)} versions of {what} begin with {shown(start)!r}: "
        + (f"{names}: give more of its characters" if found else f"there are {names or 'none'}")
    )


class Missing(ValueError):
    """Another artefact, of this name, must be made first."""

    name = ""


class Store:
    """The artefacts of one study under `root`, a local folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, asset: str, key: str | None) -> Path:
        return self.root / asset if key is None else self.root / asset / key

    def find(self, plan: Plan) -> Artefact | None:
        """The artefact of `plan`, or None where it has not been made."""
        return self.read(self.folder(plan.asset, plan.key) / plan.version)

    def need(self, plan: Plan) -> Artefact:
        """The artefact of `plan`. Raises Missing, which names the asset to make first."""
        found = self.find(plan)
        if found is None:
            why = f"{plan.name} {plan.version} is missing: materialise {plan.asset} first (`hardmoe run`)"
            error = Missing(why)
            error.name = plan.name
            raise error
        return found

    def read(self, path: Path) -> Artefact | None:
        """The artefact in a folder; None where there is none. Raises ValueError for a damaged manifest."""
        try:
            text = (path / "artefact.json").read_text("utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            said = without_seal(json.loads(text))
            return Artefact(
                path=path,
                asset=said["asset"],
                key=said["key"],
                version=said["version"],
                inputs=said["inputs"],
                digest=said["digest"],
                metadata=said["metadata"],
                files=said["files"],
                code=said["code"],
                settings=said["settings"],
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}/artefact.json is damaged ({error}): delete {path} and run again") from None

    def versions(self, asset: str, key: str | None) -> list[Artefact]:
        """All complete versions of an asset's partition."""
        folder = self.folder(asset, key)
        if not folder.is_dir():
            return []
        found = (self.read(p) for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith("."))
        return [artefact for artefact in found if artefact is not None]

    def everything(self, asset: str) -> list[Artefact]:
        """All complete artefacts of an asset, of keys that are gone too."""
        folder = self.root / asset
        if not folder.is_dir():
            return []
        found = (self.read(path.parent) for path in sorted(folder.rglob("artefact.json")))
        return [a for a in found if a is not None and self.folder(a.asset, a.key) / a.version == a.path]

    def work_folder(self, plan: Plan) -> Path:
        """Where checkpoints of an unfinished artefact lie, from one attempt to the next."""
        return self.folder(plan.asset, plan.key) / f".work-{plan.version}"

    def make(self, plan: Plan, write: Callable[[Path], "Written"], replace: bool = False) -> Artefact:
        """Calls `write(folder)` and commits what it wrote; whoever commits first wins, and all get that artefact.

        With `replace` what is there stays until then, and goes in its favour.
        """
        parent = self.folder(plan.asset, plan.key)
        parent.mkdir(parents=True, exist_ok=True)
        for path in dead_parts(parent):
            shutil.rmtree(path, ignore_errors=True)
        for path in dead_files(self.work_folder(plan)):
            path.unlink(missing_ok=True)
        final = parent / plan.version
        temporary = _part(parent)
        temporary.mkdir()
        try:
            point("artefact.begun", plan.name)
            with naming(temporary):
                written = write(temporary)
            point("artefact.written", plan.name)
            _seal(temporary, plan, written)
            point("artefact.sealed", plan.name)
            if replace and final.is_dir():
                take_away(final)
            try:
                temporary.rename(final)
            except OSError:
                if self.read(final) is None:
                    raise
            point("artefact.renamed", plan.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        to_disk(parent)
        point("artefact.committed", plan.name)
        shutil.rmtree(self.work_folder(plan), ignore_errors=True)
        made = self.read(final)
        assert made is not None
        return made

    def remove(self, artefact: Artefact) -> None:
        take_away(artefact.path)


@dataclass(frozen=True)
class Written:
    """What a stage says of what it wrote. `content` names the digests of results; a file left out of it is a log."""

    metadata: Mapping[str, Json]
    content: Mapping[str, str] | None = None  # None: every file counts


def _seal(folder: Path, plan: Plan, written: Written) -> None:
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        files[path.relative_to(folder).as_posix()] = file_digest(path)
        to_disk(path)
    for path in [p for p in folder.rglob("*") if p.is_dir()]:
        to_disk(path)
    said = {
        "asset": plan.asset,
        "key": plan.key,
        "version": plan.version,
        "code": plan.code,
        "settings": plan.settings,
        "inputs": dict(plan.inputs),
        "digest": digest(dict(written.content) if written.content is not None else files),
        "metadata": dict(written.metadata),
        "files": files,
    }
    write_text(folder / "artefact.json", json.dumps(with_seal(said), indent=1))
    to_disk(folder)


def write_text(path: Path, text: str) -> None:
    """Replaces a file's text in one move; a reader sees the old text or the new one."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces a file in one move; a reader sees the old bytes or the new ones, and a failure leaves the old."""
    part = part_of(path)
    try:
        with naming(path), open(part, "wb") as file:
            point("file.opened", path)
            half = len(data) // 2
            file.write(memoryview(data)[:half])
            file.flush()
            point("file.half", path)
            file.write(memoryview(data)[half:])
            file.flush()
            point("file.written", path)
            os.fsync(file.fileno())
        point("file.synced", path)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    point("file.renamed", path)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError that names no file, as that of a failing write or fsync, names this one."""
    try:
        yield
    except OSError as error:
        if error.errno is None and str(path) not in str(error):  # of Lance or Arrow: nothing but a text
            raise OSError(f"{path}: {error}") from error
        if error.errno is not None and not error.filename:
            error.filename = str(path)
        raise


def to_disk(path: Path) -> None:
    """Returns when the bytes of a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)


def _part(parent: Path) -> Path:
    """A name that no reader sees, and that says whose it is."""
    return parent / f".part-{socket.gethostname()}-{this_process()}-{uuid.uuid4().hex[:8]}"


def part_of(path: Path) -> Path:
    """Of a file that this process writes: what it is named until it is complete."""
    return path.with_name(f".{path.name}.{this_process()}.part")


def dead_parts(parent: Path) -> list[Path]:
    """Temporary folders whose process on this host is dead."""
    names = [(path, path.name.rsplit("-", 2)) for path in parent.glob(".part-*-*-*")]
    return [path for path, (host, process, _) in names if host == f".part-{socket.gethostname()}" and is_dead(process)]


def dead_files(folder: Path) -> list[Path]:
    """Unfinished files in a folder whose process on this machine is dead."""
    return [path for path in folder.glob(".*.part") if is_dead(path.name.split(".")[-2])]


def take_away(path: Path) -> None:
    """Removes a file or a folder; a folder is first out of sight: a reader sees the whole or nothing.

    What somebody else removed meanwhile is gone, and that is no error.
    """
    if path.is_dir():
        hidden = _part(path.parent)
        try:
            path.rename(hidden)
        except FileNotFoundError:
            return
        shutil.rmtree(hidden)
    else:
        path.unlink(missing_ok=True)


class Busy(ValueError):
    """Others hold what was wanted alone."""


@contextmanager
def exclusive(path: Path, wait: bool = True) -> Iterator[None]:
    """Holds a lock on `path` among the processes of this machine; it ends with the process that holds it.

    Raises Busy when it is held and `wait` is False.
    """
    import fcntl

    with _held(path, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)):
        yield


@contextmanager
def shared(path: Path) -> Iterator[None]:
    """Holds a lock that any number of processes may hold at once, but none while another holds it exclusively."""
    import fcntl

    with _held(path, fcntl.LOCK_SH):
        yield


@contextmanager
def _held(path: Path, how: int) -> Iterator[None]:
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, how)
        except BlockingIOError:
            raise Busy(
                f"{path} is held by another process: an artefact is being made; try again when its run has ended"
            ) from None
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def hold_open(path: Path, owner: object) -> None:
    """Holds a shared lock on a file for as long as `owner` lives, so that `not_open` says that it is in use; waits
    while the file is being removed. A file system without locks is used without.

    Raises FileNotFoundError where the file was removed.
    """
    import fcntl

    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    weakref.finalize(owner, os.close, handle)
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_SH)
    if not os.path.samestat(os.stat(path), os.fstat(handle)):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def not_open(path: Path, until: ExitStack) -> bool:
    """Whether no process of this machine has `hold_open` on the file, nor gets it until the end of `until`."""
    import fcntl

    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    until.callback(os.close, handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
