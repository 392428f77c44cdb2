"""Batches: their order and their augmentation are pure functions of (seed, step), so resuming needs no saved sampler.

Images are read from wherever they lie, in threads that run ahead of the training, or lie on the device already; where
they lie and which thread reads what changes nothing in the batches.

Letters: N posts, B posts in the batch, C channels, H W pixels, T tags of all posts, M tags of the post
that has most, V hashtags.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from moe_core.settings import Training

# Of ImageNet, in [0, 255]: a torchvision checkpoint expects them, and any fixed choice serves a network from scratch.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
READ_BYTES = 8 << 20  # of decoded pixels read at once: many small rows in one go are cheaper than each by itself
READ_ROWS = 1024
NO_TAG = -1
ROUNDS = 6  # of the Feistel network; from four on its permutations pass for random (Luby and Rackoff 1988)

Item = TypeVar("Item")
Result = TypeVar("Result")


class Images(Protocol):
    """N uint8 images of one size, in memory or in a store."""

    def __len__(self) -> int: ...

    def read(self, rows_B: np.ndarray) -> np.ndarray:
        """(B, H, W, C) uint8: the images at these places, in this order."""
        ...

    def subset(self, rows_N: np.ndarray) -> Images:
        """The images at these places, not yet read."""
        ...


@dataclass(frozen=True)
class ImagesInMemory:
    """Images in memory."""

    images_NHWC: np.ndarray

    def __len__(self) -> int:
        return len(self.images_NHWC)

    def read(self, rows_B: np.ndarray) -> np.ndarray:
        return self.images_NHWC[rows_B]

    def subset(self, rows_N: np.ndarray) -> ImagesInMemory:
        return ImagesInMemory(self.images_NHWC[rows_N])


@dataclass(frozen=True)
class ImagesOnDevice:
    """Images as one byte tensor on a device: a batch is an index, and is augmented there."""

    images_NHWC: Tensor

    def __len__(self) -> int:
        return len(self.images_NHWC)

    def read(self, rows_B: np.ndarray) -> np.ndarray:
        return self.images_NHWC[torch.from_numpy(rows_B).to(self.images_NHWC.device)].cpu().numpy()

    def subset(self, rows_N: np.ndarray) -> ImagesOnDevice:
        return ImagesOnDevice(self.images_NHWC[torch.from_numpy(rows_N).to(self.images_NHWC.device)])


@dataclass(frozen=True)
class Posts:
    """Images, and their tags as positions in the vocabulary, in compressed rows."""

    images: Images
    tags_T: Tensor  # int64 in [0, V)
    starts_N1: Tensor  # int64, post n has tags_T[starts_N1[n]:starts_N1[n + 1]]

    def __post_init__(self) -> None:
        if len(self.starts_N1) != len(self.images) + 1 or int(self.starts_N1[-1]) != len(self.tags_T):
            raise ValueError(
                f"{len(self.images)} images, {len(self.starts_N1)} row starts up to {int(self.starts_N1[-1])}, "
                f"{len(self.tags_T)} tags: wanted one start more than images, the last one at the number of tags"
            )

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def most_tags(self) -> int:
        """Tags of the post that has most: M."""
        return int(self.starts_N1.diff().max()) if len(self) else 0

    def tags_of(self, rows_B: np.ndarray) -> np.ndarray:
        """(B, M) int64: the tags of each post, filled up with NO_TAG to as many as any post has."""
        owner, place, tags = self._places_of(rows_B)
        tags_BM = np.full((len(rows_B), self.most_tags), NO_TAG)
        tags_BM[owner, place] = tags
        return tags_BM

    def targets(self, rows_B: np.ndarray, hashtags: int) -> Tensor:
        """(B, V) float32 with a one at each tag of each post."""
        owner, _, tags = self._places_of(rows_B)
        array_BV = np.zeros((len(rows_B), hashtags), np.float32)
        array_BV[owner, tags] = 1.0
        return torch.from_numpy(array_BV)

    def subset(self, rows_N: np.ndarray) -> Posts:
        """The posts at these places, in this order; images are not read."""
        owner, _, tags = self._places_of(rows_N)
        counts_N = np.bincount(owner, minlength=len(rows_N))
        starts_N1 = np.concatenate([[0], counts_N.cumsum()]).astype(np.int64)
        return Posts(self.images.subset(rows_N), torch.from_numpy(tags.copy()), torch.from_numpy(starts_N1))

    def in_memory(self) -> Posts:
        """These posts with all images read."""
        return Posts(ImagesInMemory(self.images.read(np.arange(len(self)))), self.tags_T, self.starts_N1)

    def on_device(self, most_bytes: int, device: str) -> Posts:
        """These posts with all images on the device if they fit into `most_bytes`, else unchanged."""
        pixels = self.images.read(np.zeros(1, np.int64))
        if isinstance(self.images, ImagesOnDevice) or pixels.nbytes * len(self) > most_bytes:
            return self
        images_NHWC = torch.empty((len(self), *pixels.shape[1:]), dtype=torch.uint8, device=device)
        for first in range(0, len(self), READ_ROWS):
            rows = np.arange(first, min(first + READ_ROWS, len(self)))
            images_NHWC[first : first + len(rows)] = torch.from_numpy(self.images.read(rows)).to(device)
        return Posts(ImagesOnDevice(images_NHWC), self.tags_T, self.starts_N1)

    def _places_of(self, rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(place in `rows_B`, place among the post's tags, tag) of every tag of these posts. In numpy: torch would
        start threads of its own here."""
        starts_N1, tags_T = self.starts_N1.numpy(), self.tags_T.numpy()
        first_B, counts_B = starts_N1[rows_B], starts_N1[rows_B + 1] - starts_N1[rows_B]
        owner = np.repeat(np.arange(len(rows_B)), counts_B)
        offset = np.arange(len(owner)) - np.repeat(counts_B.cumsum() - counts_B, counts_B)
        return owner, offset, tags_T[first_B[owner] + offset]


