"""Weights on disk: safetensors with what they are in the header; never pickles, never numbers that are not finite."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from moe_core.store import write_bytes


def save_weights(path: Path, state: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Writes `path` whole or not at all. Raises ValueError naming the first tensor with a NaN or an infinity."""
    from safetensors.torch import save

    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds a number that is not finite: not saved to {path}")
    # safetensors writes several entries in random order: one entry keeps equal weights equal files
    metadata = {"about": json.dumps(dict(about), sort_keys=True)}
    data = save({k: v.detach().cpu().contiguous() for k, v in state.items()}, metadata=metadata)
    write_bytes(path, data)


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(state, what was said about it). Raises ValueError when the file is not what `save_weights` wrote."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, _about(file.metadata())  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable weights file: {error}") from None


def read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    """The state in a file of this SHA-256; it is read once, so the bytes that are loaded are those that were checked.

    Raises ValueError for other bytes. Needs the file's size in memory twice for a moment.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError(f"{path} is not the file the manifest names (SHA-256 differs): copy the bundle again")
        return load(data)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable weights file: {error}") from None


def about_weights(path: Path) -> dict[str, str]:
    """What was said about a weights file, from its header alone. Raises ValueError as `load_weights` does."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return _about(file.metadata())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable weights file: {error}") from None


def _about(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """What `save_weights` was told; nothing for a file of another program."""
    about: dict[str, str] = json.loads((metadata or {}).get("about", "{}"))
    return about
