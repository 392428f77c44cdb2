"""Batches: images read, moved as their order says, and brought to where the network is.

Images are read from wherever they lie, in threads that run ahead of the training, or lie on the device already; where
they lie and which thread reads what changes nothing in the batches.

Letters: N posts, B posts in the batch, S steps, C channels, H W pixels, M tags of the post that has most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import chain, groupby, islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from moe_core.training.captured import Captured
from moe_core.training.moves import moved
from moe_core.training.order import TOGETHER, Draws, Order
from moe_core.training.posts import NO_TAG, READ_ROWS, ImagesOnDevice, Posts
from moe_core.training.transfer import named, pinned, use
from moe_core.training.windows import Part, in_windows, read_parts

if TYPE_CHECKING:
    from moe_core.settings import Training

# Of ImageNet, in [0, 255]: a torchvision checkpoint expects them, and any fixed choice serves a network from scratch.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
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
    device, order = named(device), Order(posts, training, rank, ranks)
    if first >= last:
        return
    if isinstance(posts.images, ImagesOnDevice):
        yield from _gathered(posts, posts.images.images_NHWC, order, range(first, last))
        return
    pixels = posts.images.read(np.zeros(1, np.int64)).nbytes
    most = max(1, min(READ_ROWS, READ_BYTES // pixels) // order.size)  # steps that are read at once
    most = min(1 << most.bit_length() - 1, TOGETHER)
    starts = range(first // most * most, last, most)  # none of which lies in two draws of the order
    some_steps = [range(max(start, first), min(start + most, last)) for start in starts]

    on_cpu = not device.startswith("cuda")

    def read(part: tuple[range, list[Part]]) -> _Read:
        use(device)
        steps, windows = part
        draws = order.draws(steps)
        rows_N = draws.rows_SB.reshape(-1)
        moves = draws.moves.flat() if on_cpu else None
        images_NHWC = read_parts(windows, moves) if windows else posts.images.read(rows_N, moves)
        return _Read(steps, draws, images_NHWC, posts.tags_of(rows_N))

    parts: Iterable[tuple[range, list[Part]]] = ((steps, []) for steps in some_steps)
    if posts.block > 1:
        parts = in_windows(posts.images, order, some_steps, range(first, last))
    if on_cpu:
        for some in ahead(read, parts, threads):
            yield from some.batches()
    else:
        yield from _uploaded(ahead(lambda part: read(part).pinned(), parts, threads), training.crop, device)


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
        parts = self.images_NHWC, self.draws.moves.packed(there), self.tags_NM.reshape(*there.shape, -1)
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
    """Batches of posts whose images lie on the device: what the steps draw is copied there for many steps at once.

    With `capture` the next batch takes the memory of the one before.
    """
    device = images_NHWC.device
    tags_T, starts_N1 = posts.tags_T.to(device), posts.starts_N1.to(device)

    def drawn(moves_B4: Tensor) -> tuple[Tensor, Tensor]:
        tags_BM = tags_at(moves_B4[:, 0], tags_T, starts_N1, posts.most_tags)
        return moved(images_NHWC, moves_B4, order.training.crop), tags_BM

    at_once = Captured(drawn) if device.type == "cuda" and order.training.capture else drawn
    for _, block in groupby(steps, lambda step: step // TOGETHER):
        some = list(block)
        draws = order.draws(range(some[0], some[-1] + 1))
        moves_SB4 = torch.from_numpy(draws.moves.packed(draws.rows_SB))
        moves_SB4 = pinned(moves_SB4, device.type).to(device, non_blocking=True)
        for step, moves_B4 in zip(some, moves_SB4, strict=True):
            yield Batch(step, *at_once(moves_B4))


def ahead(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """`work(item)` of each item in order, done by threads that are at most `threads` + 1 items ahead."""
    rest = iter(items)
    begin = list(islice(rest, 2))
    if len(begin) < 2:  # a thread would do nothing meanwhile
        yield from map(work, begin)
        return
    pool = ThreadPoolExecutor(threads)
    pending: deque[Future[Result]] = deque()
    try:
        for item in chain(begin, rest):
            pending.append(pool.submit(work, item))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


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