@dataclass(frozen=True)
class Batch:
    """One step's worth."""

    step: int
    images_BCHW: Tensor  # uint8, augmented, channels-last in memory
    tags_BM: Tensor  # int64, NO_TAG where a post has fewer than M


def batches(
    posts: Posts,
    training: Training,
    first: int,
    last: int,
    *,
    threads: int = 1,
    rank: int = 0,
    ranks: int = 1,
) -> Iterator[Batch]:
    """Batches numbered [first, last), read ahead by `threads`, or gathered on the device that holds the posts.

    Each of `ranks` processes that train together reads its own part of every step; batch_size is that of one process.
    The result is the same for any number of threads, and wherever the posts are.
    """
    size = min(training.batch_size, len(posts) // ranks)
    if not 0 <= rank < ranks or size < 1:
        raise ValueError(f"rank {rank} of {ranks} for {len(posts)} posts: wanted 0 <= rank < ranks <= posts")
    order_M = resampled(posts, training)
    own = slice(rank * size, (rank + 1) * size)

    def rows_of(step: int) -> np.ndarray:
        rows_B = rows_of_step(len(posts) if order_M is None else len(order_M), size * ranks, training.seed, step)[own]
        return rows_B if order_M is None else order_M[rows_B]

    if isinstance(posts.images, ImagesOnDevice):
        everything_NHWC = posts.images.images_NHWC
        for step in range(first, last):
            rows_B = rows_of(step)
            flip_B, corner_B2 = moves_of(size, training.flip, training.crop, training.seed, step * ranks + rank)
            seen_BHWC = moved_on_device(everything_NHWC, rows_B, flip_B, corner_B2 - training.crop)
            tags_BM = torch.from_numpy(posts.tags_of(rows_B)).to(everything_NHWC.device)
            yield Batch(step, seen_BHWC.permute(0, 3, 1, 2), tags_BM)
        return
    pixels = posts.images.read(np.zeros(1, np.int64)).nbytes
    together = max(1, min(READ_ROWS, READ_BYTES // pixels) // size)  # steps read at once

    def read(step: int) -> list[Batch]:
        steps = range(step, min(step + together, last))
        rows_SB = [rows_of(s) for s in steps]
        images = posts.images.read(np.concatenate(rows_SB))
        batches_S = []
        for number, (s, rows_B) in enumerate(zip(steps, rows_SB, strict=True)):
            draw = s * ranks + rank  # each rank draws its own flips and crops
            seen_BHWC = augment(
                images[number * size : (number + 1) * size], training.flip, training.crop, training.seed, draw
            )
            batches_S.append(Batch(s, as_tensor(seen_BHWC), torch.from_numpy(posts.tags_of(rows_B))))
        return batches_S

    for some in ahead(read, range(first, last, together), threads):
        yield from some


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


def ahead(work: Callable[[Item], Result], items: range | list[Item], threads: int) -> Iterator[Result]:
    """`work(item)` of each item in order, done by threads that are at most `threads` + 1 items ahead."""
    if len(items) == 1:  # a thread would do nothing meanwhile
        yield work(items[0])  # type: ignore[arg-type]
        return
    pool = ThreadPoolExecutor(threads)
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))  # type: ignore[arg-type]
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def rows_of_step(posts: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Rows of the `step`-th batch. Each pass over the posts has its own order; a remainder waits for another pass."""
    batch_size = min(batch_size, posts)
    epoch, place = divmod(step, posts // batch_size)
    return shuffled(np.arange(place * batch_size, (place + 1) * batch_size), posts, seed, epoch)


def shuffled(places_B: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """(B,) int64: what stands at these places of a random order of [0, count), without ever holding the order.

    A Feistel network over the next power of four is a bijection; a number that lands beyond `count` goes through it
    again until it does not (cycle walking), which keeps it one.
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    keys = np.random.default_rng([seed, epoch]).integers(0, 2**63, ROUNDS, np.uint64)
    out_B = places_B.astype(np.uint64)
    todo = np.arange(len(out_B))
    while len(todo):
        out_B[todo] = _feistel(out_B[todo], np.uint64(half), keys)
        todo = todo[out_B[todo] >= count]
    return out_B.astype(np.int64)


def _feistel(x_B: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left_B, right_B = x_B >> half, x_B & mask
    for key in keys:
        mixed_B = right_B + key
        mixed_B ^= mixed_B >> np.uint64(30)
        mixed_B *= np.uint64(0xBF58476D1CE4E5B9)  # multiplier and shifts of splitmix64 (Steele et al. 2014)
        mixed_B ^= mixed_B >> np.uint64(27)
        mixed_B *= np.uint64(0x94D049BB133111EB)
        mixed_B ^= mixed_B >> np.uint64(31)
        left_B, right_B = right_B, left_B ^ (mixed_B & mask)
    return (left_B << half) | right_B


def moves_of(count: int, flip: bool, crop: int, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """((B,) bool: flips; (B, 2) int64: row and column, in the padded image, of the corner of each crop) of a batch."""
    draw = np.random.default_rng([seed, step, 1])  # the trailing 1 keeps it apart from the order of an epoch
    flip_B = draw.integers(0, 2, count).astype(bool) if flip else np.zeros(count, bool)
    return flip_B, draw.integers(0, 2 * crop + 1, (count, 2)) if crop else np.zeros((count, 2), np.int64)


def augment(images_BHWC: np.ndarray, flip: bool, crop: int, seed: int, step: int) -> np.ndarray:
    """Random flips and crops of padded uint8 images, the same for the same (seed, step)."""
    if not flip and not crop:
        return images_BHWC
    count, height, width, _ = images_BHWC.shape
    flip_B, corner_B2 = moves_of(count, flip, crop, seed, step)
    if crop:
        images_BHWC = np.pad(images_BHWC, ((0, 0), (crop, crop), (crop, crop), (0, 0)))
    out_BHWC = np.empty((count, height, width, images_BHWC.shape[3]), np.uint8)
    each = zip(flip_B.tolist(), corner_B2.tolist(), strict=True)
    for n, (mirrored, (y, x)) in enumerate(each):  # slices copy faster than a gather
        window = images_BHWC[n, y : y + height, x : x + width]
        out_BHWC[n] = window[:, ::-1] if mirrored else window
    return out_BHWC


def moved_on_device(images_NHWC: Tensor, rows_B: np.ndarray, flip_B: np.ndarray, corner_B2: np.ndarray) -> Tensor:
    """(B, H, W, C) uint8: as `augment` of the images at these places, by one gather on their device.

    The corners of the crops are those in the image itself; beyond it all is black.
    """
    device, (_, height, width, _) = images_NHWC.device, images_NHWC.shape
    rows_B11 = torch.from_numpy(rows_B).to(device)[:, None, None]
    top_B1, left_B1 = torch.from_numpy(corner_B2).to(device).split(1, dim=1)
    flip_B1 = torch.from_numpy(flip_B).to(device)[:, None]
    y_BH = top_B1 + torch.arange(height, device=device)
    across_W = torch.arange(width, device=device)
    x_BW = left_B1 + torch.where(flip_B1, width - 1 - across_W, across_W)
    inside_BHW = ((y_BH >= 0) & (y_BH < height))[:, :, None] & ((x_BW >= 0) & (x_BW < width))[:, None, :]
    y_BH1, x_B1W = y_BH.clamp(0, height - 1)[:, :, None], x_BW.clamp(0, width - 1)[:, None, :]
    return images_NHWC[rows_B11, y_BH1, x_B1W] * inside_BHW[..., None]


def as_tensor(images_BHWC: np.ndarray) -> Tensor:
    """(B, C, H, W) uint8 that shares the memory, so it is channels-last."""
    return torch.from_numpy(images_BHWC).permute(0, 3, 1, 2)


def normalize(images_BCHW: Tensor) -> Tensor:
    """uint8 pixels to float32 of about zero mean and unit variance, channels-last."""
    mean_C11, std_C11 = _pixel_moments(images_BCHW.device)
    return ((images_BCHW.float() - mean_C11) / std_C11).contiguous(memory_format=torch.channels_last)


@cache
def _pixel_moments(device: torch.device) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation), (C, 1, 1) each: copied once a device, since every copy waits for it."""
    with torch.inference_mode(False):  # a training may use them after an evaluation
        mean_C, std_C = torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)
        return mean_C[:, None, None], std_C[:, None, None]
