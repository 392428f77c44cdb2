"""Training steps that the project's loop is measured against: what it was before, and the least that any loop does.

Letters: B posts in the batch, C channels, H W pixels, S pixels a side, M tags of a post at most (padded with -1),
V hashtags.
"""

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from common import CUDA, DEVICE
from torch import Tensor, nn

from moe_core.models import resnet
from moe_core.settings import Training
from moe_core.training.batches import MEAN, STD
from moe_core.training.loop import CHECK_EVERY, learning_rate, steps_of
from moe_core.training.moves import moved
from moe_core.training.order import moves_of, rows_of_steps
from moe_core.training.posts import ImagesOnDevice, Posts


def ten_steps_of_before(model: nn.Module, posts: Posts, training: Training, hashtags: int) -> Callable[[], None]:
    """Ten steps of the loop that the project had before it was rebuilt for GPUs (commit 2f957ab), reading included.

    Each step draws on the CPU and copies what it drew, the constants of the pixels too; the loss has a dense target,
    a shortcut slices before its convolution, SGD takes a kernel for each operation, and cuDNN tries nothing.
    """
    assert isinstance(posts.images, ImagesOnDevice)
    images_NHWC, number = posts.images.images_NHWC, 0
    model.to(DEVICE).train()
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) == wide] for wide in (True, False))
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": training.weight_decay}, {"params": vectors}]
    optimizer = torch.optim.SGD(groups, lr=training.lr, momentum=training.momentum, nesterov=True)
    steps = steps_of(len(posts), training)
    losses_S = torch.zeros(CHECK_EVERY, device=DEVICE)

    def step() -> Tensor:
        nonlocal number
        rows_B = rows_of_steps(len(posts), training.batch_size, training.seed, range(number, number + 1))[0]
        moves = moves_of(rows_B.shape, training, number)
        drawn = (torch.from_numpy(part).to(DEVICE) for part in (rows_B, moves.mirrored_N, moves.corner_N2))
        row_B, flip_B, corner_B2 = drawn
        moves_B4 = torch.cat([row_B[:, None], flip_B[:, None], corner_B2], 1)
        pixels_BCHW = moved(images_NHWC, moves_B4, training.crop)
        mean_C11, std_C11 = (torch.tensor(value, device=DEVICE)[:, None, None] for value in (MEAN, STD))
        x_BCHW = ((pixels_BCHW.float() - mean_C11) / std_C11).contiguous(memory_format=torch.channels_last)
        owner_T, tag_T = np.nonzero(posts.tags_of(rows_B) >= 0)[0], posts.tag_rows(rows_B)[0]
        targets_BV = torch.zeros(len(rows_B), hashtags, device=DEVICE)
        targets_BV[torch.from_numpy(owner_T).to(DEVICE), tag_T.to(DEVICE)] = 1.0
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training.schedule, training.lr, training.warmup, number, steps)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=CUDA):
            logits_BV = model(x_BCHW)
        loss = dense_loss(logits_BV.float(), targets_BV)
        loss.backward()
        optimizer.step()
        number += 1
        return loss.detach()

    def ten_steps() -> None:
        with mock.patch.object(resnet.Pointwise, "forward", _sliced):
            for place in range(CHECK_EVERY):
                losses_S[place] = step()
        losses_S.tolist()
        state = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
        assert torch.stack([tensor.isfinite().all() for tensor in state]).all()

    return ten_steps


def _sliced(self: resnet.Pointwise, x_BCHW: Tensor) -> Tensor:
    down, across = self.stride
    return F.conv2d(x_BCHW[:, :, ::down, ::across], self.weight, self.bias)


def dense_loss(logits_BV: Tensor, targets_BV: Tensor) -> Tensor:
    """The softmax loss of before: against a (B, V) array of targets."""
    return F.cross_entropy(logits_BV, targets_BV / targets_BV.sum(1, keepdim=True).clamp(min=1))


def sparse_loss(logits_BV: Tensor, tags_BM: Tensor) -> Tensor:
    """The same without targets in a few lines, for bare loops: logsumexp minus the mean of the tags' logits."""
    has_BM = tags_BM >= 0
    picked_BM = logits_BV.gather(1, tags_BM.clamp(min=0)) * has_BM
    return (logits_BV.logsumexp(1) - picked_BM.sum(1) / has_BM.sum(1)).mean()


def bare_step(model: nn.Module, posts: Posts, side: int, batch: int, lr: float, crop: int) -> Callable[[], None]:
    """What any training does: gather, flips and crops, forward, loss, backward, fused SGD; the loss is never read."""
    assert isinstance(posts.images, ImagesOnDevice)
    images, tags, pixel_S = posts.images.images_NHWC, posts.tags_T.to(DEVICE), torch.arange(side, device=DEVICE)
    mean_C11, std_C11 = (torch.tensor(value, device=DEVICE).view(3, 1, 1) for value in (MEAN, STD))
    model.to(DEVICE).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)

    def step() -> None:
        rows_B = torch.randint(0, len(images), (batch,), device=DEVICE)
        y_B1, x_B1 = torch.randint(-crop, crop + 1, (2, batch, 1), device=DEVICE)
        flip_B1 = torch.rand(batch, 1, device=DEVICE) < 0.5
        x_BS = (x_B1 + torch.where(flip_B1, side - 1 - pixel_S, pixel_S)).clamp(0, side - 1)
        y_BS = (y_B1 + pixel_S).clamp(0, side - 1)
        pixels_BHWC = images[rows_B[:, None, None], y_BS[:, :, None], x_BS[:, None, :]]
        x_BCHW = (pixels_BHWC.permute(0, 3, 1, 2).float() - mean_C11) / std_C11
        with torch.autocast(DEVICE, torch.bfloat16, enabled=CUDA):
            logits_BV = model(x_BCHW)
        loss = sparse_loss(logits_BV.float(), tags[rows_B, None])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step
