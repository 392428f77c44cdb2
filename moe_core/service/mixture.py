"""A mixture that answers: its bundle, and what follows from it."""

import time
from dataclasses import dataclass, field

import numpy as np

from moe_core.models.cost import multiply_adds
from moe_core.serving.bundle import Bundle

KEPT = 16  # precisions that are asked for again and again


@dataclass(frozen=True, eq=False)
class Mixture:
    """A bundle under the version by which the store, or its folder, names it."""

    version: str
    bundle: Bundle
    since: float = field(default_factory=time.time)  # when it began to answer
    work: int = field(init=False)  # multiply-adds of one image in one network

    limits: dict[float, np.ndarray | None] = field(init=False, default_factory=dict)  # by precision, the last ones

    def limits_of(self, precision: float) -> np.ndarray | None:
        """(V,) float32: the lowest probability of each hashtag for a precision; None where no thresholds are known."""
        if precision not in self.limits:
            if len(self.limits) >= KEPT:
                self.limits.clear()
            curves = self.bundle.curves
            self.limits[precision] = None if curves is None else curves.thresholds(precision)
        return self.limits[precision]

    def __post_init__(self) -> None:
        object.__setattr__(self, "work", multiply_adds(self.bundle.router, self.bundle.image_size))
