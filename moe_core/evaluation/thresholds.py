"""How precise each hashtag is above a threshold of its probability: counted on posts, in memory that does not grow with
their number, and kept as the part of its precision-recall curve from which a threshold for any precision follows.

Letters: N posts, B of a part, V hashtags, G places of the grid, T tags of all posts, C points of all the curves.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moe_core.evaluation.metrics import tag_probabilities

# Thresholds are places of a grid, evenly in log(p / (1 - p)): 0.7 % apart at p = 0.9, 7 % of p where p is small. A
# count of the posts at or above one is exact.
GRID_G = torch.linspace(-9.25, 9.25, 257, dtype=torch.float64).sigmoid().float()
MIN_POSITIVES = 10  # posts with a hashtag, below which it has no curve
ERRORS = 1.0  # standard errors by which the precision is counted as lower than it was seen to be
HASHTAGS = 4096  # whose curves are computed at a time


@dataclass(frozen=True)
class Curves:
    """Points of the precision-recall curve of each hashtag, of rising thresholds and rising precision: those that are
    the lowest threshold for some precision. `starts_V1` says where the points of each hashtag begin."""

    starts_V1: np.ndarray  # int64
    threshold_C: np.ndarray  # float32
    true_C: np.ndarray  # int64: posts with the hashtag among those at or above the threshold
    above_C: np.ndarray  # int64
    positives_V: np.ndarray  # int64: posts that carry the hashtag
    posts: int

    @property
    def hashtags(self) -> int:
        return len(self.positives_V)

    @property
    def bound_C(self) -> np.ndarray:
        """(C,) float64: the precision that each point is good for."""
        return lower_bound(self.true_C, self.above_C)

    def places(self, precision: float) -> np.ndarray:
        """(V,) int64: the point of each hashtag whose threshold is the lowest for this precision; -1 for none."""
        owner_C = np.repeat(np.arange(self.hashtags), np.diff(self.starts_V1))
        good = np.flatnonzero(self.bound_C >= precision - 1e-9)  # 9 of 9 is 0.8999...
        owners, first = np.unique(owner_C[good], return_index=True)
        place_V = np.full(self.hashtags, -1)
        place_V[owners] = good[first]
        return place_V

    def thresholds(self, precision: float) -> np.ndarray:
        """(V,) float32: the lowest threshold of each hashtag for this precision; infinite where it has none."""
        place_V = self.places(precision)
        return np.where(place_V >= 0, np.append(self.threshold_C, np.float32(np.inf))[place_V], np.float32(np.inf))

    def recall_and_precision(self, hashtag: int) -> list[tuple[float, float]]:
        """The curve of a hashtag, from the highest threshold to the lowest."""
        part = slice(self.starts_V1[hashtag], self.starts_V1[hashtag + 1])
        points = zip(self.true_C[part][::-1].tolist(), self.above_C[part][::-1].tolist(), strict=True)
        return [(true / int(self.positives_V[hashtag]), true / above) for true, above in points]


class ThresholdCounts:
    """Posts at each place of the grid, by hashtag: all of them, and those that carry it."""

    def __init__(self, hashtags: int) -> None:
        self.above_VG = torch.zeros(hashtags, len(GRID_G), dtype=torch.int32)
        self.true_VG = torch.zeros(hashtags, len(GRID_G), dtype=torch.int32)
        self.positives_V = torch.zeros(hashtags, dtype=torch.int64)
        self.posts = 0

    def add(self, probabilities_BV: Tensor, tags_T: Tensor, starts_B1: Tensor) -> None:
        """Counts some posts; probabilities may lie on any device."""
        grid_G = GRID_G.to(probabilities_BV.device)
        post, hashtag = (probabilities_BV >= grid_G[0]).nonzero(as_tuple=True)
        _count(self.above_VG, hashtag.cpu(), torch.bucketize(probabilities_BV[post, hashtag], grid_G, right=True).cpu())
        p_T = tag_probabilities(probabilities_BV, tags_T, starts_B1)
        seen_T = p_T >= GRID_G[0]
        _count(self.true_VG, tags_T[seen_T], torch.bucketize(p_T[seen_T], GRID_G, right=True))
        self.positives_V += tags_T.bincount(minlength=len(self.positives_V))
        self.posts += len(probabilities_BV)

    def curves(self) -> Curves:
        parts = list(self._parts())
        counts_V = np.concatenate([counts for counts, *_ in parts])
        place_C, true_C, above_C = (np.concatenate([part[n] for part in parts]) for n in (1, 2, 3))
        starts_V1 = np.concatenate([[0], counts_V.cumsum()]).astype(np.int64)
        return Curves(starts_V1, GRID_G.numpy()[place_C], true_C, above_C, self.positives_V.numpy(), self.posts)

    def _parts(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Of some hashtags: the number of points of each, their places in the grid, true and all posts above."""
        for first in range(0, len(self.positives_V), HASHTAGS):
            rows = slice(first, first + HASHTAGS)
            here_VG = self.above_VG[rows].numpy()
            above_VG, true_VG = (_from_the_top(counts[rows].numpy()) for counts in (self.above_VG, self.true_VG))
            bound_VG = np.where(here_VG > 0, lower_bound(true_VG, above_VG), 0.0)
            bound_VG[self.positives_V[rows].numpy() < MIN_POSITIVES] = 0.0
            lower_VG = np.maximum.accumulate(bound_VG, axis=1)
            better_VG = bound_VG > np.pad(lower_VG, ((0, 0), (1, 0)))[:, :-1]
            hashtag, place = np.nonzero(better_VG)
            yield better_VG.sum(1), place, true_VG[hashtag, place], above_VG[hashtag, place]


def lower_bound(true: np.ndarray, above: np.ndarray) -> np.ndarray:
    """The precision true / above less ERRORS standard errors: Wilson's bound (1927), which takes 9 of 9 for 0.90.

    The threshold of a hashtag is the best of many on the same posts, so what is seen there is too good: without a
    margin other posts show less than what was wanted.
    """
    true, above = np.asarray(true, float), np.maximum(np.asarray(above, float), 1)
    share, square = true / above, ERRORS**2 / above
    spread = np.sqrt(share * (1 - share) * square + square**2 / 4)
    return np.asarray((share + square / 2 - spread) / (1 + square))


def _count(counts_VG: Tensor, hashtag: Tensor, place1: Tensor) -> None:
    """Adds one at each (hashtag, place); places are counted from 1."""
    flat = hashtag * counts_VG.shape[1] + place1 - 1
    counts_VG.view(-1).scatter_add_(0, flat, torch.ones_like(flat, dtype=counts_VG.dtype))


def _from_the_top(counts_VG: np.ndarray) -> np.ndarray:
    """(V, G) int64: how many lie at each place or above."""
    return np.asarray(counts_VG[:, ::-1].cumsum(1, dtype=np.int64)[:, ::-1])
