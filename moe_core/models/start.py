"""Weights of torchvision's or timm's ResNets as the start of ours, matched by name, without the last layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from moe_core.models.resnet import ResNet

OURS = ("fc.", "conv_embed.", "bn_embed.")  # layers that no such file has for our hashtags and embedding


def load_start(model: ResNet, path: Path) -> None:
    """Copies the weights of a .safetensors or .pth file of a state_dict into `model`, its last layers excepted.

    Raises ValueError for a file that is none, that lacks a layer of the network or has others, or whose numbers are not
    finite. Nothing in the file is executed.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in _read(path).items()}
    state = {name: tensor for name, tensor in state.items() if not name.startswith(OURS)}
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(OURS)}
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    foreign = [name for name in state if name not in own]
    if missing or foreign:
        has_not = f"lacks {missing[0]} and {len(missing) - 1} more" if missing else f"holds {foreign[0]} besides"
        raise ValueError(f"{path} {has_not}: set network.block, stem, widths and depths to those of its network")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, the network wants {tuple(own[name].shape)}: set "
                "network.block, stem, widths and depths to those of its network"
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{path}: {name} holds a number that is not finite")
    model.load_state_dict(state, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    """The state_dict in a file, alone or under the usual keys."""
    import pickle

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path.stat()  # says what is wrong with a path
    found: Any
    try:
        if path.suffix.lower() == ".safetensors":
            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} holds more than tensors, which is not loaded, or is no file of torch's: wanted a state_dict, "
            "saved by torch.save or as .safetensors"
        ) from None
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, SafetensorError):
        raise ValueError(
            f"{path} is no whole file of weights: wanted a state_dict saved by torch.save, or a .safetensors file"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{path} holds no state_dict: wanted names of parameters and their tensors")
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{path} holds no state_dict: {name} is a {type(tensor).__name__}, wanted a tensor")
        numbers = tensor.is_floating_point() or name.endswith("num_batches_tracked")
        if not numbers or tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise ValueError(f"{path}: {name} is a {tensor.dtype} tensor, {tensor.layout}: wanted dense floats")
    return found
