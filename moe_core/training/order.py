"""Which posts each step sees, and how their images are moved: pure functions of (seed, step), so that a training is
resumed without a saved sampler.

Where posts are read in blocks of adjacent ones, an epoch takes the blocks in a random order, LANES of them at a time:
a window. A step takes one post of one block after the other, and of each block its posts in a random order. So a batch
holds posts of as many blocks as it can, and of R ranks each takes blocks of its own, where R is a power of two up to
LANES.

Letters: N posts, B posts in the batch, S steps, T tags of all posts, V hashtags.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from moe_core.training.moves import Moves

if TYPE_CHECKING:
    from moe_core.settings import Training
    from moe_core.training.posts import Posts

TOGETHER = 64  # steps that are drawn at once: a step by itself costs as much
LANES = 256  # blocks that are mixed; each rank holds its part of them in memory, as they are stored
ROUNDS = 6  # of the Feistel network; from four on its permutations pass for random (Luby and Rackoff 1988)

Places = slice | np.ndarray


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
        self.training, self.ranks, self.block = training, ranks, posts.block
        self.own = slice(rank * self.size, (rank + 1) * self.size)  # of the posts of a step
        if self.block > 1:
            self.own = slice(rank, None, ranks)  # of the blocks
        self.places_M = resampled(posts, training)
        self.count = len(posts) if self.places_M is None else len(self.places_M)
        self._drawn_together = lru_cache(maxsize=4)(self._drawn)

    def draws(self, steps: range) -> Draws:
        """What these steps draw, all of the same TOGETHER."""
        number, begin = divmod(steps.start, TOGETHER)
        some, its = self._drawn_together(number), slice(begin, begin + len(steps))
        return Draws(some.rows_SB[its], some.moves[its])

    def rows(self, steps: range) -> np.ndarray:
        """(S, B) int64: places of the posts that these steps draw."""
        rows_SB = rows_of_steps(self.count, self.size * self.ranks, self.training.seed, steps, self.own, self.block)
        return rows_SB if self.places_M is None else self.places_M[rows_SB]

    def windows(self, steps: range) -> np.ndarray:
        """(S x B,) int64, ascending: the windows of the posts that these steps draw, numbered through all epochs."""
        epoch_S, place_SB = places_of_steps(self.count, self.size * self.ranks, steps, self.own)
        window_SB = window_at(place_SB, self.count, self.block)
        return (epoch_S[:, None] * self._windows_an_epoch + window_SB).reshape(-1)

    def steps_of_window(self, number: int) -> range:
        """The steps that draw posts of a window."""
        epoch, window = divmod(number, self._windows_an_epoch)
        batch, posts = self.size * self.ranks, LANES * self.block
        first, steps = window * posts // batch, self.count // batch
        end = steps if window == self._windows_an_epoch - 1 else -(-(window + 1) * posts // batch)
        return range(epoch * steps + first, epoch * steps + end)

    @property
    def _windows_an_epoch(self) -> int:
        batch = self.size * self.ranks
        return int(window_at(self.count // batch * batch - 1, self.count, self.block)) + 1

    def _drawn(self, number: int) -> Draws:
        rows_SB = self.rows(range(number * TOGETHER, (number + 1) * TOGETHER))
        # one process that accumulates as many batches as there are ranks draws the same
        parts = [moves_of(rows_SB.shape, self.training, number * self.ranks + part) for part in range(self.ranks)]
        mirrored_N = np.concatenate([part.mirrored_N.reshape(-1) for part in parts])
        corner_N2 = np.concatenate([part.corner_N2.reshape(-1, 2) for part in parts])
        mirrored_SB = mirrored_N.reshape(TOGETHER, -1)[:, self.own]
        corner_SB2 = corner_N2.reshape(TOGETHER, -1, 2)[:, self.own]
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


def rows_of_steps(
    posts: int, batch_size: int, seed: int, steps: range, part: slice = slice(None), block: int = 1
) -> np.ndarray:
    """(S, B) int64: rows of these batches, or of a part of each.

    Each pass over the posts has its own order; a remainder waits for another pass.
    """
    epoch_S, place_SB = places_of_steps(posts, batch_size, steps, part)
    rows_SB = np.empty_like(place_SB)
    for epoch in np.unique(epoch_S):
        its_SB = place_SB[epoch_S == epoch]
        its_rows = in_blocks(its_SB.reshape(-1), posts, block, seed, int(epoch))
        rows_SB[epoch_S == epoch] = its_rows.reshape(its_SB.shape)
    return rows_SB


def places_of_steps(
    posts: int, batch_size: int, steps: range, part: slice = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """((S,), (S, B)) int64: the pass over the posts of each batch, and the places in it of the batch or a part."""
    size = min(batch_size, posts)
    epoch_S, number_S = np.divmod(np.asarray(steps), posts // size)
    return epoch_S, number_S[:, None] * size + np.arange(size)[part]


def in_blocks(places_B: np.ndarray, count: int, block: int, seed: int, epoch: int) -> np.ndarray:
    """(B,) int64: what stands at these places of an order of [0, count) in blocks; in any random order for blocks of 1.

    The last block may be a part of one: a place at which it has no post has the one that stands at that number.
    """
    if block == 1:
        return shuffled(places_B, count, seed, epoch)
    blocks, last = -(-count // block), int(window_at(count - 1, count, block))

    def once(places_B: np.ndarray, _: Places) -> np.ndarray:
        window_B = window_at(places_B, count, block)
        first_B = window_B * LANES
        lanes_B = np.where(window_B == last, blocks - first_B, LANES)
        turn_B, lane_B = np.divmod(places_B - first_B * block, lanes_B)
        block_B = shuffled(first_B + lane_B, blocks, seed, epoch)
        return block_B * block + shuffled(turn_B, block, seed, epoch, block_B)

    return _walked(places_B, count, once)


def window_at(places_B: np.ndarray | int, count: int, block: int) -> np.ndarray:
    """(B,) int64: windows of these places; what is less than half a window is part of the one before."""
    windows = max(1, round(-(-count // block) / LANES))
    return np.minimum(np.asarray(places_B) // (LANES * block), windows - 1)


def shuffled(places_B: np.ndarray, count: int, seed: int, epoch: int, number_B: np.ndarray | None = None) -> np.ndarray:
    """(B,) int64: what stands at these places of a random order of [0, count), without ever holding the order.

    A Feistel network over the next power of two is a bijection. With `number_B` each place is one of an order of its
    own, by that number.
    """
    bits = (count - 1).bit_length()
    keys_R1 = np.random.default_rng([seed, epoch]).integers(0, 2**63, ROUNDS, np.uint64)[:, None]
    apart_B = None if number_B is None else number_B.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)

    def once(x_B: np.ndarray, at: Places) -> np.ndarray:
        return _feistel(x_B, bits, keys_R1 if apart_B is None else keys_R1 + apart_B[at])

    return _walked(places_B.astype(np.uint64), count, once)


def _walked(x_B: np.ndarray, count: int, once: Callable[[np.ndarray, Places], np.ndarray]) -> np.ndarray:
    """(B,) int64: by a permutation of a longer range, one of [0, count): a number that lands beyond it goes through it
    again until it does not. `once` is also told which of the B it is given."""
    out_B = once(x_B, slice(None))
    beyond = np.flatnonzero(out_B >= count)
    while len(beyond):
        out_B[beyond] = once(out_B[beyond], beyond)
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
