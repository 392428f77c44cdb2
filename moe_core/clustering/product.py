"""Products of matrices on a device, for arrays that lie in memory."""

import numpy as np
import torch


def product(a_NP: np.ndarray, b_PM: np.ndarray, device: str) -> np.ndarray:
    """(N, M): a @ b, computed on the device; numpy's own on the CPU."""
    if device == "cpu":
        return np.asarray(a_NP @ b_PM)
    a, b = (torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in (a_NP, b_PM))
    return np.asarray((a @ b).cpu().numpy())


def best_device() -> str:
    """The current GPU where torch sees one."""
    return "cuda" if torch.cuda.is_available() else "cpu"
