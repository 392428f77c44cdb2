"""Measures of answers on held-out posts, with intervals; and of the embedding space.

Letters: N posts, B of them at a time, V hashtags, T tags of all posts, k of one post, R resamples, D embedding width.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_core.errors import NotFinite, TooFewPosts

SMALLEST = 1e-12  # of a probability, so that its logarithm stays finite
CELLS = 4_000_000  # numbers held at once while resampling
BEST = 10  # hashtags of a post that the measures look at
CHUNK = 512  # posts whose neighbors are searched at a time


@dataclass(frozen=True)
class Interval:
    """A mean over `n` posts with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int

    def as_json(self, name: str) -> dict[str, Any]:
        """As tables of results have it, in two columns."""
        return {name: round(self.mean, 5), f"{name}_ci95": [round(self.low, 5), round(self.high, 5)]}


def best_hashtags(probabilities_BV: Tensor, k: int) -> Tensor:
    """(B, k) int64 on the CPU: the most probable hashtags, the best first; of equally probable ones the lower id.

    Found among whole numbers that order as (probability, -id) do, without sorting all V of them.
    """
    hashtags = probabilities_BV.shape[1]
    id_V = torch.arange(hashtags, device=probabilities_BV.device)
    bits_BV = probabilities_BV.float().view(torch.int32).long()  # order as the probabilities, none of which is negative
    keys_BK = (bits_BV * 2**32 + (hashtags - 1 - id_V)).topk(min(k, hashtags), dim=1).values
    return (hashtags - 1 - keys_BK % 2**32).cpu()


def per_post(
    probabilities_BV: Tensor, tags_T: Tensor, starts_B1: Tensor, best_BK: Tensor | None = None
) -> dict[str, np.ndarray]:
    """(B,) float64 by the names of `measures.MEASURES`; cross_entropy is against 1/k on a post's k tags.

    Probabilities may lie on any device. `best_BK`: their ten best hashtags, where they are known already. Raises
    ValueError for a post without tags and NotFinite for probabilities that are not finite.
    """
    if not torch.isfinite(probabilities_BV).all():
        raise NotFinite("probabilities hold a number that is not finite: check the weights that gave them")
    count, hashtags = probabilities_BV.shape
    k_B = starts_B1.diff()
    if count and int(k_B.min()) == 0:
        raise ValueError(f"post {int(k_B.argmin())} has no tag: wanted at least one a post")
    best_BK = best_hashtags(probabilities_BV, BEST) if best_BK is None else best_BK
    owner_T = torch.repeat_interleave(torch.arange(count), k_B)
    found_TK = (best_BK[owner_T] == tags_T[:, None]).double()
    hits_BK = torch.zeros(best_BK.shape, dtype=torch.float64).index_add_(0, owner_T, found_TK)
    return {
        "p_at_1": hits_BK[:, 0].numpy(),
        "p_at_5": (hits_BK[:, :5].sum(1) / min(5, hashtags)).numpy(),
        "r_at_5": (hits_BK[:, :5].sum(1) / k_B).numpy(),
        "r_at_10": (hits_BK.sum(1) / k_B).numpy(),
        "cross_entropy": cross_entropy(probabilities_BV, tags_T, starts_B1),
    }


def cross_entropy(probabilities_BV: Tensor, tags_T: Tensor, starts_B1: Tensor) -> np.ndarray:
    """(B,) float64: of each post, against 1/k on its k tags; probabilities may lie on any device."""
    k_B = starts_B1.diff()
    owner_T = torch.repeat_interleave(torch.arange(len(k_B)), k_B)
    log_T = tag_probabilities(probabilities_BV, tags_T, starts_B1).double().clamp(min=SMALLEST).log()
    return (torch.zeros(len(k_B), dtype=torch.float64).index_add_(0, owner_T, -log_T) / k_B).numpy()


def tag_probabilities(probabilities_BV: Tensor, tags_T: Tensor, starts_B1: Tensor) -> Tensor:
    """(T,) on the CPU: the probability of each tag of each post."""
    device = probabilities_BV.device
    owner_T = torch.repeat_interleave(torch.arange(len(probabilities_BV)), starts_B1.diff())
    return probabilities_BV[owner_T.to(device), tags_T.to(device)].cpu()


def tag_statistics(tags_T: Tensor, posts: int) -> tuple[float, float]:
    """(mean number of hashtags a post, share of the posts that carry the most frequent one); (0, 0) without posts."""
    if not posts:
        return 0.0, 0.0
    return len(tags_T) / posts, float(np.bincount(tags_T.numpy()).max()) / posts


def found_tags(best_BK: Tensor, tags_T: Tensor, starts_B1: Tensor, k: int = 5) -> np.ndarray:
    """(T,) bool: whether each tag of each post is among the `k` best hashtags of the post."""
    owner_T = torch.repeat_interleave(torch.arange(len(best_BK)), starts_B1.diff())
    return (best_BK[owner_T, :k] == tags_T[:, None]).any(1).numpy()


