"""What an artifact is made from (`Spec`), what it is once it is in the store, and what a stage returns."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from moe_core.errors import BadSetting, CorruptArtifact
from moe_core.store.hashing import Json, content_hash, file_hash
from moe_core.store.layout import MANIFEST
from moe_core.text import shown

LISTED = 20  # versions in an error


def name_of(asset: str, key: str | None) -> str:
    """Name of an asset's partition, such as trunk or expert:e003."""
    return asset if key is None else f"{asset}:{key}"


@dataclass(frozen=True)
class Spec:
    """What an artifact is made from; `version` follows from it."""

    asset: str
    key: str | None  # partition, None where the asset has none
    code: str  # version of the code that makes it
    settings: Json
    inputs: Mapping[str, str]  # name of what is read -> its version

    @cached_property
    def version(self) -> str:
        return content_hash(
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
        return name_of(self.asset, self.key)


@dataclass(frozen=True)
class Artifact:
    """A complete artifact in the store."""

    path: Path
    asset: str
    key: str | None
    version: str
    inputs: Mapping[str, str]
    content_hash: str  # of its content, without logs and times: equal for equal results
    metadata: Mapping[str, Json]
    files: Mapping[str, str] = field(repr=False)
    code: str  # version of the code that made it
    settings: Json  # those that it was made with

    @property
    def spec(self) -> Spec:
        """What it was made from."""
        return Spec(self.asset, self.key, self.code, self.settings, self.inputs)

    @property
    def label(self) -> str:
        """Such as expert:e003 1f0c8e5a2b7d4c3e9f60, as it is listed and remembered."""
        return f"{self.spec.name} {self.version}"

    @property
    def made_at(self) -> float:
        """Seconds since 1970, by the clock of the machine that built it."""
        return (self.path / MANIFEST).stat().st_mtime

    def file(self, name: str) -> Path:
        """A file of it, its bytes checked. Raises CorruptArtifact when they are not those that were written."""
        path = self.path / name
        wanted = self.files.get(name)
        if wanted is None:
            raise CorruptArtifact(f"{self.path} has no file {name!r}: it holds {sorted(self.files)}", path)
        if not path.is_file() or file_hash(path) != wanted:
            raise CorruptArtifact(
                f"{path} is not the file that was written (SHA-256 differs from its manifest): "
                f"delete the folder {self.path} and run again",
                path,
            )
        return path

    def unchecked(self, name: str) -> Path:
        """Where a file or folder of it lies, for a link or a lock: its bytes are not read."""
        return self.path / name

    def folder(self, name: str) -> Path:
        """A folder in it, after the bytes of all its files were checked. Raises CorruptArtifact as `file` does."""
        for file in self.files:
            if file.startswith(f"{name}/"):
                self.file(file)
        return self.path / name


@dataclass(frozen=True)
class StageOutput:
    """What a stage reports of what it wrote. `content` has hashes of its results; a file left out of it is a log."""

    metadata: Mapping[str, Json]
    content: Mapping[str, str] | None = None  # None: every file counts


def full_version(start: str, versions: Iterable[str], what: str) -> str:
    """The one version that begins with `start`. Raises BadSetting, which lists those that do; all where none does."""
    every = sorted(versions)
    if start in every:
        return start
    matching = [version for version in every if version.startswith(start)]
    if len(matching) == 1 and start:  # an unset variable of a shell names none
        return matching[0]
    listed = matching or every
    names = ", ".join(listed[:LISTED]) + (f" and {len(listed) - LISTED} more" if len(listed) > LISTED else "")
    raise BadSetting(
        f"{len(matching)} versions of {what} begin with {shown(start)!r}: "
        + (f"{names}: give more of its characters" if matching else f"there are {names or 'none'}")
    )
