"""Which posts each step sees, and how their images are moved: pure functions of (seed, step), so that a training is
resumed without a saved sampler.

Letters: N posts, B posts in the batch, S steps, T tags of all posts, V hashtags.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from moe_core.training.moves import Moves

if TYPE_CHECKING:
    from moe_core.settings import Training
    from moe_core.training.posts import Posts

TOGETHER = 64  # steps that are drawn at once: a step by itself costs as much
ROUNDS = 6  # of the Feistel network; from four on its permutations pass for random (Luby and Rackoff 1988)


@dataclass(frozen=True)
class Draws:
    """What some steps draw."""

    rows_SB: np.ndarray  # int64: places of the posts
    moves: Moves  # of S times B images


class Order:
    """Draws of every step of a training, or of the part of each that is one rank's; batch_size is that of one rank."""

    def __init__(self, posts: Posts, training: Training, rank: int = 0, ranks: int = 1) -> None:
        self.size = min(training.batch_size, len(posts) // ranks)
        if not 0 <= rank < ranks or self.size < 1:
            raise ValueError(f"rank {rank} of {ranks} for {len(posts)} posts: wanted 0 <= rank < ranks <= posts")
        self.training, self.rank, self.ranks = training, rank, ranks
        self.places_M = resampled(posts, training)
        self.count = len(posts) if self.places_M is None else len(self.places_M)
        self._block = lru_cache(maxsize=4)(self._drawn)

    def draws(self, steps: range) -> Draws:
        """What these steps draw, all of one block of TOGETHER."""
        number, begin = divmod(steps.start, TOGETHER)
        block, its = self._block(number), slice(begin, begin + len(steps))
        return Draws(block.rows_SB[its], block.moves[its])

    def _drawn(self, number: int) -> Draws:
        steps = range(number * TOGETHER, (number + 1) * TOGETHER)
        own = slice(self.rank * self.size, (self.rank + 1) * self.size)
        rows_SB = rows_of_steps(self.count, self.size * self.ranks, self.training.seed, steps, own)
        rows_SB = rows_SB if self.places_M is None else self.places_M[rows_SB]
        # one process that accumulates as many batches as there are ranks draws the same
        parts = [moves_of(rows_SB.shape, self.training, number * self.ranks + part) for part in range(self.ranks)]
        mirrored_SB = np.concatenate([part.mirrored_N for part in parts])[self.rank :: self.ranks]
        corner_SB2 = np.concatenate([part.corner_N2 for part in parts])[self.rank :: self.ranks]
        return Draws(rows_SB, Moves(mirrored_SB, corner_SB2, self.training.crop))


def moves_of(shape: tuple[int, ...], training: Training, number: int) -> Moves:
    """Moves of so many images, drawn from the seed and a number."""
    draw = np.random.default_rng([training.seed, number, 1])  # the 1 keeps it apart from the order of an epoch
    flips = draw.integers(0, 2, shape).astype(bool) if training.flip else np.zeros(shape, bool)
    return Moves(flips, draw.integers(0, 2 * training.crop + 1, (*shape, 2)), training.crop)


def resampled(posts: Posts, training: Training) -> np.ndarray | None:
    """(M,) int64: places of the posts, those with rare tags more than once; None where each counts once.

    A post counts as often as its rarest tag asks for (Mahajan et al. 2018); a fraction of a time is drawn from the
    seed, once for the whole training.
    """
    if training.resample == "off":
        return None
    tags_T = posts.tags_T.numpy()
    often_V = training.resample_below / np.maximum(np.bincount(tags_T), 1)
    times_V = np.maximum(1.0, often_V**0.5 if training.resample == "sqrt" else often_V)
    times_N = np.ones(len(posts))
    np.maximum.at(times_N, np.repeat(np.arange(len(posts)), np.diff(posts.starts_N1.numpy())), times_V[tags_T])
    draw_N = np.random.default_rng([training.seed, 2]).random(len(posts))
    return np.repeat(np.arange(len(posts)), (times_N + draw_N).astype(np.int64))


def rows_of_steps(posts: int, batch_size: int, seed: int, steps: range, part: slice = slice(None)) -> np.ndarray:
    """(S, B) int64: rows of these batches, or of a part of each.

    Each pass over the posts has its own order; a remainder waits for another pass.
    """
    size = min(batch_size, posts)
    epoch_S, number_S = np.divmod(np.asarray(steps), posts // size)
    place_SB = number_S[:, None] * size + np.arange(size)[part]
    rows_SB = np.empty_like(place_SB)
    for epoch in np.unique(epoch_S):
        its_SB = place_SB[epoch_S == epoch]
        rows_SB[epoch_S == epoch] = shuffled(its_SB.reshape(-1), posts, seed, int(epoch)).reshape(its_SB.shape)
    return rows_SB


def shuffled(places_B: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """(B,) int64: what stands at these places of a random order of [0, count), without ever holding the order.

    A Feistel network over the next power of two is a bijection; a number that lands beyond `count` goes through it
    again until it does not (cycle walking), which keeps it one.
    """
    bits = (count - 1).bit_length()
    keys = np.random.default_rng([seed, epoch]).integers(0, 2**63, ROUNDS, np.uint64)
    out_B = _feistel(places_B.astype(np.uint64), bits, keys)
    beyond = np.flatnonzero(out_B >= count)
    while len(beyond):
        out_B[beyond] = _feistel(out_B[beyond], bits, keys)
        beyond = beyond[out_B[beyond] >= count]
    return out_B.astype(np.int64)


def _feistel(x_B: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """A permutation of [0, 2 ** bits): each round mixes one part into the other, and they change places."""
    low, high = bits - bits // 2, bits // 2  # bits of the parts; where they differ, an even number of rounds fits
    left_B, right_B = x_B >> np.uint64(low), x_B & _mask(low)
    for key in keys:
        mixed_B = right_B + key
        mixed_B ^= mixed_B >> np.uint64(30)
        mixed_B *= np.uint64(0xBF58476D1CE4E5B9)  # multiplier and shifts of splitmix64 (Steele et al. 2014)
        mixed_B ^= mixed_B >> np.uint64(27)
        mixed_B *= np.uint64(0x94D049BB133111EB)
        mixed_B ^= mixed_B >> np.uint64(31)
        left_B, right_B = right_B, left_B ^ (mixed_B & _mask(high))
        low, high = high, low
    return (left_B << np.uint64(low)) | right_B


def _mask(bits: int) -> np.uint64:
    return (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
