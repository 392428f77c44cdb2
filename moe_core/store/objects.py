"""Artifacts on any `Blobs`, complete or invisible without a rename: the same promises as those of `Store`.

    <asset>[/<key>]/<version>/artifact.json               put-if-absent: the commit; names its attempt
    <asset>[/<key>]/<version>/at-<attempt>/<file>         seen by nobody before
    <asset>[/<key>]/.lease-<version>/                     who builds it (leases.py)
    <asset>[/<key>]/.work-<version>/<generation>/<step>-<SHA-256>    checkpoints, for the next builder on any machine

Of several that build one version at once all upload, one commits, and all get that one.
"""

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from moe_core.errors import CorruptArtifact, HardmoeError, Overtaken, StorageFailed
from moe_core.failpoints import failpoint
from moe_core.store.artifact import Spec, StageOutput
from moe_core.store.blobs import Blobs
from moe_core.store.documents import documents_of
from moe_core.store.files import errors_with_path, temporary_folder
from moe_core.store.hashing import Json, content_hash, file_hash, with_checksum, without_checksum
from moe_core.store.layout import MANIFEST, NAMES, WORK, Layout
from moe_core.store.leases import PACE, Holder, Lease, Pace, Told, exclusive, holder, nobody_is_told, shared

ATTEMPT, LEASE = "at-", ".lease-"  # before an attempt and a version
IN_USE = NAMES.in_use.as_posix()  # shared by all who build, alone for who deletes


@dataclass(frozen=True)
class Committed:
    """A complete artifact; its files are fetched when they are asked for."""

    place: Blobs = field(repr=False, compare=False)
    asset: str
    key: str | None
    version: str
    attempt: str  # whose files it has
    inputs: Mapping[str, str]
    content_hash: str  # as Artifact has it
    metadata: Mapping[str, Json]
    files: Mapping[str, str] = field(repr=False)  # name -> SHA-256
    code: str
    settings: Json
    made_at: float  # seconds since 1970, by the clock of the machine that built it

    @property
    def spec(self) -> Spec:
        """What it was made from."""
        return Spec(self.asset, self.key, self.code, self.settings, self.inputs)

    @property
    def base(self) -> str:
        """Folder of its files in the place."""
        return f"{_artifact(self.asset, self.key, self.version)}/{ATTEMPT}{self.attempt}"

    def file(self, name: str) -> Path:
        """A local path of a file of it, its bytes checked. Raises CorruptArtifact where they are others."""
        if name not in self.files:
            raise CorruptArtifact(f"{self.place.uri}/{self.base} has no file {name!r}: it holds {sorted(self.files)}")
        return self.place.fetch(f"{self.base}/{name}", self.files[name])

    def folder(self, name: str) -> Path:
        """A local path of a folder in it, all its files checked. Raises CorruptArtifact as `file` does."""
        found = [(file, self.file(file)) for file in self.files if file.startswith(f"{name}/")]
        if not found:
            raise CorruptArtifact(f"{self.place.uri}/{self.base} has no folder {name!r}")
        file, path = found[0]
        return path.parents[file.removeprefix(f"{name}/").count("/")]


@dataclass(frozen=True)
class Building:
    """That this process builds an artifact, and that nobody deletes meanwhile."""

    alone: Lease  # of the artifact
    in_use: Lease  # of the place, with all who build

    @property
    def generation(self) -> int:
        """Which builder of the artifact it is, from 1; 0 in a folder."""
        return self.alone.generation

    def check(self) -> None:
        """Raises Overtaken where another process builds it now, or took this one for dead and deleted."""
        self.alone.check()
        self.in_use.check()


@dataclass(frozen=True)
class Garbage:
    """Folders that no artifact names."""

    lost: list[str]  # of attempts and checkpoints beside a committed artifact: nobody will ever want them
    unfinished: list[str]  # of attempts of versions without one


class Work:
    """Checkpoints of an unfinished artifact: the next builder resumes from the newest, on any machine."""

    def __init__(self, place: Blobs, folder: str, lease: Building) -> None:
        self.place, self.folder, self.lease = place, folder, lease

    def save(self, step: int, file: Path) -> None:
        """Keeps a checkpoint in place of the earlier ones. Raises Overtaken where another process builds now."""
        self.lease.check()
        name = f"{self.folder}/{self.lease.generation:06d}/{step:012d}-{file_hash(file)}"
        failpoint("work.checked", name)
        self.place.upload(name, file)
        failpoint("work.saved", name)
        for entry in self.place.names(self.folder):
            if entry.name < name:
                self.place.remove(entry.name)

    def newest(self) -> tuple[int, Path] | None:
        """Step and local file of the newest checkpoint of all builders; a damaged one counts as none."""
        for entry in sorted(self.place.names(self.folder), reverse=True):
            step, _, sha256 = entry.name.rpartition("/")[2].partition("-")
            with suppress(CorruptArtifact):
                return int(step), self.place.fetch(entry.name, sha256)
        return None


