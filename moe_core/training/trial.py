"""Speed of training on this machine, from a trial of about a second, before anything is stored."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from moe_core.models.cost import multiply_adds
from moe_core.models.resnet import build
from moe_core.training.loop import CHECK_EVERY, train
from moe_core.training.posts import ImagesInMemory, Posts

if TYPE_CHECKING:
    from moe_core.settings import Network, Training

MULTIPLY_ADDS = 5e9  # of the trial, at most, but for networks of which ten images take more


def images_per_second(network: Network, hashtags: int, image_size: int, training: Training, device: str) -> float:
    """Images trained on a second, in the second ten of twenty steps on random data; costly images make batches smaller.

    On a CPU by one thread and its own time, so that other programs change little.
    """
    clock = time.monotonic if device.startswith("cuda") else time.process_time
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _speed(network, hashtags, image_size, training, device, clock)
    finally:
        torch.set_num_threads(threads)


def _speed(
    network: Network, hashtags: int, image_size: int, training: Training, device: str, clock: Callable[[], float]
) -> float:
    model = build(network, hashtags, 0)
    affordable = int(MULTIPLY_ADDS / (2 * CHECK_EVERY * 3 * multiply_adds(model, image_size)))
    size = max(1, min(training.batch_size, affordable))
    count = 2 * size
    random = np.random.default_rng(0)
    images = ImagesInMemory(random.integers(0, 256, (count, image_size, image_size, 3), dtype=np.uint8))
    tags_T = torch.from_numpy(random.integers(0, hashtags, count))
    posts = Posts(images, tags_T, torch.arange(count + 1))
    short = training.model_copy(update={"batch_size": size, "epochs": CHECK_EVERY, "accumulate": 1, "lr": 1e-6})
    ends = [clock() for _ in train(model, posts, short, device=device)]
    return CHECK_EVERY * size / (ends[-1] - ends[-2])
