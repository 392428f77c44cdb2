"""The bundle: router, gate, experts, one decoder and the vocabulary in one folder, under a manifest that names each by
hash. What does not belong together is refused when the bundle is opened, not discovered in its answers.

Letters: N images, D embedding width, V hashtags, K experts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_core.settings import Network, Study
from moe_core.store import digest, file_digest, write_text

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from moe_core.clustering.gate import Gate
    from moe_core.models.resnet import ResNet
    from moe_core.training.batches import Images

FORMAT = "hardmoe bundle 1"
ANSWERS = ("mixture_top1", "mixture_top1_router")


@dataclass(frozen=True)
class Part:
    """A file that goes into a bundle, and the version of the artefact it comes from."""

    path: Path
    version: str


def write_bundle(
    folder: Path,
    study: Study,
    hashtags: list[str],
    router: Part,
    gate: Part,
    decoder: Part,
    experts: Mapping[str, Part],
    published: Mapping[str, bool],
    answer: str,
) -> None:
    """Copies the parts into `folder` and writes manifest.json, last."""
    assert answer in ANSWERS
    (folder / "experts").mkdir()
    parts: dict[str, Any] = {}
    for name, part in {"router": router, "gate": gate, "decoder": decoder}.items():
        parts[name] = _take(part, folder, f"{name}.safetensors")
    parts["experts"] = {
        key: _take(part, folder, f"experts/{key}.safetensors") | {"published": published[key]}
        for key, part in experts.items()
    }
    write_text(folder / "hashtags.json", json.dumps(hashtags, ensure_ascii=False))
    said = parts | {
        "format": FORMAT,
        "answer": answer,
        "router_share": study.expert.router_share,
        "network": study.network.model_dump(mode="json"),
        "image_size": study.data.image_size,
        "loss": study.expert_training.loss,
        "precision": study.expert_training.precision,
        "vocabulary": {"file": "hashtags.json", "sha256": file_digest(folder / "hashtags.json")},
    }
    write_text(folder / "manifest.json", json.dumps(said | {"seal": digest(said)}, indent=1))


def _take(part: Part, folder: Path, name: str) -> dict[str, Any]:
    shutil.copyfile(part.path, folder / name)
    return {"file": name, "sha256": file_digest(folder / name), "version": part.version}


class Bundle:
    """A bundle, opened and checked. Raises ValueError for one whose parts do not belong together."""

    def __init__(self, folder: Path) -> None:
        from moe_core.weights import load_weights

        self.folder = folder
        said = _manifest(folder)
        self.answer: str = said["answer"]
        self.router_share: float = said["router_share"]
        self.published: dict[str, bool] = {key: part["published"] for key, part in said["experts"].items()}
        self.network = Network.model_validate(said["network"])
        self.image_size: int = said["image_size"]
        self.loss: str = said["loss"]
        self.precision: str = said["precision"]
        self._said = said
        self._check(said["vocabulary"], None, None)
        self.hashtags: list[str] = json.loads((folder / "hashtags.json").read_text("utf-8"))
        self._check(said["router"], "trunk", None)
        gate = self._check(said["gate"], "partition", None)
        decoder = self._check(said["decoder"], "shared_decoder", None)
        for name, about in (("gate", gate), ("decoder", decoder)):
            if about.get("trunk") != said["router"]["version"]:
                raise ValueError(
                    f"{folder}: the {name} was made with trunk {about.get('trunk')}, the router is trunk "
                    f"{said['router']['version']}: materialise mixture again"
                )
        for key, part in said["experts"].items():
            self._check(part, "expert", key)
        state, _ = load_weights(folder / said["decoder"]["file"])
        self.weight_VD, self.bias_V = state["weight"], state["bias"]
        if len(self.bias_V) != len(self.hashtags):
            raise ValueError(
                f"{folder}: the decoder knows {len(self.bias_V)} hashtags, the vocabulary {len(self.hashtags)}: "
                "were they made by different runs?"
            )
        if self.gate.experts != len(self.published):
            raise ValueError(f"{folder}: the gate knows {self.gate.experts} experts, here are {len(self.published)}")
        self._loaded: dict[str, ResNet] = {}

    def _check(self, part: Mapping[str, Any], asset: str | None, key: str | None) -> dict[str, str]:
        """What a file says of itself, after it was found to be the one that was put here."""
        from moe_core.weights import load_weights

        path = self.folder / part["file"]
        if not path.is_file():
            raise ValueError(f"{path} is missing from the bundle: copy the whole folder again")
        about: dict[str, str] = {}
        if asset:
            _, about = load_weights(path)
            wanted = f"{asset} {key or ''} {part['version']}".replace("  ", " ")
            came = f"{about.get('asset')} {about.get('key') or ''} {about.get('version')}".replace("  ", " ")
            if wanted != came:
                raise ValueError(f"{path} holds {came}, the manifest wants {wanted}: the files were swapped")
        if file_digest(path) != part["sha256"]:
            raise ValueError(f"{path} is not the file the manifest names (SHA-256 differs): copy the bundle again")
        return about

    @cached_property
    def gate(self) -> Gate:
        from moe_core.clustering.gate import load_gate

        return load_gate(self.folder / self._said["gate"]["file"])[0]

    @cached_property
    def router(self) -> ResNet:
        return self._network(self._said["router"]["file"])

    def expert(self, key: str) -> ResNet:
        """An expert's network, read when it is first wanted."""
        if key not in self._loaded:
            self._loaded[key] = self._network(self._said["experts"][key]["file"])
        return self._loaded[key]

    def _network(self, name: str) -> ResNet:
        from moe_core.models.resnet import build
        from moe_core.weights import load_weights

        state, _ = load_weights(self.folder / name)
        model = build(self.network, len(state["fc.bias"]), seed=0)
        model.load_state_dict(state)
        return model

    def router_probabilities(self, features_ND: Tensor) -> Tensor:
        """(N, V): the router's own answer."""
        from moe_core.training.infer import probabilities_of

        fc = self.router.fc
        return probabilities_of(features_ND, fc.weight.detach(), fc.bias.detach(), self.loss)

    def expert_features(self, key: str, images: Images, device: str = "cpu") -> Tensor:
        """(N, D): the images in the one embedding space, by one expert."""
        from moe_core.training.infer import features_of

        return features_of(self.expert(key), images, self.precision, device)

    def expert_probabilities(self, key: str, images: Images, device: str = "cpu") -> Tensor:
        """(N, V): an expert's answer through the shared decoder."""
        from moe_core.training.infer import probabilities_of

        features_ND = self.expert_features(key, images, device)
        return probabilities_of(features_ND, self.weight_VD, self.bias_V, self.loss)

    def predict(self, images_NHWC: np.ndarray, device: str = "cpu") -> tuple[Tensor, list[str]]:
        """(probabilities (N, V), expert of each image) of uint8 images of the bundle's size."""
        import numpy as np

        from moe_core.training.batches import ImagesInMemory
        from moe_core.training.infer import features_of

        images = ImagesInMemory(images_NHWC)
        features_ND = features_of(self.router, images, self.precision, device)
        out_NV = self.router_probabilities(features_ND)
        expert_N = self.gate.assign(features_ND.numpy())
        keys = sorted(self.published)
        for number in np.unique(expert_N):
            key = keys[number]
            if not self.published[key]:
                continue
            rows = np.flatnonzero(expert_N == number)
            mine = self.expert_probabilities(key, images.subset(rows), device)
            out_NV[rows] = mine if self.answer == "mixture_top1" else mine.lerp(out_NV[rows], self.router_share)
        return out_NV, [keys[number] for number in expert_N]


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise ValueError(
            f"no bundle at {folder}: wanted a folder with study.toml, or a mixture's with manifest.json "
            "(STUDY/mixture/<version>)"
        )
    try:
        said = json.loads(path.read_text("utf-8"))
        seal = said.pop("seal")
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a bundle's manifest: {error!r}") from None
    if said.get("format") != FORMAT:
        raise ValueError(f"{path} is of format {said.get('format')!r}, this hardmoe reads {FORMAT!r}")
    if seal != digest(said):
        raise ValueError(f"{path} was changed after it was written: copy the bundle again")
    return said
