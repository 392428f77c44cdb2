"""Weights on disk: safetensors with what they are and a digest of both in the header; never pickles, never numbers that
are not finite."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from moe_core.store.files import write_bytes
from moe_core.text import shown

SEAL = "checksum"
Shape = tuple[str, tuple[int, ...]]  # type by safetensors' name, such as F32, and sizes
Shapes = Mapping[str, Shape]


def save_weights(path: Path, state: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Writes `path` whole or not at all. Raises ValueError naming the first tensor with a NaN or an infinity."""
    from safetensors.torch import save

    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds a number that is not finite: not saved to {path}")
    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    # safetensors writes several entries in random order: one entry keeps equal weights equal files
    said = dict(about) | {SEAL: _seal(tensors, about)}
    write_bytes(path, save(tensors, metadata={"about": json.dumps(said, sort_keys=True)}))


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(state, what was said about it). Raises ValueError when the file is not what `save_weights` wrote."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = _said(file.metadata())
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable weights file: {error}: delete it and run again") from None
    seal = about.pop(SEAL, None)  # none: of another program, or an older hardmoe
    if seal is not None and seal != _seal(state, about):
        raise ValueError(f"{path} is damaged (its seal does not match): delete it and run again")
    return state, about


def read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    """The state in a file of this SHA-256; it is read once, so the bytes that are loaded are those that were checked.

    Raises ValueError for other bytes, and for a number that is not finite, which a right SHA-256 does not rule out.
    Needs the file's size in memory twice for a moment.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError(f"{path} is not the file the manifest names (SHA-256 differs): copy the bundle again")
        state: dict[str, Tensor] = load(data)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable weights file: {error}") from None
    except MemoryError:
        raise ValueError(f"{path} does not fit into memory, {path.stat().st_size:,} bytes") from None
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: {shown(name)} holds a number that is not finite")
    return state


def about_weights(path: Path) -> dict[str, str]:
    """What was said about a weights file, from its header alone. Raises ValueError as `load_weights` does."""
    return look_at_weights(path)[0]


def look_at_weights(path: Path) -> tuple[dict[str, str], Shapes]:
    """(what was said about it, type and shape of each tensor), from the header of a weights file alone.

    Raises ValueError as `load_weights` does.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}
            return {name: value for name, value in _said(file.metadata()).items() if name != SEAL}, shapes
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable weights file: {error}") from None


def _said(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """What `save_weights` was given, and its seal; nothing for a file of another program. Raises ValueError."""
    try:
        said = json.loads((metadata or {}).get("about", "{}"))
    except RecursionError:
        said = None
    if not isinstance(said, dict) or not all(isinstance(value, str) for value in said.values()):
        raise ValueError("what it says about itself is no table of texts")
    return said


def _seal(state: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """SHA-256 of what is said, and of each tensor's name, type, shape and bytes."""
    found = hashlib.sha256(json.dumps(dict(about), sort_keys=True).encode())
    for name in sorted(state):
        tensor = state[name]
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
