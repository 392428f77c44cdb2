"""Batches: their order and their augmentation are pure functions of (seed, step), so resuming needs no saved sampler.

Letters: N posts, B posts in the batch, C channels, H W pixels, T tags of all posts, V hashtags.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Of ImageNet, in [0, 255]: a torchvision checkpoint expects them, and any fixed choice serves a network from scratch.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Posts:
    """Posts in memory: decoded images and their tags as positions in the vocabulary, in compressed rows."""

    images_NCHW: Tensor  # uint8, channels-last in memory
    tags_T: Tensor  # int64 in [0, V)
    starts_N1: Tensor  # int64, post n has tags_T[starts_N1[n]:starts_N1[n + 1]]

    def __post_init__(self) -> None:
        if len(self.starts_N1) != len(self.images_NCHW) + 1 or int(self.starts_N1[-1]) != len(self.tags_T):
            raise ValueError(
                f"{len(self.images_NCHW)} images, {len(self.starts_N1)} row starts up to {int(self.starts_N1[-1])}, "
                f"{len(self.tags_T)} tags: wanted one start more than images, the last one at the number of tags"
            )

    def __len__(self) -> int:
        return len(self.images_NCHW)

    def targets(self, rows_B: Tensor, hashtags: int) -> Tensor:
        """(B, V) float32 with a one at each tag of each post."""
        first_B, counts_B = self.starts_N1[rows_B], self.starts_N1[rows_B + 1] - self.starts_N1[rows_B]
        owner = torch.repeat_interleave(torch.arange(len(rows_B)), counts_B)
        offset = torch.arange(len(owner)) - torch.repeat_interleave(counts_B.cumsum(0) - counts_B, counts_B)
        targets_BV = torch.zeros(len(rows_B), hashtags)
        targets_BV[owner, self.tags_T[first_B[owner] + offset]] = 1.0
        return targets_BV


def rows_of_step(posts: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Rows of the `step`-th batch. Each pass over the posts has its own order; a remainder waits for another pass."""
    batch_size = min(batch_size, posts)
    epoch, place = divmod(step, posts // batch_size)
    order_N = _epoch_order(posts, seed, epoch)
    return order_N[place * batch_size : (place + 1) * batch_size]


_orders: dict[tuple[int, int, int], Tensor] = {}


def _epoch_order(posts: int, seed: int, epoch: int) -> Tensor:
    key = (posts, seed, epoch)
    if key not in _orders:
        _orders.clear()  # only the pass under way is kept
        _orders[key] = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(posts))
    return _orders[key]


def augment(images_BCHW: Tensor, flip: bool, crop: int, seed: int, step: int) -> Tensor:
    """Random flips and crops of padded uint8 images, the same for the same (seed, step)."""
    draw = np.random.default_rng([seed, step, 1])  # the trailing 1 keeps it apart from the order of an epoch
    count, _, height, width = images_BCHW.shape
    rows_BH = torch.arange(height).repeat(count, 1)
    columns_BW = torch.arange(width).repeat(count, 1)
    if flip:
        flips_B = torch.from_numpy(draw.integers(0, 2, count)).bool()
        columns_BW = torch.where(flips_B[:, None], width - 1 - columns_BW, columns_BW)
    if crop:
        images_BCHW = F.pad(images_BCHW, (crop, crop, crop, crop))
        rows_BH = rows_BH + torch.from_numpy(draw.integers(0, 2 * crop + 1, (count, 1)))
        columns_BW = columns_BW + torch.from_numpy(draw.integers(0, 2 * crop + 1, (count, 1)))
    if not flip and not crop:
        return images_BCHW
    device = images_BCHW.device
    images_BHWC = images_BCHW.permute(0, 2, 3, 1)
    return images_BHWC[
        torch.arange(count, device=device)[:, None, None],
        rows_BH.to(device)[:, :, None],
        columns_BW.to(device)[:, None, :],
    ].permute(0, 3, 1, 2)


def normalise(images_BCHW: Tensor) -> Tensor:
    """uint8 pixels to float32 of about zero mean and unit variance, channels-last."""
    mean_C = torch.tensor(MEAN, device=images_BCHW.device)[:, None, None]
    std_C = torch.tensor(STD, device=images_BCHW.device)[:, None, None]
    return ((images_BCHW.float() - mean_C) / std_C).contiguous(memory_format=torch.channels_last)
