"""The loss of a post's hashtags, without a dense target: of V hashtags it has but a few.

Logits may be bfloat16, which the loss and its gradient are computed from in float32: for some posts at a time, so that
what is between them stays in a core's cache, and for V = 100,000 nothing else is as large as the logits.

Letters: B posts in the batch, R of them at a time, V hashtags, M tags of the post that has most.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CPU_BYTES = 16 << 20  # of float32 at a time; measured with benchmarks/loss.py
GPU_BYTES = 256 << 20  # enough to fill a GPU


def hashtag_loss(logits_BV: Tensor, tags_BM: Tensor, kind: str) -> Tensor:
    """float32. softmax: cross-entropy against 1/k on each of a post's k tags (Mahajan et al. 2018). sigmoid: binary,
    summed.

    `tags_BM` is filled up with negative numbers; a post's tags differ. With softmax a post without tags costs nothing.
    """
    loss: Tensor = (_Sigmoid if kind == "sigmoid" else _Softmax).apply(logits_BV, tags_BM)
    return loss


def _parts(logits_BV: Tensor) -> Iterator[slice]:
    posts, hashtags = logits_BV.shape
    some = max(1, (GPU_BYTES if logits_BV.is_cuda else CPU_BYTES) // (4 * hashtags))
    return (slice(first, first + some) for first in range(0, posts, some))


def _exact(logits_BV: Tensor) -> torch.dtype:
    return torch.promote_types(logits_BV.dtype, torch.float32)


class _Softmax(torch.autograd.Function):
    """log(sum(exp(logits))) less the mean of the tags' logits; the gradient is written once, into one array (B, V)."""

    @staticmethod
    def forward(ctx: Any, logits_BV: Tensor, tags_BM: Tensor) -> Tensor:
        has_BM = tags_BM >= 0
        count_B = has_BM.sum(1)
        exact = _exact(logits_BV)
        weight_BM = has_BM.to(exact) / count_B.clamp(min=1)[:, None]
        total_B, loss_B = (logits_BV.new_empty(len(logits_BV), dtype=exact) for _ in range(2))
        for some in _parts(logits_BV):
            logits_RV = logits_BV[some].to(exact)
            log_RV = F.log_softmax(logits_RV, 1)
            total_B[some] = logits_RV[:, 0] - log_RV[:, 0]
            loss_B[some] = -(log_RV.gather(1, tags_BM[some].clamp(min=0)) * weight_BM[some]).sum(1)
        ctx.save_for_backward(logits_BV, tags_BM, weight_BM, count_B > 0, total_B)
        return loss_B.mean()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None]:
        logits_BV, tags_BM, weight_BM, tagged_B, total_B = ctx.saved_tensors
        scale = scale / len(logits_BV)
        gradient_BV = torch.empty_like(logits_BV)
        for some in _parts(logits_BV):
            gradient_RV = (logits_BV[some] - total_B[some, None]).exp_().mul_((tagged_B[some] * scale)[:, None])
            gradient_RV.scatter_add_(1, tags_BM[some].clamp(min=0), weight_BM[some] * -scale)
            gradient_BV[some] = gradient_RV
        return gradient_BV, None


class _Sigmoid(torch.autograd.Function):
    """The sum of log(1 + exp(logit)) less the tags' logits."""

    @staticmethod
    def forward(ctx: Any, logits_BV: Tensor, tags_BM: Tensor) -> Tensor:
        exact = _exact(logits_BV)
        has_BM = (tags_BM >= 0).to(exact)
        loss_B = logits_BV.new_empty(len(logits_BV), dtype=exact)
        for some in _parts(logits_BV):
            logits_RV = logits_BV[some].to(exact)
            of_tags_R = (logits_RV.gather(1, tags_BM[some].clamp(min=0)) * has_BM[some]).sum(1)
            loss_B[some] = F.softplus(logits_RV).sum(1) - of_tags_R
        ctx.save_for_backward(logits_BV, tags_BM, has_BM)
        return loss_B.mean()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None]:
        logits_BV, tags_BM, has_BM = ctx.saved_tensors
        scale = scale / len(logits_BV)
        gradient_BV = torch.empty_like(logits_BV)
        for some in _parts(logits_BV):
            gradient_RV = logits_BV[some].to(has_BM.dtype).sigmoid().mul_(scale)
            gradient_RV.scatter_add_(1, tags_BM[some].clamp(min=0), has_BM[some] * -scale)
            gradient_BV[some] = gradient_RV
        return gradient_BV, None
