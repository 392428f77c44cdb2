"""Costs of a network: parameters, and multiply-adds for one image, counted on a real forward pass."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from moe_core.models.resnet import ResNet


def parameters(model: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: ResNet, image_size: int, after: int = 0) -> int:
    """Multiply-adds of convolutions and linear layers for one image of `image_size` squared pixels.

    `after` leaves out the stem and the first `after` stages, which an expert shares with the trunk. A network from
    `build_on_meta` is counted without computing anything.
    """
    training = model.training
    image_1CHW = torch.zeros(1, 3, image_size, image_size, device=model.fc.weight.device)
    with torch.no_grad(), FlopCounterMode(display=False) as whole:
        model.eval()(image_1CHW)
    with torch.no_grad(), FlopCounterMode(display=False) as shared:
        if after:
            model.forward_stem(image_1CHW, after)
    model.train(training)
    return (whole.get_total_flops() - shared.get_total_flops()) // 2  # each is two operations
