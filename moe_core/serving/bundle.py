"""The bundle: router, gate, experts, one decoder and the vocabulary in one folder, under a manifest that names each by
hash. What does not belong together is refused when the bundle is opened, not discovered in its answers.

Letters: N images, D embedding width, V hashtags, K experts.
"""

import json
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from moe_core.clustering.gate import gate_of
from moe_core.errors import CorruptArtifact, MissingInput
from moe_core.evaluation.answers import Answer
from moe_core.evaluation.thresholds import Curves
from moe_core.models.resnet import ResNet, build_on_meta, channels_last
from moe_core.serving.branches import ExpertTemplate, fused, own_shapes, shared_weights, write_branch
from moe_core.serving.cache import ExpertCache, State
from moe_core.serving.manifest import (
    FORMAT,
    PartEntry,
    check_gate_shapes,
    check_shapes,
    check_versions,
    file_in,
    read_hashtags,
    read_manifest,
    shapes_of,
)
from moe_core.serving.thresholds import read_thresholds, write_thresholds
from moe_core.store.artifact import Artifact
from moe_core.store.files import write_text
from moe_core.store.hashing import file_hash, with_checksum
from moe_core.store.layout import BUNDLE_MANIFEST
from moe_core.store.locks import hold_open
from moe_core.text import shown
from moe_core.training.infer import features_of, logits_of, mixed, probabilities_of
from moe_core.training.posts import Images
from moe_core.training.transfer import named
from moe_core.weights import Shapes, read_header, read_weights

if TYPE_CHECKING:  # bundles are opened where pydantic is not installed
    from moe_core.settings import Study

EXPERT_BYTES = 4 << 30  # of experts that are held at once on the CPU, where nothing else is given


@dataclass(frozen=True)
class BundlePart:
    """A file that goes into a bundle, the version of its artifact, and the inputs that the artifact was built from.

    `made_from` of the gate has the content hash of each expert's members.
    """

    path: Path
    version: str
    made_from: Mapping[str, str] = field(default_factory=dict)


def write_bundle(
    folder: Path,
    study: "Study",
    hashtags: list[str],
    router: BundlePart,
    gate: BundlePart,
    decoder: BundlePart,
    experts: Mapping[str, BundlePart],
    published: Mapping[str, bool],
    answer: str,
    router_weight: float,
    temperature: float,
    curves: Curves | None = None,
    calibration_temperature: float | None = None,
) -> None:
    """Copies the parts into `folder` and writes manifest.json, last. `curves` and `calibration_temperature` are of the
    answer as the other arguments make it, on validation posts."""
    (folder / "experts").mkdir()
    parts: dict[str, Any] = {}
    for name, part in {"router": router, "gate": gate, "decoder": decoder}.items():
        parts[name] = _copy(part, folder, f"{name}.safetensors")
    branch = partial(write_branch, early=shared_weights(router.path, study.expert.branch_at))
    parts["experts"] = {
        key: _copy(part, folder, f"experts/{key}.safetensors", branch) | {"published": published[key]}
        for key, part in experts.items()
    }
    write_text(folder / "hashtags.json", json.dumps(hashtags, ensure_ascii=False))
    manifest = parts | {
        "format": FORMAT,
        "answer": answer,
        "router_weight": router_weight,
        "temperature": temperature,
        "branch_at": study.expert.branch_at,
        "network": study.network.model_dump(mode="json"),
        "image_size": study.data.image_size,
        "loss": study.expert_training.loss,
        "precision": study.expert_training.precision,
        "vocabulary": {"file": "hashtags.json", "sha256": file_hash(folder / "hashtags.json")},
    }
    if curves is not None:
        manifest["thresholds"] = write_thresholds(folder, curves)
    if calibration_temperature is not None:
        manifest["calibration_temperature"] = calibration_temperature
    write_text(folder / "manifest.json", json.dumps(with_checksum(manifest), indent=1))


def _copy(
    part: BundlePart, folder: Path, name: str, copy: Callable[[Path, Path], object] = shutil.copyfile
) -> dict[str, Any]:
    copy(part.path, folder / name)
    entry = {"file": name, "sha256": file_hash(folder / name), "version": part.version}
    return entry | {"made_from": dict(part.made_from)}


