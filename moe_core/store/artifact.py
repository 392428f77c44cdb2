"""What an artifact is made from (`Spec`), what it is once it is in the store, and what a stage returns."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from moe_core.errors import BadSetting, CorruptArtifact
from moe_core.store.blobs import Blobs, Folder
from moe_core.store.hashing import Json, content_hash
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
    """A complete artifact in the store; of a bucket, files are copied to the machine's cache when they are read."""

    place: Blobs = field(repr=False, compare=False)
    base: str  # folder of its files in the place
    asset: str
    key: str | None
    version: str
    inputs: Mapping[str, str]
    content_hash: str  # of its content, without logs and times: equal for equal results
    metadata: Mapping[str, Json]
    files: Mapping[str, str] = field(repr=False)  # name -> SHA-256
    code: str  # version of the code that made it
    settings: Json  # those that it was made with
    made_at: float = field(default=0.0, compare=False)  # seconds since 1970, by the clock of the machine that built it

    @property
    def spec(self) -> Spec:
        """What it was made from."""
        return Spec(self.asset, self.key, self.code, self.settings, self.inputs)

    @property
    def label(self) -> str:
        """Such as expert:e003 1f0c8e5a2b7d4c3e9f60, as it is listed and remembered."""
        return f"{self.spec.name} {self.version}"

    @property
    def uri(self) -> str:
        """Where its files lie, as messages name it."""
        return f"{self.place.uri}/{self.base}"

    @property
    def path(self) -> Path:
        """Its folder; only in a store that is a folder."""
        assert isinstance(self.place, Folder), f"{self.uri} is no folder"
        return self.place.path(self.base)

    def file(self, name: str) -> Path:
        """A file of it, its bytes checked. Raises CorruptArtifact when they are not those that were written."""
        wanted = self.files.get(name)
        if wanted is None:
            raise CorruptArtifact(f"{self.uri} has no file {name!r}: it holds {sorted(self.files)}", self.uri)
        try:
            return self.place.fetch(f"{self.base}/{name}", wanted)
        except CorruptArtifact as error:
            raise CorruptArtifact(f"{error}: delete the folder {self.uri} and run again", error.path) from None

    def check(self, name: str) -> None:
        """Raises CorruptArtifact where the bytes of a file, past any cache, are not those that were written."""
        if self.place.hash(f"{self.base}/{name}") != self.files[name]:
            where = f"{self.uri}/{name}"
            raise CorruptArtifact(
                f"{where} is missing, or not the file that was written (SHA-256 differs): delete the folder {self.uri} "
                "and run again",
                where,
            )

    def unchecked(self, name: str) -> Path:
        """Where a file of it lies in a store that is a folder, for a lock: its bytes are not read."""
        return self.path / name

    def folder(self, name: str) -> Path:
        """A folder in it, after the bytes of all its files were checked. Raises CorruptArtifact as `file` does."""
        return self._folder(f"{name}/")

    def whole(self) -> Path:
        """A local folder with all its files, for a reader that checks them: only what must be fetched is checked."""
        return self.path if isinstance(self.place, Folder) else self._folder("")

    def _folder(self, prefix: str) -> Path:
        found = [(name.removeprefix(prefix), self.file(name)) for name in self.files if name.startswith(prefix)]
        if not found:
            raise CorruptArtifact(f"{self.uri} has no folder {prefix!r}: it holds {sorted(self.files)}", self.uri)
        name, path = found[0]
        return path.parents[name.count("/")]


@dataclass(frozen=True)
class StageOutput:
    """What a stage reports of what it wrote. `content` has hashes of its results; a file left out of it is a log."""

    metadata: Mapping[str, Json]
    content: Mapping[str, str] | None = None  # None: every file counts


def manifest_of(spec: Spec, output: StageOutput, files: Mapping[str, str]) -> dict[str, Json]:
    """What the manifest of an artifact with these files (name -> SHA-256) records, wherever it lies."""
    return {
        "asset": spec.asset,
        "key": spec.key,
        "version": spec.version,
        "code": spec.code,
        "settings": spec.settings,
        "inputs": dict(spec.inputs),
        "content_hash": content_hash(dict(output.content) if output.content is not None else files),
        "metadata": dict(output.metadata),
        "files": files,
    }


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
