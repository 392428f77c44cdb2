"""How well each of many hashtags ranks posts: its average precision, from the best hashtags of each post alone.

Posts x hashtags numbers are too many to keep. As in COCO's detection benchmark, which takes the best 100 answers of a
picture, a hashtag ranks the posts among whose best ones it is (one that is as good as the best of the rest is not); a
post that carries it and is not among them counts as never found. Where all hashtags are kept, this is the plain average
precision.

Letters: N posts, B of them at a time, V hashtags, M kept of each post, T tags of all posts, P of them kept, E kept
pairs of post and hashtag, R resamples.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

POSTS = 50_000  # ranked, at most
KEPT = 5_000_000  # pairs of post and hashtag, unless LEAST a post are more
LEAST, MOST = 100, 1000  # hashtags kept of a post
ENTRIES = 100_000_000  # gone over while resampling, unless LEAST_RESAMPLES are more
LEAST_RESAMPLES, MOST_RESAMPLES = 50, 200


def sample_of(posts: int) -> np.ndarray:
    """Places of the posts that are ranked, in rising order: all of them, or POSTS drawn evenly."""
    if posts <= POSTS:
        return np.arange(posts)
    return np.sort(np.random.default_rng([0, posts]).choice(posts, POSTS, replace=False))


class RankedPosts:
    """The best hashtags of each of N posts, with their scores and whether the post carries them."""

    def __init__(self, posts: int, hashtags: int) -> None:
        self.hashtags = hashtags
        self.kept = min(hashtags, MOST, max(LEAST, KEPT // max(posts, 1)))
        self.id_NM = np.zeros((posts, self.kept), np.int32)
        self.score_NM = np.zeros((posts, self.kept), np.float32)
        self.carried_NM = np.zeros((posts, self.kept), bool)

    def add(self, places_B: np.ndarray, scores_BV: Tensor, tags_T: Tensor, starts_B1: Tensor) -> None:
        """Keeps the best of some posts; scores may lie on any device, none is negative."""
        best_BM, score_BM = self._best(scores_BV.float())
        carried_BV = torch.zeros(scores_BV.shape, dtype=torch.bool)
        carried_BV[torch.repeat_interleave(torch.arange(len(scores_BV)), starts_B1.diff()), tags_T] = True
        self.id_NM[places_B], self.score_NM[places_B] = best_BM.numpy(), score_BM.numpy()
        self.carried_NM[places_B] = (carried_BV.gather(1, best_BM) & (score_BM >= 0)).numpy()

    def _best(self, scores_BV: Tensor) -> tuple[Tensor, Tensor]:
        """((B, M) hashtags, their scores) on the CPU, in any order; -1 where others of the same score are left out."""
        if self.kept == self.hashtags:
            return torch.arange(self.hashtags).expand(len(scores_BV), -1), scores_BV.cpu()
        top = scores_BV.topk(self.kept + 1, dim=1)
        score_BM, next_B1 = top.values[:, :-1], top.values[:, -1:]
        return top.indices[:, :-1].cpu(), score_BM.where(score_BM > next_B1, -1.0).cpu()

    def lists(self, tags_T: np.ndarray, starts_N1: np.ndarray) -> "RankedLists":
        """The posts that each hashtag ranks, given the tags of all N posts."""
        lowest_V = np.full(self.hashtags, np.inf, np.float32)  # lower ones precede no post that carries it
        np.minimum.at(lowest_V, self.id_NM[self.carried_NM], self.score_NM[self.carried_NM])
        post_E, place_E = np.nonzero(self.score_NM >= lowest_V[self.id_NM])
        id_E, score_E = self.id_NM[post_E, place_E], self.score_NM[post_E, place_E]
        falling_E = np.uint32(2**32 - 1) - score_E.view(np.uint32)  # bits order as the scores
        key_E = id_E.astype(np.uint64) << np.uint64(32) | falling_E.astype(np.uint64)
        order_E = np.argsort(key_E)
        key_E, carried_E = key_E[order_E], self.carried_NM[post_E, place_E][order_E]
        place_P = np.flatnonzero(carried_E)
        end_P = np.searchsorted(key_E, key_E[place_P], side="right")  # of the posts with the same score
        begin_P = np.searchsorted(key_E, key_E[place_P] >> np.uint64(32) << np.uint64(32))
        return RankedLists(
            self.hashtags,
            post_E[order_E].astype(np.int32),
            place_P,
            np.stack([begin_P, end_P]),
            np.searchsorted(place_P, np.stack([begin_P, end_P])),
            id_E[order_E][place_P],
            tags_T,
            np.repeat(np.arange(len(self.id_NM)), np.diff(starts_N1)),
        )

    def resampled(self, tags_T: np.ndarray, starts_N1: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
        """(V,) average precision of the posts, then of each resample of them: the same ones for all rows of a table.

        As many resamples as are wanted, at most MOST_RESAMPLES, fewer where posts are many.
        """
        most = resamples_for(self.id_NM.size, min(resamples, MOST_RESAMPLES))
        return map(self.lists(tags_T, starts_N1).average_precision, weights_of(len(self.id_NM), most, seed))


@dataclass(frozen=True)
class RankedLists:
    """Posts by hashtag, the best first, and where among them those are that carry it."""

    hashtags: int
    post_E: np.ndarray
    place_P: np.ndarray  # in E: posts that carry the hashtag
    range_2P: np.ndarray  # in E: the hashtag's list up to the last post of the same score
    hits_2P: np.ndarray  # in P: the same range
    id_P: np.ndarray
    tags_T: np.ndarray  # of all posts, also those that are in no list
    owner_T: np.ndarray

    def average_precision(self, weight_N: np.ndarray) -> np.ndarray:
        """(V,) float64: the precision at each post that carries the hashtag, averaged over them; NaN without any.

        Posts of equal scores are answered together, as in scikit-learn. `weight_N`: how often each post was
        drawn; copies of one post do not precede one another, or every resample would rank better than the posts
        themselves, and the interval could miss its own mean.
        """
        total_V = np.bincount(self.tags_T, weight_N[self.owner_T], self.hashtags)
        weight_E = weight_N[self.post_E]
        weight_P = weight_E[self.place_P]
        seen_P, hits_P = _within(weight_E, self.range_2P), _within(weight_P, self.hits_2P)
        copies_P = weight_P - 1  # -1 where it was not drawn, and then it counts nothing
        precision_P = (hits_P - copies_P) / np.maximum(seen_P - copies_P, 1)
        sums_V = np.bincount(self.id_P, precision_P * weight_P, self.hashtags)
        return np.where(total_V > 0, sums_V / np.maximum(total_V, 1), np.nan)


def _within(values: np.ndarray, range_2P: np.ndarray) -> np.ndarray:
    """(P,): sums of values over ranges."""
    sums = np.concatenate([[0], np.cumsum(values)])
    return np.asarray(sums[range_2P[1]] - sums[range_2P[0]])


def mean_average_precision(
    ranked: RankedPosts, tags_T: np.ndarray, starts_N1: np.ndarray, resamples: int, seed: int
) -> np.ndarray:
    """(R + 1,) float64: the mean over the hashtags that any post carries, of the posts and then of resamples."""
    return np.array([np.nanmean(ap_V) for ap_V in ranked.resampled(tags_T, starts_N1, resamples, seed)])


def weights_of(posts: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """(N,) int64: how often each post counts, once among the posts themselves, then in each resample of them."""
    yield np.ones(posts, np.int64)
    draw = np.random.default_rng([seed, posts])
    for _ in range(resamples):
        yield np.bincount(draw.integers(0, posts, posts), minlength=posts)


def resamples_for(entries: int, wanted: int) -> int:
    """How many resamples are drawn where each goes over so many entries: those wanted, fewer where they take long."""
    return min(wanted, max(LEAST_RESAMPLES, ENTRIES // max(entries, 1)))
