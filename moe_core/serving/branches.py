"""Experts as a bundle has them: on disk without their decoder and the stages that they share with the router, in memory
with each batch norm taken into the convolution before it, which changes answers by rounding only.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from moe_core.errors import CorruptArtifact
from moe_core.models.resnet import ResNet, shared_layer_names
from moe_core.models.shape import NetworkShape
from moe_core.weights import Shapes, load_weights, save_weights

NORM = ("weight", "bias", "running_mean", "running_var")
EPSILON = nn.BatchNorm2d(1).eps


def shared_weights(router: Path, stages: int) -> dict[str, Tensor]:
    """Weights of the router's stem and first `stages` stages."""
    state, _ = load_weights(router)
    return {name: tensor for name, tensor in state.items() if name.startswith(_prefixes(stages))}


def write_branch(expert: Path, to: Path, early: Mapping[str, Tensor]) -> None:
    """Writes the expert's weights without its decoder and those of `early`.

    Raises CorruptArtifact for an expert that has others in their place.
    """
    state, about = load_weights(expert)
    for name, tensor in early.items():
        if name not in state or not torch.equal(state[name], tensor):
            raise CorruptArtifact(
                f"{expert}: {name} is not the router's, although expert.branch_at says they share it: materialize the "
                "expert again"
            )
    save_weights(to, {name: t for name, t in state.items() if name not in early and not name.startswith("fc.")}, about)


class ExpertTemplate:
    """A network that takes the weights of one expert after another; it shares the router's first `stages` stages.

    For one thread at a time.
    """

    def __init__(self, network: NetworkShape, router: ResNet, stages: int) -> None:
        with torch.device("meta"):
            self.network = ResNet(network, 1).eval()
            self.network.fc = nn.Identity()  # type: ignore[assignment]
            for name in shared_layer_names(stages):
                self.network.set_submodule(name, nn.Identity())
            for name, module in list(self.network.named_modules()):
                if isinstance(module, nn.Conv2d):
                    module.bias = nn.Parameter(torch.empty(module.out_channels))
                    self.network.set_submodule(_norm_of(name), nn.Identity())
        for name in shared_layer_names(stages):
            self.network.set_submodule(name, router.get_submodule(name))

    @contextmanager
    def filled(self, state: Mapping[str, Tensor]) -> Iterator[ResNet]:
        """The network of an expert while inside, from what `fused` gives. `load_state_dict` takes as long as a dozen
        images do."""
        places = [(self.network.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in state]
        try:
            for (module, leaf), tensor in zip(places, state.values(), strict=True):
                setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
            yield self.network
        finally:
            for module, leaf in places:
                setattr(module, leaf, None)  # or the weights would outlive their place in memory


def own_shapes(shapes: Shapes, stages: int) -> Shapes:
    """Shapes without the decoder, the stem and the first `stages` stages."""
    shared = ("fc.", *_prefixes(stages))
    return {name: shape for name, shape in shapes.items() if not name.startswith(shared)}


def fused(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An expert's weights with each batch norm taken into the convolution before it; a decoder is left out."""
    fused_state: dict[str, Tensor] = {}
    for conv in [name.removesuffix(".weight") for name, tensor in state.items() if tensor.ndim == 4]:
        weight, bias, mean, variance = (state[f"{_norm_of(conv)}.{name}"] for name in NORM)
        fused_state[f"{conv}.weight"], fused_state[f"{conv}.bias"] = fuse_conv_bn_weights(
            state[f"{conv}.weight"], None, mean, variance, EPSILON, weight, bias
        )
    return fused_state


def _norm_of(conv: str) -> str:
    """The batch norm that follows a convolution."""
    head, _, name = conv.rpartition(".")
    return ".".join(part for part in (head, "1" if name == "0" else name.replace("conv", "bn")) if part)


def _prefixes(stages: int) -> tuple[str, ...]:
    return tuple(f"{name}." for name in shared_layer_names(stages))