def bootstrap(values_N: np.ndarray, resamples: int, seed: int) -> Interval:
    """Percentile bootstrap of the mean (Efron 1979), in memory that does not grow with N x R.

    scipy.stats.bootstrap gives the same; it takes half a second to import and refuses a single post. Raises TooFewPosts
    for no values and NotFinite for a value that is not finite.
    """
    low, high = np.quantile(resampled_means(values_N, resamples, seed), [0.025, 0.975])
    return Interval(float(values_N.mean()), float(low), float(high), len(values_N))


def resampled_means(values_N: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(R,) means of resamples with replacement. Raises as `bootstrap` does."""
    count = len(values_N)
    if count == 0:
        raise TooFewPosts("no post to measure on: wanted at least one")
    if not np.isfinite(values_N).all():
        raise NotFinite(f"the measure of post {int(np.isfinite(values_N).argmin())} is not finite")
    draw = np.random.default_rng([seed, count])
    means_R = np.empty(resamples)
    step = max(1, CELLS // count)
    for first in range(0, resamples, step):
        rows = min(step, resamples - first)
        means_R[first : first + rows] = values_N[draw.integers(0, count, (rows, count), np.int32)].mean(1)
    return means_R


def bootstrap_ratio(part_N: np.ndarray, of_N: np.ndarray, resamples: int, seed: int) -> Interval:
    """Percentile bootstrap over posts of the sum of one count over the sum of another, such as hashtags that are right
    over hashtags that are given. A resample in which nothing is given is left out.

    Raises TooFewPosts where nothing is given.
    """
    count = len(of_N)
    if not of_N.sum():
        raise TooFewPosts("nothing to measure on: wanted at least one that is given")
    draw = np.random.default_rng([seed, count])
    ratios = list[np.ndarray]()
    step = max(1, CELLS // count)
    for first in range(0, resamples, step):
        rows_RN = draw.integers(0, count, (min(step, resamples - first), count), np.int32)
        parts_R, of_R = part_N[rows_RN].sum(1), of_N[rows_RN].sum(1)
        ratios.append(parts_R[of_R > 0] / of_R[of_R > 0])
    low, high = np.quantile(np.concatenate(ratios), [0.025, 0.975])
    return Interval(float(part_N.sum() / of_N.sum()), float(low), float(high), count)


def paired_difference(a_N: np.ndarray, b_N: np.ndarray, resamples: int, seed: int) -> Interval:
    """Bootstrap of the mean of a - b on the same posts: narrower than two intervals side by side."""
    if len(a_N) != len(b_N):
        raise ValueError(f"{len(a_N)} and {len(b_N)} posts: wanted two measures of the same ones")
    return bootstrap(a_N - b_N, resamples, seed)


def interval_of(means_R1: np.ndarray, n: int) -> Interval:
    """Of a mean over `n` posts that is the first of these, the rest being those of resamples."""
    low, high = np.nanquantile(means_R1[1:], [0.025, 0.975])
    return Interval(float(means_R1[0]), float(low), float(high), n)


def tag_agreement(
    features_ND: Tensor, expert_N: np.ndarray, tags_T: Tensor, starts_N1: Tensor, k: int
) -> dict[str, np.ndarray]:
    """{"within": (N,), "across": (N,)} float64: mean overlap of the hashtags of a post and of its k nearest neighbors:
    do neighbors share hashtags across experts as they do within one?

    Overlap is |both| / |either|; neighbors are by cosine, within: of the post's own expert, across: of all the others.
    Fewer than k where there are fewer posts; NaN where there is none.
    """
    from scipy.sparse import csr_array

    count, size_N = len(features_ND), starts_N1.diff()
    tags_NV = csr_array((np.ones(len(tags_T)), tags_T.numpy(), starts_N1.numpy()))
    unit_ND = F.normalize(features_ND.float(), dim=1)
    expert = torch.from_numpy(np.asarray(expert_N))
    parts: dict[str, list[Tensor]] = {"within": [], "across": []}
    for first in range(0, count, CHUNK):
        rows = torch.arange(first, min(first + CHUNK, count))
        near_BN = unit_ND[rows] @ unit_ND.T
        near_BN[torch.arange(len(rows)), rows] = -torch.inf  # a post is no neighbor of itself
        both_BN = torch.from_numpy((tags_NV[rows.numpy()] @ tags_NV.T).toarray())
        overlap_BN = both_BN / (size_N[rows, None] + size_N - both_BN)
        same_BN = expert[rows, None] == expert[None, :]
        for name, wanted_BN in (("within", same_BN), ("across", ~same_BN)):
            best = near_BN.where(wanted_BN, -torch.inf).topk(min(k, count))
            overlap_BK = overlap_BN.gather(1, best.indices).where(best.values > -torch.inf, torch.nan)
            parts[name].append(overlap_BK.nanmean(1))
    return {name: torch.cat(overlaps).numpy() for name, overlaps in parts.items()}
