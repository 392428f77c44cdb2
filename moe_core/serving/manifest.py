"""The manifest of a bundle and the files it names, checked before any of them is loaded. A bundle from elsewhere has
only its own word for what it holds, and checksums are easily made to fit.
"""

import hashlib
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Annotated

from torch import Tensor

from moe_core.errors import CorruptArtifact, MissingInput
from moe_core.models.shape import MAX_EXPERTS, MAX_WIDTH, check_stages
from moe_core.serving.checked import Mistake, choice, number, several, table, tables, text, whole, yes_or_no
from moe_core.store.hashing import without_checksum
from moe_core.store.layout import BUNDLE_MANIFEST
from moe_core.text import shown
from moe_core.weights import Shape, Shapes

FORMAT = "hardmoe bundle 2"
MANIFEST_BYTES = 16 << 20  # 10,000 experts take 6 MB
HASHTAGS_BYTES = 64 << 20  # 100,000 hashtags take 2 MB
MOST_CENTROIDS = 1 << 20

NAME, VERSION = text(r"[\w.-]{1,100}"), text(most=100)


@dataclass(frozen=True, kw_only=True)
class Network:
    """The network of the router and of each expert, a `NetworkShape`."""

    block: Annotated[str, choice("basic", "bottleneck")] = "basic"
    stem: Annotated[str, choice("small", "imagenet")] = "small"
    widths: Annotated[tuple[int, ...], several(whole(1, MAX_WIDTH))] = (8, 16, 32)
    depths: Annotated[tuple[int, ...], several(whole(1, 2**31 - 1))] = (1, 1, 1)
    embedding: Annotated[int, whole(0, MAX_WIDTH)] = 128

    def __post_init__(self) -> None:
        check_stages(self.widths, self.depths)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file of the bundle."""

    file: Annotated[str, text(r"[\w./-]{1,200}")]
    sha256: Annotated[str, text(r"[0-9a-f]{64}")]


@dataclass(frozen=True, kw_only=True)
class PartEntry(Entry):
    """A file of weights, and the versions of what it was made from."""

    version: Annotated[str, VERSION]
    made_from: Annotated[dict[str, str], tables(NAME, VERSION)] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ExpertEntry(PartEntry):
    """An expert's file."""

    published: Annotated[bool, yes_or_no]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """manifest.json; keys that are not here are left to later versions."""

    format: Annotated[str, choice(FORMAT)]
    router: Annotated[PartEntry, table(PartEntry)]
    gate: Annotated[PartEntry, table(PartEntry)]
    decoder: Annotated[PartEntry, table(PartEntry)]
    experts: Annotated[dict[str, ExpertEntry], tables(NAME, table(ExpertEntry), 1, MAX_EXPERTS)]
    vocabulary: Annotated[Entry, table(Entry)]
    answer: Annotated[str, choice("mixture_top1", "mixture_top1_router")]
    router_weight: Annotated[float, number(0, 1)]
    temperature: Annotated[float, number(above=0)]  # of the nearest experts' weights, where several answer
    branch_at: Annotated[int, whole(0)]
    network: Annotated[Network, table(Network, more_keys=False)]
    image_size: Annotated[int, whole(8, 1024)]
    loss: Annotated[str, choice("softmax", "sigmoid")]
    precision: Annotated[str, choice("auto", "float32", "bfloat16")]
    thresholds: Annotated[Entry | None, table(Entry)] = None  # of each hashtag; none without validation posts
    # by which p says how often the first hashtag is right; none without validation posts
    calibration_temperature: Annotated[float | None, number(above=0)] = None

    def __post_init__(self) -> None:
        """An expert has stages of its own."""
        if self.branch_at >= len(self.network.widths):
            raise ValueError(f"branch_at {self.branch_at} of {len(self.network.widths)} stages leaves experts none")


MANIFEST = table(Manifest)


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
        return MANIFEST(manifest)
    except Mistake as mistake:
        raise CorruptArtifact(f"{path} is not a bundle's manifest: {mistake}") from None


def entries_of(manifest: Manifest) -> dict[str, Entry]:
    """Every file that a manifest names, by the name of its part or the key of its expert."""
    parts = {field.name: getattr(manifest, field.name) for field in fields(manifest)}
    return {name: part for name, part in parts.items() if isinstance(part, Entry)} | manifest.experts


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
