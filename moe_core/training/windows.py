"""Windows of posts in blocks: read ahead as a whole, given to the steps that draw them part by part.

A window and the next one are in memory as they are stored, for a moment those before and after them too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from moe_core.training.moves import Moves
from moe_core.training.order import Order
from moe_core.training.posts import Images


@dataclass(frozen=True)
class Part:
    """Some posts of a window, one after the other in the order in which they are drawn."""

    window: Future[Images]
    places: range

    def read(self, moves: Moves | None) -> np.ndarray:
        """(B, H, W, C) uint8, once they are there."""
        return self.window.result().read(np.arange(self.places.start, self.places.stop), moves)


def read_parts(parts: Sequence[Part], moves: Moves | None) -> np.ndarray:
    """(B, H, W, C) uint8 of parts that follow one another, once they are there."""
    first, images = 0, []
    for part in parts:
        its = slice(first, first + len(part.places))
        images.append(part.read(moves[its] if moves else None))
        first = its.stop
    return images[0] if len(images) == 1 else np.concatenate(images)


def in_windows(
    images: Images, order: Order, parts: Iterable[range], steps: range
) -> Iterator[tuple[range, list[Part]]]:
    """Each part of these steps with where its images are; those of the window after it are on their way, too."""
    last = int(order.windows(steps[-1:])[-1])
    reading: dict[int, Future[Images]] = {}
    given: dict[int, int] = {}  # posts of a window that earlier parts have

    def read(number: int) -> Images:
        its = order.steps_of_window(number)
        its = range(max(its.start, steps.start), min(its.stop, steps.stop))
        return images.fetched(order.rows(its).reshape(-1)[order.windows(its) == number])

    with ThreadPoolExecutor(1) as pool:
        for part in parts:
            found = []
            numbers, counts = np.unique(order.windows(part), return_counts=True)
            for number in range(int(numbers[0]), min(int(numbers[-1]) + 1, last) + 1):
                if number not in reading:
                    reading[number], given[number] = pool.submit(read, number), 0
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
                found.append(Part(reading[number], range(given[number], given[number] + count)))
                given[number] += count
            for number in [number for number in reading if number < numbers[0]]:
                del reading[number], given[number]
            yield part, found
