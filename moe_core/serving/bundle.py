"""The bundle: router, gate, experts, one decoder and the vocabulary in one folder, under a manifest that names each by
hash. What does not belong together is refused when the bundle is opened, not discovered in its answers.

Letters: N images, D embedding width, V hashtags, K experts.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_core.settings import Network, Study
from moe_core.store import digest, file_digest, write_text

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from moe_core.models.resnet import ResNet
    from moe_core.training.batches import Images

FORMAT = "hardmoe bundle 2"
OF_PROBABILITIES = "hardmoe bundle 1"  # older: the router's probabilities are mixed in, not its logits
EXPERT_BYTES = 4 << 30  # of experts that are held at once
ANSWERS = ("mixture_top1", "mixture_top1_router")


@dataclass(frozen=True)
class Part:
    """A file that goes into a bundle, the version of the artefact it comes from, and what that was made from.

    Of the gate, `made_from` is the digest of each expert's members.
    """

    path: Path
    version: str
    made_from: Mapping[str, str] = field(default_factory=dict)


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
    router_share: float,
    temperature: float,
) -> None:
    """Copies the parts into `folder` and writes manifest.json, last."""
    from moe_core.serving.branches import early_of, write_branch

    assert answer in ANSWERS
    (folder / "experts").mkdir()
    parts: dict[str, Any] = {}
    for name, part in {"router": router, "gate": gate, "decoder": decoder}.items():
        parts[name] = _take(part, folder, f"{name}.safetensors")
    branch = partial(write_branch, early=early_of(router.path, study.expert.branch_at))
    parts["experts"] = {
        key: _take(part, folder, f"experts/{key}.safetensors", branch) | {"published": published[key]}
        for key, part in experts.items()
    }
    write_text(folder / "hashtags.json", json.dumps(hashtags, ensure_ascii=False))
    said = parts | {
        "format": FORMAT,
        "answer": answer,
        "router_share": router_share,
        "temperature": temperature,
        "branch_at": study.expert.branch_at,
        "network": study.network.model_dump(mode="json"),
        "image_size": study.data.image_size,
        "loss": study.expert_training.loss,
        "precision": study.expert_training.precision,
        "vocabulary": {"file": "hashtags.json", "sha256": file_digest(folder / "hashtags.json")},
    }
    write_text(folder / "manifest.json", json.dumps(said | {"seal": digest(said)}, indent=1))


def _take(
    part: Part, folder: Path, name: str, copy: Callable[[Path, Path], object] = shutil.copyfile
) -> dict[str, Any]:
    copy(part.path, folder / name)
    said = {"file": name, "sha256": file_digest(folder / name), "version": part.version}
    return said | {"made_from": dict(part.made_from)}


class Bundle:
    """A bundle, opened and checked. Raises ValueError for one whose parts do not belong together.

    Every file is checked here, and an expert's again each time it is read: the mixture may be larger than memory, which
    holds at most `most_experts` and `expert_bytes` of them. Any number of threads may ask one bundle at once: they
    share these experts, and each has a network of its own to put them into.
    """

    def __init__(self, folder: Path, most_experts: int | None = None, expert_bytes: int = EXPERT_BYTES) -> None:
        from moe_core.clustering.gate import load_gate
        from moe_core.serving.branches import Body
        from moe_core.serving.held import Held
        from moe_core.weights import load_weights

        self.folder = folder
        said = _manifest(folder)
        self.answer: str = said["answer"]
        self.router_share: float = said["router_share"]
        self.temperature: float = said.get("temperature", 0.1)  # of the nearest experts' weights, where several answer
        self.branch_at: int = said.get("branch_at", 0)
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
            came = self._check(part, "expert", key).get("generation")
            if came != decoder.get("generation"):
                raise ValueError(
                    f"{folder}: expert {key} is of generation {came}, the decoder of {decoder.get('generation')}: "
                    "they were not trained together; materialise mixture again"
                )
        _one_generation(folder, said)
        self.router = _network(self.network, len(self.hashtags), _read(folder, said["router"]))
        self.gate, _ = load_gate(folder / said["gate"]["file"])
        state, _ = load_weights(folder / said["decoder"]["file"])
        self.decoder = decoder_of(state)
        if self.decoder.out_features != len(self.hashtags):
            raise ValueError(
                f"{folder}: the decoder knows {self.decoder.out_features} hashtags, the vocabulary "
                f"{len(self.hashtags)}: were they made by different runs?"
            )
        if self.gate.experts != len(self.published):
            raise ValueError(f"{folder}: the gate knows {self.gate.experts} experts, here are {len(self.published)}")
        sizes = {key: (folder / part["file"]).stat().st_size for key, part in said["experts"].items()}
        body = Body(self.network, self.router, self.branch_at)
        self._idle = {"cpu": [body]}  # networks that no thread uses now, by device
        self._routers = {"cpu": self.router}  # by device
        self._to_device = threading.Lock()
        # not a method of this object: a cycle would keep a bundle in memory that nobody uses any more
        read = partial(_read_expert, folder, said["experts"], body.taken)
        self.experts = Held(sizes, read, most_experts, expert_bytes)

    @property
    def parts(self) -> dict[str, str]:
        """Version of the artefact that each part comes from, by the names of a mixture's inputs."""
        places = {"trunk": "router", "partition": "gate", "shared_decoder": "decoder"}
        experts = {key: part["version"] for key, part in self._said["experts"].items()}
        return {name: self._said[place]["version"] for name, place in places.items()} | experts

    def _check(self, part: Mapping[str, Any], asset: str | None, key: str | None) -> dict[str, str]:
        """What a file says of itself, after it was found to be the one that was put here."""
        from moe_core.weights import about_weights

        path = self.folder / part["file"]
        if not path.is_file():
            raise ValueError(f"{path} is missing from the bundle: copy the whole folder again")
        about: dict[str, str] = {}
        if asset:
            about = about_weights(path)
            wanted = f"{asset} {key or ''} {part['version']}".replace("  ", " ")
            came = f"{about.get('asset')} {about.get('key') or ''} {about.get('version')}".replace("  ", " ")
            if wanted != came:
                raise ValueError(f"{path} holds {came}, the manifest wants {wanted}: the files were swapped")
        if file_digest(path) != part["sha256"]:
            raise ValueError(f"{path} is not the file the manifest names (SHA-256 differs): copy the bundle again")
        return about

    def router_on(self, device: str) -> ResNet:
        """The router on a device, where it stays."""
        with self._to_device:
            if device not in self._routers:
                state = {name: tensor.to(device) for name, tensor in self.router.state_dict().items()}
                self._routers[device] = _network(self.network, len(self.hashtags), state)
            return self._routers[device]

    @contextmanager
    def filled(self, state: Mapping[str, Tensor], device: str = "cpu") -> Iterator[ResNet]:
        """The network of an expert's weights on a device; this thread's alone while inside."""
        from moe_core.serving.branches import Body

        idle = self._idle.setdefault(device, [])
        try:
            body = idle.pop()
        except IndexError:
            body = Body(self.network, self.router_on(device), self.branch_at)
        try:
            with body.filled({name: tensor.to(device) for name, tensor in state.items()}) as network:
                yield network
        finally:
            idle.append(body)

    def router_logits(self, features_ND: Tensor) -> Tensor:
        """(N, V): what the router itself says, from its features."""
        from moe_core.training.infer import logits_of

        return logits_of(features_ND, self.router.fc)

    def logits(self, features_ND: Tensor) -> Tensor:
        """(N, V): what an expert says, from its features, by the shared decoder."""
        from moe_core.training.infer import logits_of

        return logits_of(features_ND, self.decoder)

    def probabilities(self, logits_NV: Tensor) -> Tensor:
        """(N, V), rows sum to one."""
        from moe_core.training.infer import probabilities_of

        return probabilities_of(logits_NV, self.loss)

    def mixed(self, logits_NV: Tensor, router_NV: Tensor) -> Tensor:
        """(N, V): probabilities of an expert's logits with the bundle's share of the router's."""
        from moe_core.training.infer import mixed

        if self._said["format"] == OF_PROBABILITIES:
            return self.probabilities(logits_NV).lerp(self.probabilities(router_NV), self.router_share)
        return mixed(logits_NV, router_NV, self.router_share, self.loss)

    def expert_features(self, key: str, images: Images, device: str = "cpu") -> Tensor:
        """(N, D): the images in the one embedding space, by one expert."""
        from moe_core.training.infer import features_of

        with self.experts.using(key) as state, self.filled(state, device) as network:
            return features_of(network, images, self.precision, device)

    def expert_logits(self, key: str, images: Images, device: str = "cpu") -> Tensor:
        """(N, V): what an expert says of images through the shared decoder."""
        return self.logits(self.expert_features(key, images, device))

    def predict(self, images_NHWC: np.ndarray, device: str = "cpu") -> tuple[Tensor, list[str]]:
        """(probabilities (N, V), expert of each image) of uint8 images of the bundle's size; for streams: `routed`."""
        from moe_core.serving.routed import routed

        (answer,) = routed(self, [images_NHWC], device=device)
        return answer.probabilities_BV, answer.experts


