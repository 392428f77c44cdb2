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
from moe_core.evaluation.answers import Answer
from moe_core.evaluation.metrics import SMALLEST, cross_entropy, per_post, tag_probabilities
from moe_core.stages.reading import RoutedPosts
from moe_core.training.infer import mixed, probabilities_of
from moe_core.training.posts import Posts

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
TEMPERATURES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
WEIGHT, TEMPERATURE = 0.3, 0.1  # without validation posts
POSTS = 4096  # for the temperature, at most: every expert computes all of them


def fixed(setting: float | str, default: float) -> float:
    """The number in the settings, or the default where they leave it to validation posts."""
    return default if isinstance(setting, str) else setting


def router_weight(setting: float | str, own: Answer, router: Answer, posts: Posts, loss: str, device: str) -> float:
    """The weight in the settings, or the best of WEIGHTS beside `own`; the smallest of equally good ones."""
    if not isinstance(setting, str) or not len(posts):
        return fixed(setting, WEIGHT)
    entropy_WN = np.zeros((len(WEIGHTS), len(posts)))
    for rows_B in own.parts():
        logits_BV, router_BV, tags = own.logits(rows_B, device), router.logits(rows_B, device), posts.tag_rows(rows_B)
        for number, weight in enumerate(WEIGHTS):
            entropy_WN[number, rows_B] = cross_entropy(mixed(logits_BV, router_BV, weight, loss), *tags)
    return WEIGHTS[int(np.argmin(entropy_WN.mean(1)))]


def measures(
    own: Answer, router: Answer, weight: float, posts: Posts, loss: str, device: str
) -> dict[str, dict[str, np.ndarray]]:
    """The (N,) measures of each answer that may be published, and of the trunk's."""
    found: dict[str, list[dict[str, np.ndarray]]] = {}
    for rows_B in own.parts():  # one layer: in order
        logits_BV, router_BV, tags = own.logits(rows_B, device), router.logits(rows_B, device), posts.tag_rows(rows_B)
        found.setdefault("trunk", []).append(per_post(probabilities_of(router_BV, loss), *tags))
        found.setdefault("mixture_top1", []).append(per_post(probabilities_of(logits_BV, loss), *tags))
        found.setdefault("mixture_top1_router", []).append(per_post(mixed(logits_BV, router_BV, weight, loss), *tags))
    return {name: {m: np.concatenate([part[m] for part in parts]) for m in parts[0]} for name, parts in found.items()}


def answer(scores: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """Name of the best answer, given the (N,) measures of each; the first of equally good ones."""
    return min(scores, key=lambda name: float(scores[name]["cross_entropy"].mean()))


def temperature(
    setting: float | str,
    gate: Gate,
    topk: int,
    validation: RoutedPosts,
    experts: Sequence[Callable[[RoutedPosts], Answer]],
    loss: str,
    device: str,
) -> float:
    """The temperature in the settings, or the best of TEMPERATURES for the mean of the `topk` nearest experts.

    Each of `experts` answers some posts; in place of one that is not published, the router does.
    """
    if not isinstance(setting, str) or not len(validation):
        return fixed(setting, TEMPERATURE)
    sample = validation.rows(np.sort(np.random.default_rng(0).permutation(len(validation))[:POSTS]))
    counts_N = sample.posts.starts_N1.diff()
    owner_T = torch.repeat_interleave(torch.arange(len(sample)), counts_N)
    tags_TK = torch.stack([_of_tags(expert(sample), sample.posts, loss, device) for expert in experts], dim=1)

    def entropy(at: float) -> float:
        weight_TK = torch.from_numpy(gate.weights(sample.features_ND, topk, at, device))[owner_T]
        log_T = (weight_TK * tags_TK).sum(1).clamp(min=SMALLEST).log()
        return float(-(log_T / counts_N[owner_T]).sum())

    return min(TEMPERATURES, key=entropy)


def _of_tags(answer: Answer, posts: Posts, loss: str, device: str) -> Tensor:
    """(T,): the probability of each tag of each post; the answer has one layer, so that its parts are in order."""
    parts = (
        tag_probabilities(probabilities_of(answer.logits(rows_B, device), loss), *posts.tag_rows(rows_B))
        for rows_B in answer.parts()
    )
    return torch.cat(list(parts))
