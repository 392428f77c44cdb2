"""Whether a bundle is whole and answers, without the study that it came from."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moe_core.models.resnet import ResNet
from moe_core.serving.bundle import Bundle
from moe_core.serving.manifest import PartEntry, entries_of, read_manifest
from moe_core.serving.routed import predict
from moe_core.store.layout import BUNDLE_MANIFEST, CARD, MANIFEST
from moe_core.training.infer import features_of
from moe_core.training.posts import ImagesInMemory


@dataclass(frozen=True)
class CheckedPart:
    """A file of the bundle."""

    name: str  # router, gate, decoder, vocabulary, or the key of an expert
    file: str
    version: str  # of the artifact that it comes from; empty for a file that is none
    bytes: int


@dataclass(frozen=True)
class CheckedBundle:
    """What a bundle holds. It was opened, and each of its experts answered."""

    folder: str
    parts: tuple[CheckedPart, ...]
    experts: int
    unpublished: tuple[str, ...]  # experts for which the router answers
    hashtags: int
    image_size: int
    answer: str
    drawn: dict[str, Any]  # the answer to a picture that nobody took
    unnamed: tuple[str, ...]  # files that the manifest does not name
    seconds: float

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"bytes": self.bytes}


def check_bundle(folder: Path, expert_bytes: int | None = None) -> CheckedBundle:
    """Opens a bundle, which checks every file, and lets the mixture and each expert answer on a drawn picture.

    Raises MissingInput where there is none; CorruptArtifact for a part that is missing, changed, or of another mixture;
    NotFinite for numbers that are not finite, in the files or in an answer.
    """
    began = time.monotonic()
    bundle, manifest = Bundle(folder, expert_bytes), read_manifest(folder)
    picture_NHWC = np.random.default_rng(0).integers(0, 256, (1, bundle.image_size, bundle.image_size, 3), np.uint8)
    probabilities_BV, (expert,) = predict(bundle, picture_NHWC)

    def answers(key: str, network: ResNet) -> None:
        features_of(network, ImagesInMemory(picture_NHWC), bundle.precision)  # raises NotFinite

    with torch.inference_mode():
        bundle.each_expert(bundle.published, answers)
    named = entries_of(manifest)
    parts = [
        CheckedPart(
            name,
            entry.file,
            entry.version if isinstance(entry, PartEntry) else "",
            (folder / entry.file).stat().st_size,
        )
        for name, entry in named.items()
    ]
    ours = {BUNDLE_MANIFEST, MANIFEST, CARD, *(part.file for part in parts)}
    files = (str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if not path.is_dir())
    best = int(probabilities_BV[0].argmax())
    return CheckedBundle(
        str(folder),
        tuple(parts),
        len(manifest.experts),
        tuple(key for key, published in bundle.published.items() if not published),
        len(bundle.hashtags),
        bundle.image_size,
        bundle.answer,
        {"expert": expert, "tag": bundle.hashtags[best], "p": round(float(probabilities_BV[0, best]), 5)},
        tuple(name for name in files if name not in ours),
        round(time.monotonic() - began, 3),
    )