def _one_generation(folder: Path, said: Mapping[str, Any]) -> None:
    """Raises ValueError for a part that was made from another version than the one that is in the bundle."""
    trunk, members = said["router"]["version"], said["gate"].get("made_from", {})
    wanted = [
        ("the decoder", said["decoder"], {"trunk": trunk} | {k: p["version"] for k, p in said["experts"].items()})
    ]
    for key, part in said["experts"].items():
        wanted.append((f"expert {key}", part, {"trunk": trunk} | ({"members": members[key]} if key in members else {})))
    for name, part, versions in wanted:
        for what, version in versions.items():
            came = part.get("made_from", {}).get(what, version)  # a bundle by another hand need not say
            if came != version:
                raise ValueError(
                    f"{folder}: {name} was made from {what} {came}, here is {what} {version}: they are not of one "
                    "generation; materialise mixture again"
                )


def _network(network: Network, hashtags: int, state: Mapping[str, Tensor]) -> ResNet:
    from moe_core.models.resnet import hollow

    found = hollow(network, hashtags)
    found.load_state_dict(state, assign=True)
    return found


def _read(folder: Path, part: Mapping[str, Any]) -> dict[str, Tensor]:
    from moe_core.models.resnet import channels_last
    from moe_core.weights import read_weights

    return channels_last(read_weights(folder / part["file"], part["sha256"]))


