"""What validation posts choose about an answer: whether it is the expert's alone, how much of it is the router's, and
how soft the weights of several experts are. All by cross-entropy, which turns on every post and so varies less than the
count of right answers: by that, of 795 posts of tinyimagenet, one chose the answer that was worse on 10,000.

Letters: N posts, K experts, V hashtags, T tags of all posts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from moe_core.stages.mixture.routed_posts import RoutedPosts

if TYPE_CHECKING:
    from torch import Tensor

    from moe_core.clustering.gate import Gate
    from moe_core.training.batches import Posts

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
TEMPERATURES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
SHARE, TEMPERATURE = 0.3, 0.1  # without validation posts
POSTS = 4096  # at most that every expert looks at for the temperature


def given(said: float | str, otherwise: float) -> float:
    """The number that settings say, or another where they leave it to validation posts."""
    return otherwise if isinstance(said, str) else said


def router_weight(said: float | str, logits_NV: Tensor, router_NV: Tensor, posts: Posts, loss: str) -> float:
    """The share that was said, or of SHARES the best one; of equally good ones the smallest."""
    from moe_core.evaluation.metrics import per_post
    from moe_core.training.infer import mixed

    if not isinstance(said, str) or not len(posts):
        return given(said, SHARE)
    entropies = [
        per_post(mixed(logits_NV, router_NV, share, loss), posts.tags_T, posts.starts_N1)["cross_entropy"].mean()
        for share in SHARES
    ]
    return SHARES[int(np.argmin(entropies))]


def answer(scores: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """Of the answers by name, each with its (N,) measures, the best one; of equally good ones the first."""
    return min(scores, key=lambda name: float(scores[name]["cross_entropy"].mean()))


def temperature(
    said: float | str,
    gate: Gate,
    topk: int,
    asked: RoutedPosts,
    answers: Sequence[Callable[[RoutedPosts], Tensor]],
) -> float:
    """The temperature that was said, or of TEMPERATURES the best one for the mean of the `topk` nearest experts.

    `answers`: of each expert its probabilities (N, V) for some posts; of one that is not published, the router's.
    """
    import torch

    from moe_core.evaluation.metrics import SMALLEST

    if not isinstance(said, str) or not len(asked):
        return given(said, TEMPERATURE)
    asked = asked.rows(np.sort(np.random.default_rng(0).permutation(len(asked))[:POSTS]))
    counts_N = asked.posts.starts_N1.diff()
    owner_T = torch.repeat_interleave(torch.arange(len(asked)), counts_N)
    tags_TK = torch.stack([answer(asked)[owner_T, asked.posts.tags_T] for answer in answers], dim=1)

    def entropy(at: float) -> float:
        weight_TK = torch.from_numpy(gate.weights(asked.features_ND, topk, at))[owner_T]
        log_T = (weight_TK * tags_TK).sum(1).clamp(min=SMALLEST).log()
        return float(-(log_T / counts_N[owner_T]).sum())

    return min(TEMPERATURES, key=entropy)
