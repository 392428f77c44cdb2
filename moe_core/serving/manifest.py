"""The manifest of a bundle and the files it names, checked before any of them is loaded. A bundle from elsewhere has
only its own word for what it holds, and checksums are easily made to fit.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from moe_core.errors import CorruptArtifact, MissingInput
from moe_core.settings import MAX_EXPERTS, Fraction, Network
from moe_core.store.hashing import without_checksum
from moe_core.store.layout import BUNDLE_MANIFEST
from moe_core.text import shown
from moe_core.weights import Shape, Shapes

FORMAT = "hardmoe bundle 2"
MANIFEST_BYTES = 16 << 20  # 10,000 experts take 6 MB
HASHTAGS_BYTES = 64 << 20  # 100,000 hashtags take 2 MB
MOST_CENTROIDS = 1 << 20

Name = Annotated[str, Field(pattern=r"^[\w.-]{1,100}$")]
Version = Annotated[str, Field(max_length=100)]


class Table(BaseModel):
    """A table of the manifest; unknown keys are left to later versions."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, strict=True)


class Entry(Table):
    """A file of the bundle."""

    file: Annotated[str, Field(pattern=r"^[\w./-]{1,200}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class PartEntry(Entry):
    """A file of weights, and the versions of what it was made from."""

    version: Version
    made_from: dict[Name, Version] = {}


class ExpertEntry(PartEntry):
    """An expert's file."""

    published: bool


class Manifest(Table):
    """manifest.json."""

    format: Literal["hardmoe bundle 2"]
    router: PartEntry
    gate: PartEntry
    decoder: PartEntry
    experts: Annotated[dict[Name, ExpertEntry], Field(min_length=1, max_length=MAX_EXPERTS)]
    vocabulary: Entry
    answer: Literal["mixture_top1", "mixture_top1_router"]
    router_weight: Fraction
    temperature: Annotated[float, Field(gt=0)]  # of the nearest experts' weights, where several answer
    branch_at: Annotated[int, Field(ge=0)]
    network: Network
    image_size: Annotated[int, Field(ge=8, le=1024)]
    loss: Literal["softmax", "sigmoid"]
    precision: Literal["auto", "float32", "bfloat16"]

    @model_validator(mode="after")
    def _an_expert_has_stages_of_its_own(self) -> Manifest:
        if self.branch_at >= len(self.network.widths):
            raise ValueError(f"branch_at {self.branch_at} of {len(self.network.widths)} stages leaves experts none")
        return self


def read_manifest(folder: Path) -> Manifest:
    """The manifest that was written there. Raises MissingInput without one, CorruptArtifact for anything else."""
    path = folder / BUNDLE_MANIFEST
    if not path.is_file():
        raise MissingInput(
            f"no bundle at {folder}: wanted a folder with study.toml, or a mixture's with manifest.json "
            "(STUDY/mixture/<version>)",
            "mixture",
        )
    data = _bounded(path, MANIFEST_BYTES)
    try:
        manifest = without_checksum(data)
    except ValueError as error:
        raise CorruptArtifact(
            f"{path} is not a bundle's manifest, or was changed after it was written ({shown(error, 300)}): copy the "
            "bundle again"
        ) from None
    if manifest.get("format") != FORMAT:
        raise CorruptArtifact(
            f"{path} is of format {shown(repr(manifest.get('format')))}, this hardmoe reads {FORMAT!r}", path
        )
    try:
        return Manifest.model_validate(manifest)
    except ValidationError as error:
        raise CorruptArtifact(f"{path} is not a bundle's manifest: {_why(error)}") from None


def _why(error: ValidationError) -> str:
    """The first mistake: where, what is wanted, what is there."""
    first = error.errors(include_url=False)[0]
    where = ".".join(shown(part) for part in first["loc"] if part != "[key]")
    why = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{where} is missing"
    came = first["input"]
    return shown(f"{where}: {why}", 300) + ("" if isinstance(came, dict) else f", it is {shown(repr(came))}")


def read_hashtags(folder: Path, entry: Entry) -> list[str]:
    """The vocabulary. Raises CorruptArtifact for anything but a list of distinct strings."""
    path = file_in(folder, entry.file)
    data = _bounded(path, HASHTAGS_BYTES)
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise CorruptArtifact(f"{path} is not the file the manifest names (SHA-256 differs): copy the bundle again")
    try:
        hashtags = json.loads(data)
        good = isinstance(hashtags, list) and hashtags and all(isinstance(tag, str) and tag for tag in hashtags)
        good = good and len(set(hashtags)) == len(hashtags) and "".join(hashtags).encode() is not None
    except (ValueError, RecursionError):
        good = False
    if not good:
        raise CorruptArtifact(f"{path} is no vocabulary: wanted a list of distinct strings, one hashtag each")
    return list(hashtags)


def file_in(folder: Path, name: str) -> Path:
    """A file of the bundle. Raises CorruptArtifact for one that is missing, lies elsewhere, or is no regular file."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts:
        raise CorruptArtifact(f"{folder}: the manifest names {shown(name)}, which lies outside the bundle")
    path = folder
    for place, part in enumerate(pure.parts, 1):
        path = path / part
        try:
            kind = path.lstat().st_mode
        except OSError:
            raise CorruptArtifact(f"{path} is missing from the bundle: copy the whole folder again") from None
        if stat.S_ISLNK(kind):
            raise CorruptArtifact(
                f"{path} is a link: wanted the file itself, so copy the bundle with what its links name"
            )
        if not (stat.S_ISREG(kind) if place == len(pure.parts) else stat.S_ISDIR(kind)):
            raise CorruptArtifact(f"{path} is no {'regular file' if place == len(pure.parts) else 'folder'}")
    return path


def _bounded(path: Path, most: int) -> bytes:
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise CorruptArtifact(f"{path} has more than {most:,} bytes")
    return data


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """Types and shapes of a network's tensors, as the header of its weights file has them."""
    types = {"torch.float32": "F32", "torch.int64": "I64"}
    return {name: (types[str(tensor.dtype)], tuple(tensor.shape)) for name, tensor in state.items()}


def check_shapes(path: Path, found: Shapes, wanted: Shapes) -> None:
    """Raises CorruptArtifact for the first tensor that is missing, too many, or of another shape or type."""
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            came, want = (_text(shapes.get(name)) for shapes in (found, wanted))
            raise CorruptArtifact(
                f"{path}: {shown(name)} is not as the manifest's network has it: {came}, wanted {want}"
            )


def _text(shape: Shape | None) -> str:
    return "nothing" if shape is None else f"{shape[0]} {list(shape[1])}"


def check_gate_shapes(path: Path, found: Shapes, width: int) -> None:
    """Raises CorruptArtifact unless it is a gate for features of this width."""
    (centroids,) = found["expert"][1] if len(found.get("expert", ("", ()))[1]) == 1 else (0,)
    kept = found["projection"][1][1] if len(found.get("projection", ("", ()))[1]) == 2 else 0
    if not 1 <= centroids <= MOST_CENTROIDS or not 1 <= kept <= width:
        raise CorruptArtifact(
            f"{path} is not a gate: {centroids:,} centroids of {kept:,} dimensions, for features of width {width:,}"
        )
    wanted: Shapes = {
        "mean": ("F32", (width,)),
        "projection": ("F32", (width, kept)),
        "centroids": ("F32", (centroids, kept)),
        "expert": ("I64", (centroids,)),
    }
    check_shapes(path, found, wanted)


def check_versions(folder: Path, manifest: Manifest) -> None:
    """Raises CorruptArtifact for a part that was made from another version than the one that is in the bundle."""
    versions = {"trunk": manifest.router.version} | {key: part.version for key, part in manifest.experts.items()}
    for key, part in (("", manifest.decoder), *manifest.experts.items()):
        for what, came in part.made_from.items():
            version = manifest.gate.made_from.get(key) if what == "members" else versions.get(what)
            if version not in (None, came):
                name = f"expert {key}" if key else "the decoder"
                raise CorruptArtifact(
                    f"{folder}: {name} was made from {what} {came}, here is {what} {version}: they are not of one "
                    "generation; materialize mixture again"
                )
