"""A bundle as ONNX files, for programs without torch: trunk, experts and decoder are networks, the gate is arrays, and
mixture.json says how their outputs become the answer. docs/how-to/bundles.md has the program that combines them.

Letters: B images, S side in pixels, C channels, D embedding width, V hashtags.
"""

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moe_core.errors import HardmoeError, MissingLibrary
from moe_core.models.resnet import ResNet, channels_last, shared_layer_names
from moe_core.serving.bundle import Bundle
from moe_core.serving.export import new_folder
from moe_core.store.files import write_text
from moe_core.store.hashing import file_hash, with_checksum
from moe_core.store.layout import CARD
from moe_core.training.batches import MEAN, STD

FORMAT = "hardmoe onnx 1"
DOCUMENT = "mixture.json"
TOLERANCE = 1e-3  # of an output's largest number: by so much onnxruntime may differ from torch, both in float32
HOW = (
    "trunk.onnx gives features, logits and, where branch_at is above 0, start of pixels: uint8 RGB (B, S, S, 3), the "
    "middle square of a picture, bicubic",
    "gate: x = (features - mean) @ projection, rows scaled to unit length; the expert of an image is expert[m] of the "
    "centroid m with the largest x @ centroids.T",
    "an expert's file gives its features of the image, of `input`: pixels or start; decoder.onnx gives logits of them",
    "an image whose expert is not published: the trunk's logits. Else, with answer mixture_top1_router: (1 - "
    "router_weight) * logits + router_weight * the trunk's; with mixture_top1: logits",
    "probabilities: with loss softmax the softmax of these; with sigmoid their sigmoids, scaled to sum to one",
)


class _Trunk(nn.Module):
    def __init__(self, router: ResNet, stages: int) -> None:
        super().__init__()
        self.router, self.stages = router, stages
        self.register_buffer("mean_C11", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std_C11", torch.tensor(STD)[:, None, None])

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        start_BCHW = self.router.forward_stem(_normalized(self, pixels), self.stages)
        features_BD = self.router.forward_rest(start_BCHW, self.stages)
        outputs = features_BD, self.router.fc(features_BD)
        return (*outputs, start_BCHW) if self.stages else outputs


class _Expert(nn.Module):
    """From pixels, or from what the stages give that it shares with the trunk."""

    def __init__(self, network: ResNet, stages: int) -> None:
        super().__init__()
        self.network, self.stages = network, stages
        self.register_buffer("mean_C11", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std_C11", torch.tensor(STD)[:, None, None])

    def forward(self, start: Tensor) -> Tensor:
        if self.stages:
            return self.network.forward_rest(start, self.stages)
        return self.network.features(_normalized(self, start))


def _normalized(module: nn.Module, pixels_BHWC: Tensor) -> Tensor:
    pixels_BCHW = pixels_BHWC.permute(0, 3, 1, 2).float()
    return (pixels_BCHW - module.get_buffer("mean_C11")) / module.get_buffer("std_C11")


def export_onnx(
    bundle: Bundle, out: Path, card: str | None = None, report: Callable[[int], None] = lambda _: None
) -> dict[str, Any]:
    """Writes the new folder `out`, with the card, and returns what its mixture.json says.

    Each file's outputs are compared with torch's by onnxruntime. `report` is called with the number of experts that
    are done. Raises BadSetting where `out` exists or has no folder to lie in, MissingLibrary without onnx, HardmoeError
    where outputs differ.
    """
    _check_libraries()
    with new_folder(out) as folder:
        (folder / "experts").mkdir()
        document = _written(bundle, folder, report)
        if card is not None:
            write_text(folder / CARD, card)
        write_text(folder / DOCUMENT, json.dumps(with_checksum(document), indent=1, ensure_ascii=False))
    return document


def _written(bundle: Bundle, folder: Path, report: Callable[[int], None]) -> dict[str, Any]:
    pixels_BHWC = _drawn(bundle)
    names = ["features", "logits", "start"] if bundle.branch_at else ["features", "logits"]
    trunk = _Trunk(bundle.router, bundle.branch_at).eval()
    _save(_program(trunk, pixels_BHWC, "pixels", names), folder / "trunk.onnx")
    features_BD, _, *start = _checked(folder / "trunk.onnx", trunk, pixels_BHWC, "pixels")

    decoder = bundle.decoder.eval()
    _save(_program(decoder, features_BD, "features", ["logits"]), folder / "decoder.onnx")
    _checked(folder / "decoder.onnx", decoder, features_BD, "features")

    first = start[0] if start else pixels_BHWC
    reads = "start" if start else "pixels"
    program = _program_of_experts(bundle, first, reads)
    experts: dict[str, Any] = {}

    def write(key: str, network: ResNet) -> None:
        expert, path = _Expert(network, bundle.branch_at).eval(), folder / "experts" / f"{key}.onnx"
        _fill(program, network, bundle.branch_at)
        _save(program, path)
        _checked(path, expert, first, reads)
        experts[key] = _entry(folder, path) | {"published": bundle.published[key]}
        report(len(experts))

    bundle.each_expert(bundle.published, write)
    gate = bundle.gate
    np.savez(
        folder / "gate.npz",
        mean=gate.whitening.mean_D,
        projection=gate.whitening.projection_DP,
        centroids=gate.centroids_MP,
        expert=gate.expert_M,
    )
    write_text(folder / "hashtags.json", json.dumps(bundle.hashtags, ensure_ascii=False))
    return {
        "format": FORMAT,
        "how": list(HOW),
        "answer": bundle.answer,
        "router_weight": bundle.router_weight,
        "temperature": bundle.temperature,
        "loss": bundle.loss,
        "precision": "float32",
        "image_size": bundle.image_size,
        "branch_at": bundle.branch_at,
        "input": reads,
        "trunk": _entry(folder, folder / "trunk.onnx"),
        "decoder": _entry(folder, folder / "decoder.onnx"),
        "gate": _entry(folder, folder / "gate.npz"),
        "vocabulary": _entry(folder, folder / "hashtags.json"),
        "experts": {key: experts[key] for key in bundle.published},  # in the order of the gate's numbers
        "made_from": bundle.parts,
    }


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    files = {"file": path, "data": path.with_name(f"{path.name}.data")}  # the latter of networks above 2 GB
    there = {name: file for name, file in files.items() if file.exists()}
    return {name: str(file.relative_to(folder)) for name, file in there.items()} | {"sha256": file_hash(path)}


def _drawn(bundle: Bundle) -> Tensor:
    """Two pictures that nobody took, (2, S, S, 3) uint8."""
    size = bundle.image_size
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8))


