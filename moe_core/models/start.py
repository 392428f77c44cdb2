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
UNDER = ("state_dict", "model_state_dict", "model", "ema", "model_ema")  # the first of these is taken
DEEPEST = 8  # dictionaries within each other
OURS = ("fc.", "conv_embed.", "bn_embed.")  # layers that no such file has for our hashtags and embedding


def load_start(model: ResNet, path: Path) -> None:
    """Copies the weights of a .safetensors or .pth file of a state_dict into `model`, its last layers excepted.

    A prefix that a wrapper put before all layers (`module.`, `_orig_mod.`, `backbone.`) is removed; tensors outside
    that network are left out. Raises BadSetting for a file without a state_dict or with other layers than the network,
    and NotFinite for numbers that are not finite. Nothing in the file is executed.
    """
    state = _alone(_read(path), path)
    _check_floats(state, path)
    state = {name: tensor for name, tensor in state.items() if not name.startswith(OURS)}
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(OURS)}
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    foreign = [name for name in state if name not in own]
    if missing or foreign:
        has_not = f"lacks {missing[0]} and {len(missing) - 1} more" if missing else f"holds {shown(foreign[0])} besides"
        raise BadSetting(f"{path} {has_not}: set network.block, stem, widths and depths to those of its network")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise BadSetting(
                f"{path}: {name} has shape {tuple(tensor.shape)}, the network wants {tuple(own[name].shape)}: set "
                "network.block, stem, widths and depths to those of its network"
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise NotFinite(f"{path}: {name} holds a number that is not finite")
    model.load_state_dict(state, strict=False)


def _alone(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """The one network of a file under its own names. Raises BadSetting where there are several, such as a student and
    its teacher."""
    within = re.compile(r"(^|\.)layer\d+\.")
    firsts = [n for n in state if n == FIRST or (n.endswith(f".{FIRST}") and not within.search(n))]
    prefixes = [name.removesuffix(FIRST) for name in firsts]
    if not prefixes or "" in prefixes:
        return state
    if len(prefixes) > 1:
        names = ", ".join(shown(prefix + FIRST) for prefix in sorted(prefixes)[:4])
        raise BadSetting(
            f"{path} holds {len(prefixes)} networks ({names}): wanted one, so save the state_dict of that one alone"
        )
    return {name.removeprefix(prefixes[0]): value for name, value in state.items() if name.startswith(prefixes[0])}


def _check_floats(state: dict[str, Any], path: Path) -> None:
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise BadSetting(f"{path} holds no state_dict: {shown(name)} is a {type(tensor).__name__}, wanted a tensor")
        numbers = tensor.is_floating_point() or name.endswith("num_batches_tracked")
        if not numbers or tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise BadSetting(f"{path}: {shown(name)} is a {tensor.dtype} tensor, {tensor.layout}: wanted dense floats")


def _read(path: Path) -> dict[str, Any]:
    """The state_dict in a file, alone or under the usual keys."""
    import pickle

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path.stat()  # its error names what is wrong with a path
    loaded: Any
    try:
        if path.suffix.lower() == ".safetensors":
            loaded = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise BadSetting(
            f"{path} holds more than tensors, which is not loaded, or is no file of torch's: wanted a state_dict, "
            "saved by torch.save or as .safetensors"
        ) from None
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, SafetensorError):
        raise BadSetting(
            f"{path} is no whole file of weights: wanted a state_dict saved by torch.save, or a .safetensors file"
        ) from None
    state = _unwrapped(loaded, path)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise BadSetting(f"{path} holds no state_dict: wanted names of parameters and their tensors")
    return state


def _unwrapped(value: Any, path: Path) -> Any:
    """The state_dict inside other dictionaries. Raises BadSetting where there are several."""
    for _ in range(DEEPEST):
        if not isinstance(value, dict) or any(isinstance(inner, Tensor) for inner in value.values()):
            break
        below = {name: inner for name, inner in value.items() if isinstance(inner, dict) and _has_tensors(inner)}
        under = next((key for key in UNDER if key in below), None)
        if under is None and len(below) > 1:
            names = ", ".join(shown(name) for name in sorted(map(str, below))[:4])
            raise BadSetting(f"{path} holds {len(below)} state_dicts ({names}): wanted one, so save that one alone")
        if not below:
            break
        value = below[under] if under is not None else next(iter(below.values()))
    return value


def _has_tensors(dictionary: dict[Any, Any]) -> bool:
    """Whether it names tensors, here or below; the state of an optimizer has numbers for names."""
    waiting, seen = [dictionary], set[int]()  # a file may hold one dictionary many times, or within itself
    while waiting:
        current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        named = [value for name, value in current.items() if isinstance(name, str)]
        if any(isinstance(value, Tensor) for value in named):
            return True
        waiting += [value for value in named if isinstance(value, dict)]
    return False
