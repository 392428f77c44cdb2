"""Weights on disk: safetensors, with a description and a checksum of both in the header; no pickles, and no numbers
that are not finite."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from moe_core.errors import CorruptArtifact, HardmoeError, NotFinite
from moe_core.store.files import write_bytes
from moe_core.text import shown

CHECKSUM = "checksum"
SMALL = 1 << 16  # numbers of a tensor
Shape = tuple[str, tuple[int, ...]]  # type by safetensors' name, such as F32, and sizes
Shapes = Mapping[str, Shape]


def save_weights(path: Path, state: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Writes `path` whole or not at all. Raises NotFinite naming the first tensor with a NaN or an infinity."""
    from safetensors.torch import save

    if (name := _not_finite(state)) is not None:
        raise NotFinite(f"{name} holds a number that is not finite: not saved to {path}")
    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    # safetensors writes several entries in random order: one entry keeps equal weights equal files
    described = dict(about) | {CHECKSUM: _checksum(tensors, about)}
    write_bytes(path, save(tensors, metadata={"about": json.dumps(described, sort_keys=True)}))


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(state, `about`). Raises CorruptArtifact for a file that `save_weights` did not write."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = _about(file.metadata())
    except (SafetensorError, OSError, ValueError) as error:
        message = f"{path} is not a readable weights file: {error}: delete it and run again"
        raise CorruptArtifact(message, path) from None
    checksum = about.pop(CHECKSUM, None)  # another program writes none
    if checksum is not None and checksum != _checksum(state, about):
        raise CorruptArtifact(f"{path} is damaged (its checksum does not match): delete it and run again", path)
    return state, about


def read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    """The state in a file of this SHA-256; it is read once, so the bytes that are loaded are those that were checked.

    Raises CorruptArtifact for other bytes, and NotFinite for a number that is not finite, which a right SHA-256 does
    not rule out.
    Needs the file's size in memory twice for a moment.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            message = f"{path} is not the file the manifest names (SHA-256 differs): copy the bundle again"
            raise CorruptArtifact(message, path)
        state: dict[str, Tensor] = load(data)
    except (SafetensorError, OSError) as error:
        raise CorruptArtifact(f"{path} is not a readable weights file: {error}", path) from None
    except MemoryError:
        raise HardmoeError(f"{path} does not fit into memory, {path.stat().st_size:,} bytes") from None
    if (name := _not_finite(state)) is not None:
        raise NotFinite(f"{path}: {shown(name)} holds a number that is not finite")
    return state


def _not_finite(state: Mapping[str, Tensor]) -> str | None:
    """The first tensor that holds a NaN or an infinity. Small ones, of which there are many, are checked together."""
    numbers = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    small = [tensor.reshape(-1) for tensor in numbers.values() if tensor.numel() <= SMALL]
    if small and torch.isfinite(torch.cat(small)).all():
        numbers = {name: tensor for name, tensor in numbers.items() if tensor.numel() > SMALL}
    return next((name for name, tensor in numbers.items() if not torch.isfinite(tensor).all()), None)


def read_header(path: Path) -> tuple[dict[str, str], Shapes]:
    """(`about`, type and shape of each tensor), from the header of a weights file alone.

    Raises CorruptArtifact as `load_weights` does.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
            return {name: value for name, value in _about(file.metadata()).items() if name != CHECKSUM}, shapes
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptArtifact(f"{path} is not a readable weights file: {error}", path) from None


def _about(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """`about` with its checksum; empty for a file of another program. Raises ValueError for anything else."""
    try:
        about = json.loads((metadata or {}).get("about", "{}"))
    except RecursionError:
        about = None
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        raise ValueError("its metadata is no table of texts")
    return about


def _checksum(state: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """SHA-256 of `about` and of each tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(json.dumps(dict(about), sort_keys=True).encode())
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        if tensor.numel():  # torch views no empty array of numpy
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
