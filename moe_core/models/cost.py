"""Costs of a network: parameters, and multiply-adds for one image, counted on a real forward pass."""

import torch
from torch import nn

from moe_core.models.resnet import ResNet


def parameters(model: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: ResNet, image_size: int, after: int = 0) -> int:
    """Multiply-adds of convolutions and linear layers for one image of `image_size` squared pixels.

    `after` leaves out the stem and the first `after` stages, which an expert shares with the trunk. A network from
    `build_on_meta` is counted without computing anything.
    """
    total = 0
    left_out = {layer for module in model.shared_layers(after) for layer in module.modules()}

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += output[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += module.weight.numel()

    counted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m not in left_out]
    handles = [m.register_forward_hook(count) for m in counted]
    training = model.training
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, 3, image_size, image_size, device=model.fc.weight.device))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return total