class Bundle:
    """A bundle, opened and checked. Raises CorruptArtifact for one whose parts do not belong together.

    Every file is checked here, and an expert's again each time it is read: the mixture may be larger than memory, which
    holds at most `expert_bytes` of them; without it EXPERT_BYTES, on a GPU half of what is free there. Threads may
    share one bundle: they share the experts in memory, and each fills a network of its own. `hardmoe gc` leaves the
    folder alone while this object lives. `bundle` is a mixture's artifact, or a folder.
    """

    def __init__(self, bundle: Path | Artifact, expert_bytes: int | None = None) -> None:
        self._artifact = bundle  # that of a bucket keeps its files in the machine's cache
        self.folder = folder = bundle.whole() if isinstance(bundle, Artifact) else bundle
        try:
            read_manifest(folder)  # before it is held open: the folder may be no bundle
            hold_open(folder / BUNDLE_MANIFEST, self)
        except FileNotFoundError:
            message = f"no bundle at {folder}: it was removed while it was opened"
            raise MissingInput(message, "mixture") from None
        manifest = self._manifest = read_manifest(folder)
        self.answer = manifest.answer
        self.router_weight = manifest.router_weight
        self.temperature = manifest.temperature  # of the nearest experts' weights, where several answer
        self.branch_at = manifest.branch_at
        self.published = {key: part.published for key, part in manifest.experts.items()}
        self.network = manifest.network
        self.image_size = manifest.image_size
        self.loss = manifest.loss
        self.precision = manifest.precision
        self.hashtags = read_hashtags(folder, manifest.vocabulary)
        self.calibration_temperature = manifest.calibration_temperature
        thresholds = manifest.thresholds  # older bundles have none
        self.curves = read_thresholds(folder, thresholds, len(self.hashtags)) if thresholds else None
        router, gate = _headed(folder, manifest.router, "trunk"), _headed(folder, manifest.gate, "partition")
        decoder = _headed(folder, manifest.decoder, "shared_decoder")
        for name, head in (("gate", gate), ("decoder", decoder)):
            if head.about.get("trunk") != manifest.router.version:
                raise CorruptArtifact(
                    f"{folder}: the {name} was made with trunk {head.about.get('trunk')}, the router is trunk "
                    f"{manifest.router.version}: materialize mixture again"
                )
        # The manifest's sizes must be those of the files: nothing is built, read or given memory before.
        if sum(self.network.depths) > len(router.shapes):
            raise CorruptArtifact(
                f"{router.path} holds {len(router.shapes):,} tensors: the manifest's network has "
                f"{sum(self.network.depths):,} blocks, each with several"
            )
        network = build_on_meta(self.network, len(self.hashtags))
        whole = shapes_of(network.state_dict())
        own = own_shapes(whole, self.branch_at)
        check_shapes(router.path, router.shapes, whole)
        check_shapes(decoder.path, decoder.shapes, {name: whole[f"fc.{name}"] for name in ("weight", "bias")})
        check_gate_shapes(gate.path, gate.shapes, whole["fc.weight"][1][1])
        experts = {}
        for key, part in manifest.experts.items():
            head = _headed(folder, part, "expert", key)
            experts[key] = head.path, part.sha256
            check_shapes(head.path, head.shapes, own)
            if head.about.get("generation") != decoder.about.get("generation"):
                raise CorruptArtifact(
                    f"{folder}: expert {key} is of generation {head.about.get('generation')}, the decoder of "
                    f"{decoder.about.get('generation')}: they were not trained together; materialize mixture again"
                )
        check_versions(folder, manifest)
        sizes = {key: path.stat().st_size for key, (path, _) in experts.items()}
        # not a method of this object: a cycle would keep a bundle in memory that nobody uses any more
        self._sizes, self._read, self._expert_bytes = sizes, partial(_read_expert, experts, own), expert_bytes
        self.experts = ExpertCache(sizes, self._read, expert_bytes or EXPERT_BYTES)

        self.gate = gate_of(read_weights(gate.path, manifest.gate.sha256), gate.path)
        if self.gate.experts != len(self.published):
            raise CorruptArtifact(
                f"{folder}: the gate knows {self.gate.experts} experts, here are {len(self.published)}", folder
            )
        network.load_state_dict(channels_last(read_weights(router.path, manifest.router.sha256)), assign=True)
        self.router = network
        self.decoder = decoder_of(read_weights(decoder.path, manifest.decoder.sha256))
        for path, sha256 in experts.values():
            read_weights(path, sha256)
        self._idle = {"cpu": [ExpertTemplate(self.network, self.router, self.branch_at)]}  # unused ones, by device
        self._routers, self._decoders = {"cpu": self.router}, {"cpu": self.decoder}  # by device
        self._experts = {"cpu": self.experts}
        self._to_device = threading.Lock()

    @property
    def parts(self) -> dict[str, str]:
        """Version of the artifact that each part comes from, by the names of a mixture's inputs."""
        manifest = self._manifest
        versions = {"trunk": manifest.router, "partition": manifest.gate, "shared_decoder": manifest.decoder}
        return {name: part.version for name, part in (versions | manifest.experts).items()}

    def router_on(self, device: str) -> ResNet:
        """The router on a device, where it stays."""
        device = named(device)
        with self._to_device:
            if device not in self._routers:
                state = {name: tensor.to(device) for name, tensor in self.router.state_dict().items()}
                self._routers[device] = build_on_meta(self.network, len(self.hashtags))
                self._routers[device].load_state_dict(state, assign=True)
            return self._routers[device]

    def decoder_on(self, device: str) -> nn.Linear:
        """The shared decoder on a device, where it stays."""
        device = named(device)
        with self._to_device:
            if device not in self._decoders:
                state = {name: tensor.to(device) for name, tensor in self.decoder.state_dict().items()}
                self._decoders[device] = decoder_of(state)
            return self._decoders[device]

    def experts_on(self, device: str) -> ExpertCache:
        """The experts that lie on a device: on a GPU at most half of what is free there."""
        device = named(device)
        with self._to_device:
            if device not in self._experts:
                most_bytes = self._expert_bytes or EXPERT_BYTES
                if device.startswith("cuda"):
                    half = torch.cuda.mem_get_info(device)[0] // 2
                    most_bytes = max(2 * max(self._sizes.values()), min(self._expert_bytes or half, half))
                self._experts[device] = ExpertCache(self._sizes, partial(_on_device, self._read, device), most_bytes)
            return self._experts[device]

    def each_expert(self, keys: Iterable[str], use: Callable[[str, ResNet], None], device: str = "cpu") -> None:
        """`use(key, network)` for each of these experts, those that lie on the device first; the next one is read
        meanwhile."""

        def filled(key: str, state: State) -> None:
            with self.filled(state, device) as network:
                use(key, network)

        self.experts_on(device).each(keys, filled)

    @contextmanager
    def filled(self, state: Mapping[str, Tensor], device: str = "cpu") -> Iterator[ResNet]:
        """The network of an expert's weights, which lie on the device; this thread's alone while inside."""
        idle = self._idle.setdefault(device, [])
        try:
            template = idle.pop()
        except IndexError:
            template = ExpertTemplate(self.network, self.router_on(device), self.branch_at)
        try:
            with template.filled(state) as network:
                yield network
        finally:
            idle.append(template)

    def router_answer(self, features_ND: np.ndarray, device: str = "cpu") -> Answer:
        """The router's own answers, from its features (N, D)."""
        return Answer(torch.from_numpy(features_ND), [self.router_on(device).fc])

    def router_logits(self, features_ND: Tensor, device: str = "cpu") -> Tensor:
        """(N, V) on the device: the router's own logits, from its features."""
        return logits_of(features_ND, self.router_on(device).fc, device)

    def logits(self, features_ND: Tensor, device: str = "cpu") -> Tensor:
        """(N, V) on the device: an expert's logits by the shared decoder, from its features."""
        return logits_of(features_ND, self.decoder_on(device), device)

    def probabilities(self, logits_NV: Tensor) -> Tensor:
        """(N, V), rows sum to one."""
        return probabilities_of(logits_NV, self.loss)

    def mixed(self, logits_NV: Tensor, router_NV: Tensor) -> Tensor:
        """(N, V): probabilities of an expert's logits and the router's, mixed by the bundle's router_weight."""
        return mixed(logits_NV, router_NV, self.router_weight, self.loss)

    def expert_features(self, key: str, images: Images, device: str = "cpu") -> Tensor:
        """(N, D): the images in the one embedding space, by one expert."""
        with self.experts_on(device).using(key) as state, self.filled(state, device) as network:
            return features_of(network, images, self.precision, device)

    def features_by_expert(self, expert_N: np.ndarray, images: Images, device: str = "cpu") -> Tensor:
        """(N, D): each image in the one embedding space, by its own expert, published or not."""
        keys, out_ND = list(self.published), torch.empty(len(images), self.router.width)

        def compute(key: str, network: ResNet) -> None:
            rows = np.flatnonzero(expert_N == keys.index(key))
            out_ND[rows] = features_of(network, images.subset(rows), self.precision, device)

        self.each_expert([keys[number] for number in np.unique(expert_N)], compute, device)
        return out_ND


