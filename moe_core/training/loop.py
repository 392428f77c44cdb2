"""The training loop. One function; it yields what it measures, and the caller prints, logs or plots it.

Letters: B posts in the batch, C channels, H W pixels, V hashtags.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_core.training.batches import Posts, batches, normalise
from moe_core.training.checkpoint import load_checkpoint, save_checkpoint
from moe_core.training.schedule import learning_rate

if TYPE_CHECKING:
    from moe_core.models.resnet import ResNet
    from moe_core.settings import Training

CHECK_EVERY = 10  # steps between looks at the loss: on a GPU each look waits for the device


@dataclass(frozen=True)
class Measurement:
    """What one stretch of steps did."""

    step: int  # steps done
    steps: int  # steps in all
    loss: float  # mean over the stretch
    lr: float
    images_per_second: float
    images_seen: int


def steps_of(posts: int, training: Training) -> int:
    """Steps of a whole run over `posts` posts."""
    return max(1, round(training.epochs * (posts // min(training.batch_size, posts))))


def train(
    model: ResNet,
    posts: Posts,
    training: Training,
    *,
    train_decoder: bool = True,
    checkpoint: Path | None = None,
    device: str = "cpu",
    readers: int = 1,
) -> Iterator[Measurement]:
    """Trains `model` in place, yielding every CHECK_EVERY steps; resumes from `checkpoint` where that file exists.

    With `train_decoder=False` the last layer is held fixed. `readers` threads read images ahead; their number changes
    nothing in the result. Raises ValueError without posts and FloatingPointError at the first loss that is not finite,
    saying between which steps it arose.
    """
    if len(posts) == 0:
        raise ValueError("no posts to train on: wanted at least one")
    model.to(device).train()
    model.fc.requires_grad_(train_decoder)
    optimizer = _optimizer(model, training)
    steps, batch_size = steps_of(len(posts), training), min(training.batch_size, len(posts))
    start = load_checkpoint(checkpoint, model, optimizer, steps) if checkpoint else 0
    saved_at = looked_at = time.monotonic()
    bfloat16 = uses_bfloat16(training.precision, device)
    losses = torch.zeros((), device=device)

    for batch in batches(posts, training, model.fc.out_features, start, steps, threads=readers):
        x_BCHW = normalise(batch.images_BCHW.to(device, non_blocking=True))
        targets_BV = batch.targets_BV.to(device, non_blocking=True)
        lr = learning_rate(training.schedule, training.lr, training.warmup, batch.step, steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=bfloat16):
            logits_BV = model(x_BCHW)
        loss = hashtag_loss(logits_BV.float(), targets_BV, training.loss)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses += loss.detach()

        done = batch.step + 1
        if done % CHECK_EVERY == 0 or done == steps:
            first = max(start, (done - 1) // CHECK_EVERY * CHECK_EVERY)
            mean = float(losses) / (done - first)
            if not math.isfinite(mean):
                raise FloatingPointError(
                    f"loss is {mean} between steps {first} and {done} of {steps} at learning rate {lr:.3g}: "
                    "lower the learning rate, or train in float32"
                )
            losses.zero_()
            now = time.monotonic()
            yield Measurement(done, steps, mean, lr, (done - first) * batch_size / (now - looked_at), done * batch_size)
            looked_at = time.monotonic()
            if checkpoint and done < steps and looked_at - saved_at >= training.checkpoint_seconds:
                save_checkpoint(checkpoint, model, optimizer, done, steps)
                saved_at = looked_at = time.monotonic()
    model.fc.requires_grad_(True)


def hashtag_loss(logits_BV: Tensor, targets_BV: Tensor, kind: str) -> Tensor:
    """softmax: cross-entropy against 1/k on each of a post's k tags (Mahajan et al. 2018). sigmoid: binary, summed."""
    if kind == "sigmoid":
        return F.binary_cross_entropy_with_logits(logits_BV, targets_BV, reduction="none").sum(1).mean()
    share_BV = targets_BV / targets_BV.sum(1, keepdim=True).clamp(min=1)
    return F.cross_entropy(logits_BV, share_BV)


def uses_bfloat16(precision: str, device: str) -> bool:
    """auto: where the device computes in bfloat16, which on a CPU means AVX-512 BF16 or AMX."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported())


def _optimizer(model: nn.Module, training: Training) -> torch.optim.SGD:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": training.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},  # batch norm and biases
        ],
        lr=training.lr,
        momentum=training.momentum,
        nesterov=training.momentum > 0,
    )
