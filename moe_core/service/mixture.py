"""A mixture that answers: its bundle, and what follows from it."""

import time
from dataclasses import dataclass, field

from moe_core.models.cost import multiply_adds
from moe_core.serving.bundle import Bundle


@dataclass(frozen=True, eq=False)
class Mixture:
    """A bundle under the version by which the store, or its folder, names it."""

    version: str
    bundle: Bundle
    since: float = field(default_factory=time.time)  # when it began to answer
    work: int = field(init=False)  # multiply-adds of one image in one network

    def __post_init__(self) -> None:
        object.__setattr__(self, "work", multiply_adds(self.bundle.router, self.bundle.image_size))