@dataclass(frozen=True)
class _Head:
    """A file of weights before it is read."""

    path: Path
    about: Mapping[str, str]
    shapes: Shapes


def _headed(folder: Path, part: PartEntry, asset: str, key: str | None = None) -> _Head:
    """The header of a file. Raises CorruptArtifact for a file of another artifact than the manifest names."""
    path = file_in(folder, part.file)
    about, shapes = read_header(path)
    wanted = f"{asset} {key or ''} {part.version}".replace("  ", " ")
    came = f"{about.get('asset')} {about.get('key') or ''} {about.get('version')}".replace("  ", " ")
    if wanted != came:
        raise CorruptArtifact(f"{path} holds {shown(came)}, the manifest wants {wanted}: the files were swapped", path)
    return _Head(path, about, shapes)


def _read_expert(experts: Mapping[str, tuple[Path, str]], wanted: Shapes, key: str) -> dict[str, Tensor]:
    """An expert's own weights, fused: its decoder is the shared one."""
    path, sha256 = experts[key]
    state = read_weights(path, sha256)
    check_shapes(path, shapes_of(state), wanted)
    return channels_last(fused(state))


def _on_device(read: Callable[[str], State], device: str, key: str) -> State:
    return {name: tensor.to(device) for name, tensor in read(key).items()}


def decoder_of(state: Mapping[str, Tensor]) -> nn.Linear:
    """The last layer in a decoder's file."""
    hashtags, width = state["weight"].shape
    decoder = nn.Linear(width, hashtags, device="meta")
    decoder.load_state_dict(state, assign=True)
    return decoder
