"""thresholds.safetensors of a bundle: what a threshold for any precision follows from, without data."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from moe_core.errors import CorruptArtifact
from moe_core.evaluation.thresholds import Curves
from moe_core.serving.manifest import Entry, check_shapes, file_in
from moe_core.store.hashing import file_hash
from moe_core.weights import read_header, read_weights, save_weights

NAME = "thresholds.safetensors"
MOST_POINTS = 257  # of a hashtag: those of the grid


def write_thresholds(folder: Path, curves: Curves) -> dict[str, Any]:
    """Writes the file, and gives its entry of the manifest."""
    state = {
        "starts": torch.from_numpy(curves.starts_V1),
        "threshold": torch.from_numpy(curves.threshold_C),
        "true": torch.from_numpy(curves.true_C),
        "above": torch.from_numpy(curves.above_C),
        "positives": torch.from_numpy(curves.positives_V),
        "posts": torch.tensor([curves.posts]),
    }
    save_weights(folder / NAME, state, {})
    return {"file": NAME, "sha256": file_hash(folder / NAME)}


def read_thresholds(folder: Path, entry: Entry, hashtags: int) -> Curves:
    """The curves of a bundle with so many hashtags. Raises CorruptArtifact for anything else."""
    path = file_in(folder, entry.file)
    _, shapes = read_header(path)
    points = shapes.get("threshold", ("", (0,)))[1]
    many = points[0] if len(points) == 1 and points[0] <= MOST_POINTS * hashtags else 0
    whole = dict.fromkeys(("true", "above"), ("I64", (many,))) | {"threshold": ("F32", (many,))}
    counts = {"starts": ("I64", (hashtags + 1,)), "positives": ("I64", (hashtags,)), "posts": ("I64", (1,))}
    check_shapes(path, shapes, {**whole, **counts})
    state = {name: tensor.numpy() for name, tensor in read_weights(path, entry.sha256).items()}
    curves = Curves(
        state["starts"], state["threshold"], state["true"], state["above"], state["positives"], int(state["posts"][0])
    )
    if not _are_curves(curves, many):
        raise CorruptArtifact(f"{path} holds no thresholds: its counts do not fit together; materialize mixture again")
    return curves


def _are_curves(curves: Curves, points: int) -> bool:
    starts = curves.starts_V1
    if starts[0] != 0 or starts[-1] != points or (np.diff(starts) < 0).any():
        return False
    whole = (curves.true_C >= 0) & (curves.true_C <= curves.above_C) & (curves.above_C >= 1)
    whole &= (curves.above_C <= curves.posts) & (curves.threshold_C > 0) & (curves.threshold_C <= 1)
    return bool(whole.all())
