"""The loss of a post's hashtags, without a dense target: of V hashtags it has but a few.

Letters: B posts in the batch, V hashtags, M tags of the post that has most.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def hashtag_loss(logits_BV: Tensor, tags_BM: Tensor, kind: str) -> Tensor:
    """softmax: cross-entropy against 1/k on each of a post's k tags (Mahajan et al. 2018). sigmoid: binary, summed.

    `tags_BM` is filled up with negative numbers; a post's tags differ. With softmax a post without tags costs nothing.
    """
    loss: Tensor = (_Sigmoid if kind == "sigmoid" else _Softmax).apply(logits_BV, tags_BM)
    return loss


class _Softmax(torch.autograd.Function):
    """log(sum(exp(logits))) less the mean of the tags' logits; the gradient is written once, into one array (B, V)."""

    @staticmethod
    def forward(ctx: Any, logits_BV: Tensor, tags_BM: Tensor) -> Tensor:
        has_BM = tags_BM >= 0
        count_B = has_BM.sum(1)
        weight_BM = has_BM.to(logits_BV.dtype) / count_B.clamp(min=1)[:, None]
        log_BV = F.log_softmax(logits_BV, 1)
        ctx.save_for_backward(log_BV, tags_BM, weight_BM, count_B > 0)
        return -(log_BV.gather(1, tags_BM.clamp(min=0)) * weight_BM).sum(1).mean()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None]:
        log_BV, tags_BM, weight_BM, tagged_B = ctx.saved_tensors
        scale = scale / len(log_BV)
        gradient_BV = log_BV.exp().mul_((tagged_B * scale)[:, None])
        gradient_BV.scatter_add_(1, tags_BM.clamp(min=0), weight_BM * -scale)
        return gradient_BV, None


class _Sigmoid(torch.autograd.Function):
    """The sum of log(1 + exp(logit)) less the tags' logits."""

    @staticmethod
    def forward(ctx: Any, logits_BV: Tensor, tags_BM: Tensor) -> Tensor:
        has_BM = (tags_BM >= 0).to(logits_BV.dtype)
        ctx.save_for_backward(logits_BV, tags_BM, has_BM)
        return (F.softplus(logits_BV).sum(1) - (logits_BV.gather(1, tags_BM.clamp(min=0)) * has_BM).sum(1)).mean()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None]:
        logits_BV, tags_BM, has_BM = ctx.saved_tensors
        scale = scale / len(logits_BV)
        gradient_BV = logits_BV.sigmoid().mul_(scale)
        gradient_BV.scatter_add_(1, tags_BM.clamp(min=0), has_BM * -scale)
        return gradient_BV, None
