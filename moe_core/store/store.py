"""The store: immutable, content-addressed artifacts under one root, complete or invisible.

    <root>/<asset>[/<key>]/<version>/artifact.json + files

A version is a hash of what the artifact is made from, so that what exists is found before it is built. An
artifact is written under a temporary name, flushed to the disk, and renamed: a killed process leaves a temporary folder
that no reader sees and the next writer removes.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from moe_core.errors import CorruptArtifact
from moe_core.failpoints import failpoint
from moe_core.store.artifact import Artifact, Spec, StageOutput, manifest_of
from moe_core.store.blobs import Blobs, Folder
from moe_core.store.documents import Documents, FolderDocuments
from moe_core.store.files import (
    dead_files,
    errors_with_path,
    folders_in,
    fsync,
    hidden_name,
    remove_atomically,
    temporary_folder,
    write_text,
)
from moe_core.store.hashing import file_hash, with_checksum, without_checksum
from moe_core.store.layout import MANIFEST, Layout
from moe_core.store.leftovers import Leftover, left_at, leftovers, remove_locks, work_folders
from moe_core.store.locks import Holder, Told, builder, building, exclusive, nobody_is_told, shared
from moe_core.store.work import LocalWork


class Store:
    """The artifacts of one study under `root`, a local folder."""

    place: Blobs | None = None

    def __init__(self, root: Path) -> None:
        self.root = root
        self.layout = Layout(root)
        self.documents: Documents = FolderDocuments(root)
        self._files = Folder(root)

    @property
    def uri(self) -> str:
        return str(self.root)

    def find(self, spec: Spec) -> Artifact | None:
        """The artifact of `spec`; None where it has not been built. Raises CorruptArtifact for a damaged manifest."""
        return self.get(spec.asset, spec.key, spec.version)

    def find_all(self, specs: Sequence[Spec]) -> list[Artifact | None]:
        """As `find`, of many."""
        return [self.find(spec) for spec in specs]

    def get(self, asset: str, key: str | None, version: str) -> Artifact | None:
        """One version of an asset's partition; None where it is not there, or `version` is empty."""
        return self.read(self.layout.artifact(asset, key, version)) if version else None

    def read(self, path: Path) -> Artifact | None:
        """The artifact in a folder; None where there is none. Raises CorruptArtifact for a damaged manifest."""
        try:
            with open(path / MANIFEST, "rb") as file:
                values, made_at = without_checksum(file.read()), os.fstat(file.fileno()).st_mtime
            return Artifact(self._files, path.relative_to(self.root).as_posix(), **values, made_at=made_at)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError) as error:
            raise CorruptArtifact(
                f"{path / MANIFEST} is damaged ({error}): delete {path} and run again", path
            ) from None

    def keys(self, asset: str) -> list[str]:
        """Partition keys of an asset of which there is a folder."""
        return [path.name for path in folders_in(self.layout.asset(asset)) if not (path / MANIFEST).is_file()]

    def versions(self, asset: str, key: str | None) -> list[Artifact]:
        """All complete versions of an asset's partition."""
        found = (self.read(path) for path in folders_in(self.layout.partition(asset, key)))
        return [artifact for artifact in found if artifact is not None]

    def everything(self, asset: str) -> list[Artifact]:
        """All complete artifacts of an asset, of keys that are gone too."""
        found = (self.read(folder) for folder in self.folders(asset))
        return [a for a in found if a is not None and self.layout.artifact(a.asset, a.key, a.version) == a.path]

    def exists(self, asset: str, key: str | None, version: str) -> bool:
        """Whether it is complete; its manifest may be damaged."""
        return self.layout.manifest(asset, key, version).is_file()

    def listed(self, asset: str) -> list[tuple[str | None, str]]:
        """(key, version) of all complete artifacts of an asset, by names alone: their manifests may be damaged."""
        top = self.layout.asset(asset)
        return [(None if path.parent == top else path.parent.name, path.name) for path in self.folders(asset)]

    def folders(self, asset: str) -> list[Path]:
        """Folders of all complete artifacts of an asset, by names alone."""
        found = []
        for path in folders_in(self.layout.asset(asset)):  # a version, or a key with versions in it
            versions = [path] if (path / MANIFEST).is_file() else folders_in(path)
            found += [version for version in versions if (version / MANIFEST).is_file()]
        return found

    def work_folder(self, spec: Spec) -> Path:
        """Where checkpoints of an unfinished artifact lie, from one attempt to the next."""
        return self.layout.work(spec.asset, spec.key, spec.version)

    @contextmanager
    def work(self, spec: Spec) -> Iterator[LocalWork]:
        """What a killed attempt left of an artifact that is being built, and where this one continues it."""
        folder = self.work_folder(spec)
        folder.mkdir(parents=True, exist_ok=True)
        yield LocalWork(folder)

    def make(self, spec: Spec, write: Callable[[Path], StageOutput], replace: bool = False) -> Artifact:
        """Calls `write(folder)` and commits what it wrote. The first commit wins, and all callers get that artifact.

        With `replace` an existing artifact stays until then and is replaced. Raises what `write` raises, and OSError.
        """
        parent = self.layout.partition(spec.asset, spec.key)
        for path in dead_files(self.work_folder(spec)):
            path.unlink(missing_ok=True)
        final = parent / spec.version
        with temporary_folder(parent) as temporary:
            failpoint("artifact.begun", spec.name)
            with errors_with_path(temporary):
                written = write(temporary)
            failpoint("artifact.written", spec.name)
            _write_manifest(temporary, spec, written)
            failpoint("artifact.manifest", spec.name)
            if replace and final.is_dir():
                remove_atomically(final)
            try:
                temporary.rename(final)
            except OSError:
                if self.read(final) is None:
                    raise
            failpoint("artifact.renamed", spec.name)
        fsync(parent)
        failpoint("artifact.committed", spec.name)
        shutil.rmtree(self.work_folder(spec), ignore_errors=True)
        made = self.read(final)
        assert made is not None
        return made

    @contextmanager
    def building(self, spec: Spec, by: str = "", on_wait: Told = nobody_is_told) -> Iterator[None]:
        """Keeps others from building this artifact and from deleting any; waits while another process builds it.

        `by` tells others what builds it; `on_wait` is called with who is waited for. Look for the artifact again inside
        the block: the other process may have built it.
        """
        with self.keeping(), building(self._build_lock(spec), by, on_wait):
            _look_again(self.layout.partition(spec.asset, spec.key))
            yield

    def keeping(self) -> AbstractContextManager[None]:
        """Keeps others from deleting artifacts; waits while a process does."""
        return shared(self.layout.in_use)

    def deleting(self, wait: bool = True) -> AbstractContextManager[None]:
        """Keeps all others from building. Raises LockHeld where something is being built and `wait` is False."""
        return exclusive(self.layout.in_use, wait)

    def leftovers(self, assets: Iterable[str], every_process: bool = False) -> Iterator[Leftover]:
        """What interrupted processes left. To be asked inside `deleting`.

        What a process of this machine writes stays, unless `every_process`.
        """
        for path in leftovers(self.layout, assets, every_process):
            yield left_at(self.layout, path)

    def works(self, asset: str) -> Iterator[tuple[Leftover, str | None, str]]:
        """Checkpoints of an asset's artifacts, each with the key and the version of its artifact."""
        for path, key, version in work_folders(self.layout, asset):
            yield left_at(self.layout, path), key, version

    def remove_locks(self, assets: Iterable[str]) -> None:
        """Removes what tells who builds. To be called inside `deleting`: nobody does."""
        remove_locks(self.layout, assets)

    def builder(self, spec: Spec) -> Holder | None:
        """Who builds an artifact now, on this machine or another; None where nobody does."""
        return builder(self._build_lock(spec))

    def _build_lock(self, spec: Spec) -> Path:
        return self.layout.build_lock(spec.asset, spec.key, spec.version)

    def remove(self, artifact: Artifact) -> None:
        """Removes an artifact in one step: a reader finds all of it or nothing."""
        remove_atomically(artifact.path)


def _look_again(folder: Path) -> None:
    """Makes a client of NFS ask for the names in a folder again: what another machine committed is seen at once.

    It remembers for up to a minute that a name was not there, unless it changes the folder itself and finds that others
    changed it, too.
    """
    name = hidden_name(folder)
    name.mkdir()
    name.rmdir()


def _write_manifest(folder: Path, spec: Spec, written: StageOutput) -> None:
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        files[path.relative_to(folder).as_posix()] = file_hash(path)
        fsync(path)
    for path in [p for p in folder.rglob("*") if p.is_dir()]:
        fsync(path)
    write_text(folder / MANIFEST, json.dumps(with_checksum(manifest_of(spec, written, files)), indent=1))
    fsync(folder)
