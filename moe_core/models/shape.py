"""Sizes of networks and how large they may be, without torch: for study.toml and for bundles from elsewhere."""

from collections.abc import Sequence
from typing import Protocol

MAX_WIDTH, MAX_BLOCKS = 16_384, 1_000  # of a network, so that it can be built; beyond every published ResNet
MAX_EXPERTS = 10_000  # each is a partition of Dagster's, and a clearly larger number is a slip of the keyboard


class NetworkShape(Protocol):
    """What a network is built from, as the table [network] of study.toml explains it."""

    @property
    def block(self) -> str: ...

    @property
    def stem(self) -> str: ...

    @property
    def widths(self) -> Sequence[int]: ...

    @property
    def depths(self) -> Sequence[int]: ...

    @property
    def embedding(self) -> int: ...


def check_stages(widths: Sequence[int], depths: Sequence[int]) -> None:
    """Raises ValueError unless each stage has a width and a depth, and all together have at most MAX_BLOCKS blocks."""
    if len(widths) != len(depths) or not widths:
        raise ValueError(f"widths {widths} and depths {depths} must have the same length, one entry a stage")
    if sum(depths) > MAX_BLOCKS:
        raise ValueError(f"depths are {sum(depths):,} blocks in all: wanted at most {MAX_BLOCKS:,}")