class Objects:
    """The artifacts of one study in a place; `root` is a local folder, for logs and what is being written."""

    def __init__(self, place: Blobs, root: Path) -> None:
        self.place, self.root = place, root
        self.layout = Layout(root)
        self.documents = documents_of(place)

    def find(self, spec: Spec) -> Committed | None:
        """The artifact of `spec`; None where it has not been built. Raises CorruptArtifact for a damaged manifest."""
        return self.get(spec.asset, spec.key, spec.version)

    def get(self, asset: str, key: str | None, version: str) -> Committed | None:
        """One version of an asset's partition; None where it is not there."""
        name = _manifest(asset, key, version)
        data = self.place.read(name)
        if data is None:
            return None
        try:
            return Committed(self.place, **without_checksum(data))
        except (ValueError, TypeError) as error:
            folder = f"{self.place.uri}/{_artifact(asset, key, version)}"
            raise CorruptArtifact(
                f"{self.place.uri}/{name} is damaged ({error}): delete {folder} and run again", name
            ) from None

    def versions(self, asset: str) -> list[tuple[str | None, str]]:
        """(key, version) of all complete artifacts of an asset, by names alone."""
        return [(key, version) for (key, version), parts in self._parts(asset).items() if MANIFEST in parts]

    def keys(self, asset: str) -> list[str]:
        """Partition keys of an asset, of unfinished artifacts too."""
        return sorted({key for key, _ in self._parts(asset) if key is not None})

    @contextmanager
    def building(
        self, spec: Spec, on_wait: Told = nobody_is_told, who: Holder | None = None, pace: Pace = PACE
    ) -> Iterator[Building]:
        """Keeps others from building this artifact and from deleting any; waits while another process builds it.

        Look for the artifact again inside the block: the other process may have built it.
        """
        alone = exclusive(self.place, _lease(spec), True, who, on_wait, pace)
        with shared(self.place, IN_USE, who, on_wait, pace) as in_use, alone as lease:
            yield Building(lease, in_use)

    def keeping(self, who: Holder | None = None, pace: Pace = PACE) -> AbstractContextManager[Lease]:
        """Keeps others from deleting artifacts; waits while a process does."""
        return shared(self.place, IN_USE, who, pace=pace)

    def deleting(
        self, wait: bool = True, who: Holder | None = None, pace: Pace = PACE
    ) -> AbstractContextManager[Lease]:
        """Keeps all others from building. Raises LockHeld where something is being built and `wait` is False."""
        return exclusive(self.place, IN_USE, wait, who, pace=pace)

    def builder(self, spec: Spec) -> Holder | None:
        """Who builds an artifact now; None where nobody does."""
        return holder(self.place, _lease(spec))

    def work(self, spec: Spec, lease: Building) -> Work:
        """Checkpoints of an artifact that is being built."""
        return Work(self.place, _work(spec.asset, spec.key, spec.version), lease)

    def make(
        self, spec: Spec, write: Callable[[Path], StageOutput], lease: Building | None = None, replace: bool = False
    ) -> Committed:
        """Calls `write(folder)` with a local folder and commits what it wrote; returns what was committed first.

        With `replace` the artifact that there is stays until then and is replaced. Raises what `write` raises,
        Overtaken where another process has the lease by then, and what `Blobs` raise: then the artifact may have
        been committed all the same.
        """
        name = _manifest(spec.asset, spec.key, spec.version)
        old = self.place.read(name) if replace else None  # it may be damaged
        attempt = uuid.uuid4().hex
        base = f"{_artifact(spec.asset, spec.key, spec.version)}/{ATTEMPT}{attempt}"
        with temporary_folder(self.layout.scratch) as folder:
            failpoint("artifact.begun", spec.name)
            with errors_with_path(folder):
                written = write(folder)
            failpoint("artifact.written", spec.name)
            try:
                files = self._upload(folder, base)
                failpoint("artifact.uploaded", spec.name)
                if lease is not None:
                    lease.check()
            except StorageFailed:
                raise
            except BaseException:  # nothing names these files, nor will
                with suppress(HardmoeError, OSError):
                    self.place.remove(base)
                raise
        manifest = json.dumps(with_checksum(_manifest_of(spec, attempt, written, files)), indent=1).encode()
        failpoint("artifact.manifest", spec.name)
        if old is not None and self.place.read(name) == old:
            self.place.remove(name)
        is_mine = self.place.create(name, manifest)
        failpoint("artifact.committed", spec.name)
        if is_mine and lease is not None:
            self._take_back_if_late(lease, name, manifest, base)
        if not is_mine:
            self.place.remove(base)
        elif old is not None:
            with suppress(ValueError, TypeError):  # the files of a damaged one are garbage
                self.place.remove(Committed(self.place, **without_checksum(old)).base)
        self.place.remove(_work(spec.asset, spec.key, spec.version))
        made = self.find(spec)
        assert made is not None
        return made

    def _take_back_if_late(self, lease: Building, name: str, manifest: bytes, base: str) -> None:
        """Removes what was committed after others deleted, such as posts that were taken down: they did not see it.

        Raises Overtaken then. A process that is killed before leaves a manifest, whose files are gone: see `garbage`.
        """
        try:
            lease.in_use.check()
        except Overtaken:
            if self.place.read(name) == manifest:
                self.place.remove(name)
            self.place.remove(base)
            raise

    def remove(self, artifact: Committed) -> None:
        """Removes an artifact; no reader finds it from the first step on."""
        there = self.find(artifact.spec)
        if there and there.attempt == artifact.attempt:
            self.place.remove(_manifest(artifact.asset, artifact.key, artifact.version))
        failpoint("artifact.removed", artifact.spec.name)
        self.place.remove(artifact.base)

    def garbage(self, asset: str) -> Garbage:
        """What interrupted builds of an asset left; nothing of versions whose manifest is damaged.

        To be asked, and removed, inside `deleting`: what somebody builds counts, too. A builder that is stopped before
        its commit, for longer than all that takes, takes it back when it wakes up. One that is killed in between leaves
        a manifest whose files are gone: that is garbage, too.
        """
        lost, unfinished = [], []
        for (key, version), parts in self._parts(asset).items():
            base = _artifact(asset, key, version)
            attempts = {f"{base}/{part}" for part in parts if part.startswith(ATTEMPT)}
            with suppress(CorruptArtifact):
                there = self.get(asset, key, version) if MANIFEST in parts else None
                if there is None:
                    unfinished += sorted(attempts)
                elif there.files and there.base not in attempts:
                    lost.append(base)
                else:
                    lost += sorted(attempts - {there.base})
                    lost += [_work(asset, key, version)] if WORK in parts else []
        return Garbage(lost, unfinished)

    def _parts(self, asset: str) -> dict[tuple[str | None, str], set[str]]:
        """(key, version) -> what there is of it: the manifest, at-<attempt>, .work-, .lease-."""
        found: dict[tuple[str | None, str], set[str]] = {}
        for entry in self.place.names(asset):
            parts = entry.name.split("/")[1:]
            for number, part in enumerate(parts[:2]):
                hidden = next((start for start in (WORK, LEASE) if part.startswith(start)), "")
                inner = parts[number + 1] if len(parts) > number + 1 else ""
                if hidden or inner == MANIFEST or inner.startswith(ATTEMPT):
                    place = (parts[0] if number else None, part.removeprefix(hidden))
                    found.setdefault(place, set()).add(hidden or inner)
                    break
        return found

    def _upload(self, folder: Path, base: str) -> dict[str, str]:
        files = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            files[name] = file_hash(path)
            failpoint("artifact.uploading", name)
            self.place.upload(f"{base}/{name}", path)
        return files


def _manifest_of(spec: Spec, attempt: str, written: StageOutput, files: Mapping[str, str]) -> dict[str, Json]:
    return {
        "asset": spec.asset,
        "key": spec.key,
        "version": spec.version,
        "attempt": attempt,
        "code": spec.code,
        "settings": spec.settings,
        "inputs": dict(spec.inputs),
        "content_hash": content_hash(dict(written.content) if written.content is not None else files),
        "metadata": dict(written.metadata),
        "files": files,
        "made_at": time.time(),
    }


def _artifact(asset: str, key: str | None, version: str) -> str:
    return NAMES.artifact(asset, key, version).as_posix()


def _manifest(asset: str, key: str | None, version: str) -> str:
    return NAMES.manifest(asset, key, version).as_posix()


def _work(asset: str, key: str | None, version: str) -> str:
    return NAMES.work(asset, key, version).as_posix()


def _lease(spec: Spec) -> str:
    return _lease_of(spec.asset, spec.key, spec.version)


def _lease_of(asset: str, key: str | None, version: str) -> str:
    return (NAMES.partition(asset, key) / f"{LEASE}{version}").as_posix()
