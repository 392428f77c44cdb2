"""Choices by validation posts: which answer, how much weight the router has in it, how soft the weights of several
experts are. All go by cross-entropy, which depends on every post and so varies less than the count of right answers: by
that, 795 posts of tinyimagenet once chose the answer that was worse on 10,000.

Letters: N posts, K experts, V hashtags, T tags of all posts.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from moe_core.clustering.gate import Gate
from moe_core.evaluation.metrics import SMALLEST, per_post
from moe_core.stages.reading import RoutedPosts
from moe_core.training.infer import mixed
from moe_core.training.posts import Posts

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
TEMPERATURES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
WEIGHT, TEMPERATURE = 0.3, 0.1  # without validation posts
POSTS = 4096  # for the temperature, at most: every expert computes all of them


def fixed(setting: float | str, default: float) -> float:
    """The number in the settings, or the default where they leave it to validation posts."""
    return default if isinstance(setting, str) else setting


def router_weight(setting: float | str, logits_NV: Tensor, router_NV: Tensor, posts: Posts, loss: str) -> float:
    """The weight in the settings, or the best of WEIGHTS; the smallest of equally good ones."""
    if not isinstance(setting, str) or not len(posts):
        return fixed(setting, WEIGHT)
    entropies = [
        per_post(mixed(logits_NV, router_NV, weight, loss), posts.tags_T, posts.starts_N1)["cross_entropy"].mean()
        for weight in WEIGHTS
    ]
    return WEIGHTS[int(np.argmin(entropies))]


def answer(scores: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """Name of the best answer, given the (N,) measures of each; the first of equally good ones."""
    return min(scores, key=lambda name: float(scores[name]["cross_entropy"].mean()))


def temperature(
    setting: float | str,
    gate: Gate,
    topk: int,
    validation: RoutedPosts,
    experts: Sequence[Callable[[RoutedPosts], Tensor]],
) -> float:
    """The temperature in the settings, or the best of TEMPERATURES for the mean of the `topk` nearest experts.

    Each of `experts` gives probabilities (N, V) of some posts; in place of one that is not published, the router does.
    """
    if not isinstance(setting, str) or not len(validation):
        return fixed(setting, TEMPERATURE)
    sample = validation.rows(np.sort(np.random.default_rng(0).permutation(len(validation))[:POSTS]))
    counts_N = sample.posts.starts_N1.diff()
    owner_T = torch.repeat_interleave(torch.arange(len(sample)), counts_N)
    tags_TK = torch.stack([expert(sample)[owner_T, sample.posts.tags_T] for expert in experts], dim=1)

    def entropy(at: float) -> float:
        weight_TK = torch.from_numpy(gate.weights(sample.features_ND, topk, at))[owner_T]
        log_T = (weight_TK * tags_TK).sum(1).clamp(min=SMALLEST).log()
        return float(-(log_T / counts_N[owner_T]).sum())

    return min(TEMPERATURES, key=entropy)
