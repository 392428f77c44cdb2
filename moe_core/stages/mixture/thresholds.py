"""What validation posts say of the published answer's probabilities: each hashtag's thresholds, and how far to trust
the first hashtag's probability.

Letters: N posts, B of a part, V hashtags, K experts, T temperatures.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_core.evaluation.answers import Answer
from moe_core.evaluation.calibration import TEMPERATURES, best_temperature, calibration, first_probabilities
from moe_core.evaluation.metrics import best_hashtags
from moe_core.evaluation.thresholds import Curves, ThresholdCounts
from moe_core.training.infer import mixed, probabilities_of
from moe_core.training.posts import Posts

PRECISIONS = (0.5, 0.8, 0.9, 0.95)  # for which the number of hashtags that have a threshold is recorded
POSTS = 8192  # for the temperature, at most: each is looked at once a temperature


@dataclass(frozen=True)
class PublishedAnswer:
    """The answer that a bundle gives its users, on posts with features: by each post's own expert and the shared
    decoder, perhaps with the router's logits mixed in; by the router alone where that expert is not published."""

    own: Answer
    router: Answer
    used_N: np.ndarray  # bool: whether the post's expert is published
    router_weight: float | None  # None: the expert answers alone
    loss: str

    def parts(self, device: str) -> Iterator[tuple[np.ndarray, Tensor]]:
        """(places of some posts (B,), their probabilities (B, V) on the device)."""
        for rows_B in self.own.parts():
            own_BV, router_BV = self.own.logits(rows_B, device), self.router.logits(rows_B, device)
            used_B1 = torch.from_numpy(self.used_N[rows_B]).to(device)[:, None]
            logits_BV = torch.where(used_B1, own_BV, router_BV)
            if self.router_weight is None:
                yield rows_B, probabilities_of(logits_BV, self.loss)
            else:
                yield rows_B, mixed(logits_BV, router_BV, self.router_weight, self.loss)


@dataclass(frozen=True)
class Measured:
    """Thresholds and calibration by validation posts."""

    curves: Curves
    calibration_temperature: float
    ece: float  # expected calibration error, on these posts
    ece_scaled: float  # the same with the temperature, on the posts that it was chosen on

    def as_metadata(self) -> dict[str, Any]:
        """What the artifact records."""
        have = {str(precision): int(np.isfinite(self.curves.thresholds(precision)).sum()) for precision in PRECISIONS}
        return {
            "calibration_temperature": self.calibration_temperature,
            "validation_ece": {"before": round(self.ece, 4), "after": round(self.ece_scaled, 4)},
            "hashtags_with_thresholds": have,
        }


def measure(answer: PublishedAnswer, posts: Posts, hashtags: int, device: str) -> Measured:
    """Reads each post's answer once."""
    counts, right_N = ThresholdCounts(hashtags), np.zeros(len(posts))
    sampled_N = np.zeros(len(posts), bool)
    sampled_N[np.random.default_rng(0).permutation(len(posts))[:POSTS]] = True
    confidence_TN = np.zeros((len(TEMPERATURES), len(posts)))
    confidence_N = np.zeros(len(posts))
    for rows_B, p_BV in answer.parts(device):
        tags_T, starts_B1 = posts.tag_rows(rows_B)
        counts.add(p_BV, tags_T, starts_B1)
        first_B = best_hashtags(p_BV, 1)[:, 0]
        owner_T = torch.repeat_interleave(torch.arange(len(rows_B)), starts_B1.diff())
        right_N[rows_B[owner_T[tags_T == first_B[owner_T]].numpy()]] = 1
        confidence_N[rows_B] = p_BV.amax(1).double().cpu().numpy()
        some_B = sampled_N[rows_B]
        confidence_TN[:, rows_B[some_B]] = first_probabilities(p_BV[torch.from_numpy(some_B).to(p_BV.device)])
    temperature = best_temperature(confidence_TN[:, sampled_N], right_N[sampled_N])
    scaled_N = confidence_TN[TEMPERATURES.index(temperature)]
    return Measured(
        counts.curves(),
        temperature,
        calibration(confidence_N, right_N).ece,
        calibration(scaled_N[sampled_N], right_N[sampled_N]).ece,
    )
