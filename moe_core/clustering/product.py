"""Products of matrices that lie in memory: where they are computed, and how many rows at once."""

import numpy as np
import torch
from torch import Tensor

BYTES_AT_ONCE = 256 << 20  # of a float32 matrix
ROWS_AT_ONCE = 65_536


def best_device() -> str:
    """The current GPU where torch sees one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def rows_at_once(*widths: int) -> int:
    """Rows of matrices of these widths: none of them has more than BYTES_AT_ONCE."""
    return max(1, min(ROWS_AT_ONCE, BYTES_AT_ONCE // (4 * max(widths))))


def placed_on(device: str, array: np.ndarray) -> Tensor:
    """An array as float32 on a device. A read-only one is copied: torch warns of it."""
    return torch.from_numpy(np.require(array, np.float32, ["C", "W"])).to(device)