def _read_expert(
    folder: Path,
    experts: Mapping[str, Mapping[str, Any]],
    taken: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    key: str,
) -> dict[str, Tensor]:
    """What is its own: an expert answers through the shared decoder."""
    try:
        return taken(_read(folder, experts[key]))
    except ValueError as error:
        raise ValueError(f"{folder}: expert {key}: {error}") from None


def decoder_of(state: Mapping[str, Tensor]) -> nn.Linear:
    """The last layer in a decoder's file."""
    from torch import nn

    hashtags, width = state["weight"].shape
    decoder = nn.Linear(width, hashtags, device="meta")
    decoder.load_state_dict(state, assign=True)
    return decoder


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise ValueError(
            f"no bundle at {folder}: wanted a folder with study.toml, or a mixture's with manifest.json "
            "(STUDY/mixture/<version>)"
        )
    try:
        text = path.read_text("utf-8")
        said = json.loads(text)
        written = json.dumps(said, indent=1)
        seal = said.pop("seal")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is not a bundle's manifest: {error!r}") from None
    if said.get("format") not in (FORMAT, OF_PROBABILITIES):
        raise ValueError(
            f"{path} is of format {said.get('format')!r}, this hardmoe reads {OF_PROBABILITIES!r}, {FORMAT!r}"
        )
    if seal != digest(said) or text != written:
        raise ValueError(f"{path} was changed after it was written: copy the bundle again")
    return said
