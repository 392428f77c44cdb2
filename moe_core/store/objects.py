"""Artifacts on any `Blobs`, complete or invisible without a rename: the same promises as those of `Store`.

    <asset>[/<key>]/<version>/artifact.json               put-if-absent: the commit; names its attempt
    <asset>[/<key>]/<version>/at-<attempt>/<file>         seen by nobody before
    <asset>[/<key>]/.lease-<version>/                     who builds it (leases.py)
    <asset>[/<key>]/.work-<version>/                      its checkpoints, for the next builder on any machine (work.py)

Of several that build one version at once all upload, one commits, and all get that one.
"""

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from moe_core.errors import CorruptArtifact, HardmoeError, Overtaken, StorageFailed
from moe_core.failpoints import failpoint
from moe_core.store.artifact import Artifact, Spec, StageOutput, manifest_of
from moe_core.store.blobs import Blobs
from moe_core.store.documents import BucketDocuments
from moe_core.store.files import errors_with_path, temporary_folder
from moe_core.store.hashing import file_hash, with_checksum, without_checksum
from moe_core.store.layout import MANIFEST, NAMES, WORK, Layout
from moe_core.store.leases import PACE, Lease, Pace, exclusive, holder, shared
from moe_core.store.leftovers import Leftover, left_at, local_leftovers
from moe_core.store.locks import Holder, Told, nobody_is_told
from moe_core.store.work import TravelingWork

AT_ONCE = 16  # manifests that are read at once
ATTEMPT, LEASE = "at-", ".lease-"  # before an attempt and a version
IN_USE = NAMES.in_use.as_posix()  # shared by all who build, alone for who deletes


@dataclass(frozen=True)
class Building:
    """That this process builds an artifact, and that nobody deletes meanwhile."""

    alone: Lease  # of the artifact
    in_use: Lease  # of the place, with all who build

    @property
    def generation(self) -> int:
        """Which builder of the artifact it is, from 1."""
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


