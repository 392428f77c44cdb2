"""Initial weights of a network from a torchvision or timm ResNet, matched by name, without the last layer."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_core.errors import BadSetting, NotFinite
from moe_core.models.resnet import ResNet
from moe_core.text import shown

FIRST = "conv1.weight"  # every such network has it; the last part of no other name but those of the blocks
UNDER = ("state_dict", "model_state_dict", "model", "ema", "model_ema")  # of several networks, the first of these
OURS = ("fc.", "conv_embed.", "bn_embed.")  # layers that no such file has for our hashtags and embedding


def load_start(model: ResNet, path: Path) -> None:
    """Copies the weights of a .safetensors or .pth file of a state_dict into `model`, its last layers excepted.

    A prefix that a wrapper put before all layers (`module.`, `_orig_mod.`, `backbone.`) is removed, and so are names of
    dictionaries around them; tensors outside that network are left out. Raises BadSetting for a file without a
    state_dict or with other layers than the network, and NotFinite for numbers that are not finite. Nothing in the file
    is executed.
    """
    state = {name: tensor for name, tensor in _alone(_tensors(path), path).items() if not name.startswith(OURS)}
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(OURS)}
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    foreign = [name for name in state if name not in own]
    if missing or foreign:
        has_not = f"lacks {missing[0]} and {len(missing) - 1} more" if missing else f"holds {shown(foreign[0])} besides"
        raise BadSetting(f"{path} {has_not}: set network.block, stem, widths and depths to those of its network")
    for name, tensor in state.items():
        numbers = tensor.is_floating_point() or name.endswith("num_batches_tracked")
        if not numbers or tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise BadSetting(f"{path}: {name} is a {tensor.dtype} tensor, {tensor.layout}: wanted dense floats")
        if tensor.shape != own[name].shape:
            raise BadSetting(
                f"{path}: {name} has shape {tuple(tensor.shape)}, the network wants {tuple(own[name].shape)}: set "
                "network.block, stem, widths and depths to those of its network"
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise NotFinite(f"{path}: {name} holds a number that is not finite")
    model.load_state_dict(state, strict=False)


def _alone(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The one network of a file under its own names. Raises BadSetting where there are several, such as a student and
    its teacher."""
    within = re.compile(r"(^|\.)layer\d+\.")
    firsts = [n for n in state if n == FIRST or (n.endswith(f".{FIRST}") and not within.search(n))]
    prefixes = [name.removesuffix(FIRST) for name in firsts]
    if not prefixes or "" in prefixes:
        return state
    usual = [[prefix for prefix in prefixes if prefix.startswith(f"{key}.")] for key in UNDER]
    prefixes = next(filter(None, usual), prefixes)
    if len(prefixes) > 1:
        names = ", ".join(shown(prefix + FIRST) for prefix in sorted(prefixes)[:4])
        raise BadSetting(
            f"{path} holds {len(prefixes)} networks ({names}): wanted one, so save the state_dict of that one alone"
        )
    return {name.removeprefix(prefixes[0]): value for name, value in state.items() if name.startswith(prefixes[0])}


def _tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by name; those in dictionaries within each other by all their names, joined by dots.

    What has a number for a name, as in the state of an optimizer, is left out.
    """
    tensors: dict[str, Tensor] = {}
    waiting, seen = [("", _read(path))], set[int]()  # a file may hold one dictionary many times, or within itself
    while waiting:
        prefix, value = waiting.pop()
        if isinstance(value, Tensor):
            tensors[prefix.removesuffix(".")] = value
        elif isinstance(value, dict) and id(value) not in seen:
            seen.add(id(value))
            named = [(f"{prefix}{name}.", inner) for name, inner in value.items() if isinstance(name, str)]
            waiting += reversed(named)
    if not tensors:
        raise BadSetting(f"{path} holds no state_dict: wanted names of parameters and their tensors")
    return tensors


def _read(path: Path) -> Any:
    import pickle

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path.stat()  # its error names what is wrong with a path
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise BadSetting(
            f"{path} holds more than tensors, which is not loaded, or is no file of torch's: wanted a state_dict, "
            "saved by torch.save or as .safetensors"
        ) from None
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, SafetensorError):
        raise BadSetting(
            f"{path} is no whole file of weights: wanted a state_dict saved by torch.save, or a .safetensors file"
        ) from None
