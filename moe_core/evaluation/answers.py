"""Answers among many hashtags, a part of the posts at a time: what is kept of a post is its features, and the V numbers
of its answer live on the device for as long as its part is measured.

Letters: N posts, B of a part, D embedding width, V hashtags.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from moe_core.training.infer import logits_of

PART_BYTES = 64 << 20  # of one array (B, V) in float32: measuring holds some ten of them


class Layers(Protocol):
    """Last layers by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> nn.Linear: ...


class ReadLayers:
    """Last layers that are read when they are wanted, each in the place of the one before."""

    def __init__(self, count: int, read: Callable[[int], nn.Linear]) -> None:
        self._count, self._read = count, read
        self._here: tuple[int, nn.Linear] | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int, /) -> nn.Linear:
        if self._here is None or self._here[0] != number:
            self._here = None  # never two at once
            self._here = number, self._read(number)
        return self._here[1]


@dataclass(frozen=True)
class Answer:
    """Features of N posts, and the last layer that answers by them: one, or one of several for each post."""

    features_ND: Tensor  # float32, on the CPU
    layers: Layers
    layer_N: np.ndarray | None = None  # which layer answers a post; None: there is one

    @property
    def hashtags(self) -> int:
        return self.layers[0].out_features

    def parts(self) -> Iterator[np.ndarray]:
        """Places of posts, (B,) at a time: all the posts, those of one part with one layer."""
        size = part_size(self.hashtags)
        layer_N = np.zeros(len(self.features_ND), np.int64) if self.layer_N is None else self.layer_N
        for layer in np.unique(layer_N):
            rows = np.flatnonzero(layer_N == layer)
            yield from (rows[first : first + size] for first in range(0, len(rows), size))

    def logits(self, rows_B: np.ndarray, device: str) -> Tensor:
        """(B, V) on the device: of the posts at these places, which have one layer."""
        layer = self.layers[0 if self.layer_N is None else int(self.layer_N[rows_B[0]])]
        return logits_of(self.features_ND[rows_B], layer, device)


def part_size(hashtags: int) -> int:
    """Posts of a part."""
    return max(1, PART_BYTES // (4 * hashtags))
