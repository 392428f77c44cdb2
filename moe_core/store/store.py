"""The store: immutable, content-addressed artifacts under one root, complete or invisible.

    <root>/<asset>[/<key>]/<version>/artifact.json + files

A version is a hash of what the artifact is made from, so that what exists already is found before it is made. An
artifact is written under a temporary name, flushed to the disk, and renamed: a killed process leaves a temporary folder
that no reader sees and the next writer removes.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from moe_core.errors import CorruptArtifact, MissingInput
from moe_core.failpoints import failpoint
from moe_core.store.artifact import Artifact, Spec, StageOutput
from moe_core.store.files import (
    dead_files,
    dead_parts,
    errors_with_path,
    fsync,
    hidden_name,
    remove_atomically,
    write_text,
)
from moe_core.store.hashing import content_hash, file_hash, with_checksum, without_checksum


class Store:
    """The artifacts of one study under `root`, a local folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, asset: str, key: str | None) -> Path:
        return self.root / asset if key is None else self.root / asset / key

    def find(self, spec: Spec) -> Artifact | None:
        """The artifact of `spec`, or None where it has not been made."""
        return self.read(self.folder(spec.asset, spec.key) / spec.version)

    def need(self, spec: Spec) -> Artifact:
        """The artifact of `spec`. Raises MissingInput, which names the asset to make first."""
        found = self.find(spec)
        if found is None:
            why = f"{spec.name} {spec.version} is missing: materialize {spec.asset} first (`hardmoe run`)"
            raise MissingInput(why, spec.asset, spec.key)
        return found

    def read(self, path: Path) -> Artifact | None:
        """The artifact in a folder; None where there is none. Raises CorruptArtifact for a damaged manifest."""
        try:
            text = (path / "artifact.json").read_text("utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            manifest = without_checksum(json.loads(text))
            return Artifact(
                path=path,
                asset=manifest["asset"],
                key=manifest["key"],
                version=manifest["version"],
                inputs=manifest["inputs"],
                content_hash=manifest["content_hash"],
                metadata=manifest["metadata"],
                files=manifest["files"],
                code=manifest["code"],
                settings=manifest["settings"],
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptArtifact(
                f"{path}/artifact.json is damaged ({error}): delete {path} and run again", path
            ) from None

    def versions(self, asset: str, key: str | None) -> list[Artifact]:
        """All complete versions of an asset's partition."""
        folder = self.folder(asset, key)
        if not folder.is_dir():
            return []
        found = (self.read(p) for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith("."))
        return [artifact for artifact in found if artifact is not None]

    def everything(self, asset: str) -> list[Artifact]:
        """All complete artifacts of an asset, of keys that are gone too."""
        folder = self.root / asset
        if not folder.is_dir():
            return []
        found = (self.read(path.parent) for path in sorted(folder.rglob("artifact.json")))
        return [a for a in found if a is not None and self.folder(a.asset, a.key) / a.version == a.path]

    def work_folder(self, spec: Spec) -> Path:
        """Where checkpoints of an unfinished artifact lie, from one attempt to the next."""
        return self.folder(spec.asset, spec.key) / f".work-{spec.version}"

    def make(self, spec: Spec, write: Callable[[Path], StageOutput], replace: bool = False) -> Artifact:
        """Calls `write(folder)` and commits what it wrote; whoever commits first wins, and all get that artifact.

        With `replace` what is there stays until then, and goes in its favor.
        """
        parent = self.folder(spec.asset, spec.key)
        parent.mkdir(parents=True, exist_ok=True)
        for path in dead_parts(parent):
            shutil.rmtree(path, ignore_errors=True)
        for path in dead_files(self.work_folder(spec)):
            path.unlink(missing_ok=True)
        final = parent / spec.version
        temporary = hidden_name(parent)
        temporary.mkdir()
        try:
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
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        fsync(parent)
        failpoint("artifact.committed", spec.name)
        shutil.rmtree(self.work_folder(spec), ignore_errors=True)
        made = self.read(final)
        assert made is not None
        return made

    def remove(self, artifact: Artifact) -> None:
        remove_atomically(artifact.path)


def _write_manifest(folder: Path, spec: Spec, written: StageOutput) -> None:
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        files[path.relative_to(folder).as_posix()] = file_hash(path)
        fsync(path)
    for path in [p for p in folder.rglob("*") if p.is_dir()]:
        fsync(path)
    manifest = {
        "asset": spec.asset,
        "key": spec.key,
        "version": spec.version,
        "code": spec.code,
        "settings": spec.settings,
        "inputs": dict(spec.inputs),
        "content_hash": content_hash(dict(written.content) if written.content is not None else files),
        "metadata": dict(written.metadata),
        "files": files,
    }
    write_text(folder / "artifact.json", json.dumps(with_checksum(manifest), indent=1))
    fsync(folder)