def _check_libraries() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingLibrary(f"ONNX files need {error.name}: pip install 'hardmoe[onnx]'") from None


def _program(module: nn.Module, example_B: Tensor, reads: str, gives: list[str]) -> Any:
    """The module as a graph for any number of images; nothing in it names files of this machine."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that torchvision is not installed
    try:
        with warnings.catch_warnings(action="ignore"), torch.inference_mode(False), torch.no_grad():
            program = torch.onnx.export(
                module,
                (example_B.clone(),),
                dynamo=True,
                input_names=[reads],
                output_names=gives,
                dynamic_shapes=({0: torch.export.Dim("B")},),
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    return program


def _program_of_experts(bundle: Bundle, example_B: Tensor, reads: str) -> Any:
    """The one graph of all experts, with drawn weights: the exporter drops and joins those that are zero or equal."""
    generator = torch.Generator().manual_seed(0)
    with bundle.experts.using(next(iter(bundle.published))) as state:
        drawn = {name: torch.rand(tensor.shape, generator=generator) for name, tensor in state.items()}
    with bundle.filled(channels_last(drawn)) as network:
        return _program(_Expert(network, bundle.branch_at).eval(), example_B, reads, ["features"])


def _fill(program: Any, network: ResNet, stages: int) -> None:
    """Puts an expert's weights in place of those that the graph has."""
    import onnx_ir

    places = program.model.graph.initializers
    shared = tuple(f"{name}." for name in shared_layer_names(stages))
    for name, parameter in network.named_parameters():
        if not name.startswith(shared):
            weight = onnx_ir.tensor(parameter.detach().contiguous().numpy(), name=f"network.{name}")
            assert places[weight.name].shape == weight.shape, name
            places[weight.name].const_value = weight


def _save(program: Any, path: Path) -> None:
    """Writes one file; of a network of 2 GB and more the weights lie beside it, in path.data."""
    with warnings.catch_warnings(action="ignore"):
        program.save(path)


def _checked(path: Path, module: nn.Module, example_B: Tensor, reads: str) -> tuple[Tensor, ...]:
    """What torch gives of the example. Raises HardmoeError where onnxruntime gives something else of the file."""
    with torch.no_grad():
        outputs = module(example_B)
    wanted = outputs if isinstance(outputs, tuple) else (outputs,)
    for want, came in zip(wanted, session(path).run(None, {reads: example_B.numpy()}), strict=True):
        difference = float(np.abs(want.numpy() - came).max())
        if not difference <= TOLERANCE * max(1.0, float(want.abs().max())):
            raise HardmoeError(
                f"{path.name}: onnxruntime differs from torch by {difference:.2g} on a drawn picture, more than "
                f"{TOLERANCE:g} of the largest number: not exported; please report it"
            )
    return wanted


def session(path: Path) -> Any:
    """onnxruntime on the CPU with one of these files; it logs errors alone."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
