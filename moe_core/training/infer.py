"""Features and probabilities of posts, without augmentation.

Letters: N posts, B posts in the batch, D embedding width, V hashtags.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moe_core.training.batches import normalise
from moe_core.training.loop import uses_bfloat16

if TYPE_CHECKING:
    from moe_core.models.resnet import ResNet

BATCH = 256


def features_of(model: ResNet, images_NCHW: Tensor, precision: str = "auto", device: str = "cpu") -> Tensor:
    """(N, D) float32 on the CPU, of uint8 images."""
    model.to(device).eval()
    out_ND = torch.empty(len(images_NCHW), model.width)
    with (
        torch.inference_mode(),
        torch.autocast(device.split(":")[0], torch.bfloat16, enabled=uses_bfloat16(precision, device)),
    ):
        for first in range(0, len(images_NCHW), BATCH):
            x_BCHW = normalise(images_NCHW[first : first + BATCH].to(device, non_blocking=True))
            out_ND[first : first + BATCH] = model.features(x_BCHW).float().cpu()
    return out_ND


def probabilities_of(features_ND: Tensor, weight_VD: Tensor, bias_V: Tensor, loss: str) -> Tensor:
    """(N, V) float32, rows sum to one: the softmax; or each hashtag's sigmoid, scaled so that both are scored alike."""
    logits_NV = features_ND @ weight_VD.T + bias_V
    if loss == "sigmoid":
        each_NV = logits_NV.sigmoid()
        return each_NV / each_NV.sum(1, keepdim=True).clamp(min=1e-12)
    return logits_NV.softmax(1)