class Objects:
    """The artifacts of one study in a place; `root` is a local folder, for logs and what is being written."""

    def __init__(self, place: Blobs, root: Path) -> None:
        self.place, self.root = place, root
        self.layout = Layout(root)
        self.documents = BucketDocuments(place)
        self._held: dict[str, Building] = {}  # versions that this process builds

    @property
    def uri(self) -> str:
        return self.place.uri

    def find(self, spec: Spec) -> Artifact | None:
        """The artifact of `spec`; None where it has not been built. Raises CorruptArtifact for a damaged manifest."""
        return self.get(spec.asset, spec.key, spec.version)

    def find_all(self, specs: Sequence[Spec]) -> list[Artifact | None]:
        """As `find`, of many at once."""
        with ThreadPoolExecutor(AT_ONCE) as readers:
            return [*readers.map(self.find, specs)]

    def get(self, asset: str, key: str | None, version: str) -> Artifact | None:
        """One version of an asset's partition; None where it is not there, or `version` is empty."""
        name = _manifest(asset, key, version)
        data = self.place.read(name) if version else None
        if data is None:
            return None
        try:
            return self._read(_artifact(asset, key, version), data)
        except (ValueError, TypeError, KeyError) as error:
            folder = f"{self.place.uri}/{_artifact(asset, key, version)}"
            raise CorruptArtifact(
                f"{self.place.uri}/{name} is damaged ({error}): delete {folder} and run again", name
            ) from None

    def _read(self, folder: str, manifest: bytes) -> Artifact:
        values = without_checksum(manifest)
        return Artifact(self.place, f"{folder}/{ATTEMPT}{values.pop('attempt')}", **values)

    def exists(self, asset: str, key: str | None, version: str) -> bool:
        """Whether it is complete; its manifest may be damaged."""
        return self.place.read(_manifest(asset, key, version)) is not None

    def listed(self, asset: str) -> list[tuple[str | None, str]]:
        """(key, version) of all complete artifacts of an asset, by names alone: their manifests may be damaged."""
        return [(key, version) for (key, version), parts in self._parts(asset).items() if MANIFEST in parts]

    def versions(self, asset: str, key: str | None) -> list[Artifact]:
        """All complete versions of an asset's partition."""
        return self._all(asset, [name for name in self.listed(asset) if name[0] == key])

    def everything(self, asset: str) -> list[Artifact]:
        """All complete artifacts of an asset, of keys that are gone too."""
        return self._all(asset, self.listed(asset))

    def _all(self, asset: str, names: list[tuple[str | None, str]]) -> list[Artifact]:
        with ThreadPoolExecutor(AT_ONCE) as readers:
            found = [*readers.map(lambda name: self.get(asset, *name), names)]
        return [artifact for artifact in found if artifact is not None]

    def keys(self, asset: str) -> list[str]:
        """Partition keys of an asset, of unfinished artifacts too."""
        return sorted({key for key, _ in self._parts(asset) if key is not None})

    @contextmanager
    def building(
        self, spec: Spec, by: str = "", on_wait: Told = nobody_is_told, pace: Pace = PACE
    ) -> Iterator[Building]:
        """Keeps others from building this artifact and from deleting any; waits while another process builds it.

        Look for the artifact again inside the block: the other process may have built it. Checkpoints and the commit
        ask inside it whether this process is still the one that builds. Files that were fetched are given up with it,
        or with the last of those that threads build at once.
        """
        who = Holder.here(by)
        alone = exclusive(self.place, _lease(spec), True, who, on_wait, pace)
        with shared(self.place, IN_USE, who, on_wait, pace) as in_use, alone as lease:
            self._held[spec.version] = building = Building(lease, in_use)
            try:
                yield building
            finally:
                del self._held[spec.version]
                if not self._held:  # another thread may build, and read what it fetched
                    self.place.release_all()  # or a process that builds much would keep all its inputs in the cache

    def keeping(self, pace: Pace = PACE) -> AbstractContextManager[Lease]:
        """Keeps others from deleting artifacts."""
        return shared(self.place, IN_USE, pace=pace)

    def deleting(self, wait: bool = True, pace: Pace = PACE) -> AbstractContextManager[Lease]:
        """Keeps others from building. Raises LockHeld where something is being built and `wait` is False."""
        return exclusive(self.place, IN_USE, wait, pace=pace)

    def leftovers(self, assets: Iterable[str], every_process: bool = False) -> Iterator[Leftover]:
        """What interrupted processes left, in the bucket and on this machine. To be asked inside `deleting`.

        On this machine what a process writes stays, unless `every_process`.
        """
        for asset in assets:
            garbage = self.garbage(asset)
            for name in (*garbage.lost, *garbage.unfinished):
                yield Leftover(self.place, name)
        for path in local_leftovers(self.layout, every_process):
            yield left_at(self.layout, path)

    def works(self, asset: str) -> Iterator[tuple[Leftover, str | None, str]]:
        """Checkpoints of an asset's artifacts, each with the key and the version of its artifact."""
        for (key, version), parts in self._parts(asset).items():
            if WORK in parts:
                yield Leftover(self.place, _work(asset, key, version)), key, version

    def remove_locks(self, assets: Iterable[str]) -> None:
        """Removes leases of builds that ended. To be called inside `deleting`: nobody takes one."""
        for asset in assets:
            for (key, version), parts in self._parts(asset).items():
                if LEASE in parts and holder(self.place, name := _lease_of(asset, key, version)) is None:
                    self.place.remove(name)

    def builder(self, spec: Spec) -> Holder | None:
        """Who builds an artifact now; None where nobody does."""
        return holder(self.place, _lease(spec))

    @contextmanager
    def work(self, spec: Spec) -> Iterator[TravelingWork]:
        """What the attempts of all machines left of an artifact, and where this one continues it."""
        with temporary_folder(self.layout.scratch) as folder:
            lease = self._held.get(spec.version)
            work = TravelingWork(self.place, _work(spec.asset, spec.key, spec.version), folder, lease)
            try:
                work.restore()
                yield work
            finally:
                work.close()

    def make(self, spec: Spec, write: Callable[[Path], StageOutput], replace: bool = False) -> Artifact:
        """Calls `write(folder)` with a local folder and commits what it wrote; returns what was committed first.

        With `replace` the artifact that there is stays until then and is replaced. Raises what `write` raises,
        Overtaken where another process builds it by then, and what `Blobs` raise: then the artifact may have
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
                if lease := self._held.get(spec.version):
                    lease.check()
            except StorageFailed:
                raise
            except BaseException:  # nothing names these files, nor will
                with suppress(HardmoeError, OSError):
                    self.place.remove(base)
                raise
        values = manifest_of(spec, written, files) | {"attempt": attempt, "made_at": time.time()}
        manifest = json.dumps(with_checksum(values), indent=1).encode()
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
            with suppress(ValueError, TypeError, KeyError):  # the files of a damaged one are garbage
                self.place.remove(self._read(_artifact(spec.asset, spec.key, spec.version), old).base)
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

    def remove(self, artifact: Artifact) -> None:
        """Removes an artifact, and copies of it on this machine; no reader finds it from the first step on."""
        there = self.find(artifact.spec)
        if there and there.base == artifact.base:
            self.place.remove(_manifest(artifact.asset, artifact.key, artifact.version))
        failpoint("artifact.removed", artifact.spec.name)
        self.place.remove(artifact.base)
        for sha256 in artifact.files.values():
            self.place.discard(sha256)

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
