"""Whether the probability of the first hashtag is the share of posts in which it is right, and the temperature that
makes it so (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).

Letters: N posts, B of a part, V hashtags, T temperatures.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_core.evaluation.metrics import SMALLEST

BINS = 15
TEMPERATURES = tuple(2 ** (step / 8) for step in range(-16, 25))  # 0.25 to 8
DEFINITION = (
    f"expected calibration error: the first hashtag's probability, in {BINS} bins of equal width; over bins, the "
    "difference between its mean and the share of posts that carry that hashtag, weighted by the bin's posts"
)


@dataclass(frozen=True)
class Calibration:
    """Posts in bins of the first hashtag's probability."""

    posts: np.ndarray  # (BINS,) int64
    confidence: np.ndarray  # (BINS,) float64: mean probability; 0 in an empty bin
    right: np.ndarray  # (BINS,) float64: share of posts that carry the first hashtag

    @property
    def ece(self) -> float:
        """Expected calibration error; 0 without posts."""
        return float((self.posts * np.abs(self.confidence - self.right)).sum() / max(1, self.posts.sum()))

    def as_json(self) -> list[dict[str, Any]]:
        """The bins with posts."""
        rows = zip(self.posts.tolist(), self.confidence.tolist(), self.right.tolist(), strict=True)
        return [{"n": n, "confidence": round(c, 4), "right": round(r, 4)} for n, c, r in rows if n]


def calibration(confidence_N: np.ndarray, right_N: np.ndarray) -> Calibration:
    """Of each post: the probability of its first hashtag, and whether it carries that (1.0 or 0.0)."""
    bin_N = np.minimum((np.asarray(confidence_N) * BINS).astype(np.int64), BINS - 1)
    posts = np.bincount(bin_N, minlength=BINS)
    sums = (np.bincount(bin_N, values, minlength=BINS) for values in (confidence_N, right_N))
    confidence, right = (total / np.maximum(posts, 1) for total in sums)
    return Calibration(posts, confidence, right)


def scaled(probabilities_BV: Tensor, temperature: float) -> Tensor:
    """(B, V): each to the power of 1 / temperature, of sum 1. Of a softmax that is the softmax of logits / temperature.
    The order of an image's hashtags stays."""
    if temperature == 1:
        return probabilities_BV
    return (probabilities_BV.clamp(min=SMALLEST).log() / temperature).softmax(1)


def first_probabilities(probabilities_BV: Tensor) -> np.ndarray:
    """(T, B) float64: the probability of each post's first hashtag at each of TEMPERATURES."""
    log_BV = probabilities_BV.clamp(min=SMALLEST).log()
    from_first_BV = log_BV - log_BV.amax(1, keepdim=True)
    sums = [(from_first_BV / temperature).exp().sum(1) for temperature in TEMPERATURES]
    return (1 / torch.stack(sums)).double().cpu().numpy()


def best_temperature(confidence_TN: np.ndarray, right_N: np.ndarray) -> float:
    """The one of TEMPERATURES by which the first hashtag's probability says best whether it is right: by log-loss."""
    p_TN = confidence_TN.clip(SMALLEST, 1 - 1e-9)
    loss_T = -np.where(right_N > 0, np.log(p_TN), np.log1p(-p_TN)).mean(1)
    return TEMPERATURES[int(loss_T.argmin())]
