"""Batches: images read, moved as their order says, and brought to where the network is.

Images are read from wherever they lie, in threads that run ahead of the training, or lie on the device already; where
they lie and which thread reads what changes nothing in the batches.

Letters: N posts, B posts in the batch, S steps, C channels, H W pixels, M tags of the post that has most.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from moe_core.training.order import TOGETHER, Draws, Order
from moe_core.training.posts import NO_TAG, READ_ROWS, ImagesOnDevice, Posts

if TYPE_CHECKING:
    from moe_core.settings import Training

# Of ImageNet, in [0, 255]: a torchvision checkpoint expects them, and any fixed choice serves a network from scratch.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
CACHE_BYTES = 2 << 20  # of images that are cut at once: they are in a core's cache the second time
READ_BYTES = 8 << 20  # of decoded pixels read at once: many small rows in one go are cheaper than each by itself

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Batch:
    """One step's worth, on the device."""

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
    device: str = "cpu",
) -> Iterator[Batch]:
    """Batches numbered [first, last) on the device, read ahead by `threads` where the posts do not lie there.

    Each of `ranks` processes that train together reads its own part of every step; batch_size is that of one process.
    The result is the same for any number of threads, and wherever the posts are.
    """
    order = Order(posts, training, rank, ranks)
    if first >= last:
        return
    if isinstance(posts.images, ImagesOnDevice):
        yield from _gathered(posts, posts.images.images_NHWC, order, range(first, last))
        return
    pixels = posts.images.read(np.zeros(1, np.int64)).nbytes
    most = max(1, min(READ_ROWS, READ_BYTES // pixels) // order.size)  # steps that are read at once
    most = min(1 << most.bit_length() - 1, TOGETHER)
    parts = range(first // most * most, last, most)  # none of which lies in two blocks of the order

    on_cpu = not device.startswith("cuda")

    def read(part: int) -> _Read:
        steps = range(max(part, first), min(part + most, last))
        draws = order.draws(steps)
        rows_N = draws.rows_SB.reshape(-1)
        change = partial(_augmented, draws, training.crop) if on_cpu else None
        return _Read(steps, draws, posts.images.read(rows_N, change), posts.tags_of(rows_N))

    if on_cpu:
        for some in ahead(read, parts, threads):
            yield from some.batches()
    else:
        yield from _uploaded(ahead(lambda part: read(part).pinned(), parts, threads), training.crop, device)


def _augmented(draws: Draws, crop: int, images_MHWC: np.ndarray, places_M: np.ndarray) -> np.ndarray:
    """Images of these places among all that the steps draw."""
    return augment(images_MHWC, draws.flip_SB.reshape(-1)[places_M], draws.corner_SB2.reshape(-1, 2)[places_M], crop)


@dataclass(frozen=True)
class _Read:
    """Some steps as they were read: their images one after the other."""

    steps: range
    draws: Draws
    images_NHWC: np.ndarray  # N = S x B
    tags_NM: np.ndarray

    def batches(self) -> list[Batch]:
        images_NCHW, tags_NM = as_tensor(self.images_NHWC), torch.from_numpy(self.tags_NM)
        size = self.draws.rows_SB.shape[1]
        parts = zip(self.steps, images_NCHW.split(size), tags_NM.split(size), strict=True)
        return [Batch(step, images_BCHW, tags_BM) for step, images_BCHW, tags_BM in parts]

    def pinned(self) -> tuple[range, Tensor, Tensor, Tensor]:
        """(steps, images, moves, tags) in memory from which a device copies without waiting."""
        there = np.arange(len(self.images_NHWC)).reshape(self.draws.rows_SB.shape)
        parts = self.images_NHWC, self.draws.packed(there), self.tags_NM.reshape(*there.shape, -1)
        images_NHWC, moves_SB4, tags_SBM = (torch.from_numpy(part).pin_memory() for part in parts)
        return self.steps, images_NHWC, moves_SB4, tags_SBM


def _uploaded(read: Iterator[tuple[range, Tensor, Tensor, Tensor]], crop: int, device: str) -> Iterator[Batch]:
    """Copies what was read on a stream of its own, a part ahead of the one that is trained on."""
    stream, waiting = torch.cuda.Stream(device), deque[tuple[range, list[Tensor], torch.cuda.Event]]()

    def arrived() -> Iterator[Batch]:
        steps, (images_NHWC, moves_SB4, tags_SBM), copied = waiting.popleft()
        here = torch.cuda.current_stream(device)
        here.wait_event(copied)
        for tensor in (images_NHWC, moves_SB4, tags_SBM):
            tensor.record_stream(here)  # its memory is used again only after what this stream does with it
        for number, step in enumerate(steps):
            yield Batch(step, moved(images_NHWC, moves_SB4[number], crop), tags_SBM[number])

    for steps, *host in read:
        with torch.cuda.stream(stream):
            waiting.append((steps, [part.to(device, non_blocking=True) for part in host], stream.record_event()))
        if len(waiting) > 1:
            yield from arrived()
    while waiting:
        yield from arrived()


def _gathered(posts: Posts, images_NHWC: Tensor, order: Order, steps: range) -> Iterator[Batch]:
    """Batches of posts whose images lie on the device: what the steps draw is copied there for many steps at once."""
    device = images_NHWC.device
    tags_T, starts_N1 = posts.tags_T.to(device), posts.starts_N1.to(device)
    for _, block in groupby(steps, lambda step: step // TOGETHER):
        some = list(block)
        draws = order.draws(range(some[0], some[-1] + 1))
        moves_SB4 = torch.from_numpy(draws.packed(draws.rows_SB))
        moves_SB4 = moves_SB4.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else moves_SB4
        for step, moves_B4 in zip(some, moves_SB4, strict=True):
            tags_BM = tags_at(moves_B4[:, 0], tags_T, starts_N1, posts.most_tags)
            yield Batch(step, moved(images_NHWC, moves_B4, order.training.crop), tags_BM)


def ahead(work: Callable[[Item], Result], items: Sequence[Item], threads: int) -> Iterator[Result]:
    """`work(item)` of each item in order, done by threads that are at most `threads` + 1 items ahead."""
    if len(items) == 1:  # a thread would do nothing meanwhile
        yield work(items[0])
        return
    pool = ThreadPoolExecutor(threads)
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def augment(images_NHWC: np.ndarray, flip_N: np.ndarray, corner_N2: np.ndarray, crop: int) -> np.ndarray:
    """(N, H, W, C) uint8: images cut at these corners out of the padded ones, some of them mirrored."""
    if not crop and not flip_N.any():
        return images_NHWC
    out_NHWC = np.empty_like(images_NHWC)
    together = max(1, CACHE_BYTES // images_NHWC[:1].nbytes)
    for first in range(0, len(images_NHWC), together):
        some = slice(first, first + together)
        _cut(images_NHWC[some], flip_N[some], corner_N2[some], crop, out_NHWC[some])
    return out_NHWC


def _cut(images: np.ndarray, flip_N: np.ndarray, corner_N2: np.ndarray, crop: int, out_NHWC: np.ndarray) -> None:
    count, height, width, channels = images.shape
    padded = _zeros((count, height + 2 * crop, width + 2 * crop, channels), crop)
    padded[:, crop : crop + height, crop : crop + width] = images
    image, down, right, _ = padded.strides
    at_every_corner = np.lib.stride_tricks.as_strided(
        padded, (count, 2 * crop + 1, 2 * crop + 1, height, width * channels), (image, down, right, down, 1)
    )
    out_NHW = out_NHWC.view(f"V{channels}")[..., 0]  # a pixel is one number of so many bytes
    for rows, across in ((np.flatnonzero(~flip_N), slice(None)), (np.flatnonzero(flip_N), slice(None, None, -1))):
        cut = at_every_corner[rows, corner_N2[rows, 0], corner_N2[rows, 1]].view(out_NHW.dtype)
        out_NHW[rows] = cut[:, :, across]


_kept = threading.local()


def _zeros(shape: tuple[int, ...], border: int) -> np.ndarray:
    """Of this thread, zero on the border: memory that is fresh costs more than what is done with it here."""
    if getattr(_kept, "of", None) != (shape, border):
        _kept.of, _kept.array = (shape, border), np.zeros(shape, np.uint8)
    array: np.ndarray = _kept.array
    return array


def moved(images_NHWC: Tensor, moves_B4: Tensor, crop: int) -> Tensor:
    """(B, C, H, W) uint8, channels-last: as `augment`, by one gather on the device of the images.

    Moves are (place of the image, whether it is mirrored, row and column of the corner).
    """
    device, (_, height, width, _) = images_NHWC.device, images_NHWC.shape
    row_B, flip_B, y_B, x_B = moves_B4.unbind(1)
    y_BH = (y_B - crop)[:, None] + torch.arange(height, device=device)
    across_W = torch.arange(width, device=device)
    x_BW = (x_B - crop)[:, None] + torch.where(flip_B[:, None] > 0, width - 1 - across_W, across_W)
    inside_BHW = ((y_BH >= 0) & (y_BH < height))[:, :, None] & ((x_BW >= 0) & (x_BW < width))[:, None, :]
    y_BH1, x_B1W = y_BH.clamp(0, height - 1)[:, :, None], x_BW.clamp(0, width - 1)[:, None, :]
    seen_BHWC = images_NHWC[row_B[:, None, None], y_BH1, x_B1W] * inside_BHW[..., None]
    return seen_BHWC.permute(0, 3, 1, 2)


def tags_at(rows_B: Tensor, tags_T: Tensor, starts_N1: Tensor, most: int) -> Tensor:
    """(B, M) int64: as `Posts.tags_of`, on the device of the tags."""
    place_BM = starts_N1[rows_B][:, None] + torch.arange(most, device=rows_B.device)
    inside_BM = place_BM < starts_N1[rows_B + 1][:, None]
    return torch.where(inside_BM, tags_T[place_BM.clamp(max=max(len(tags_T) - 1, 0))], NO_TAG)


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
