"""Residual networks under torchvision's parameter names (`conv1, bn1, layer1..4, fc`), features apart from the head.

Any torchvision or timm ResNet checkpoint of the same shape loads. Source: He et al., "Deep Residual Learning for Image
Recognition", CVPR 2016. The optional 1x1 convolution before the pooling (`conv_embed`, `bn_embed`) widens the embedding
at little cost; docs/history/experiments.md says what it brings.

Letters: B images, C channels, H W pixels, D embedding width, V hashtags.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_core.models.shape import NetworkShape


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = F.relu(self.bn1(self.conv1(x_BCHW)))
        y_BCHW = self.bn2(self.conv2(y_BCHW))
        return F.relu(y_BCHW + (x_BCHW if self.downsample is None else self.downsample(x_BCHW)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions and a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = F.relu(self.bn1(self.conv1(x_BCHW)))
        y_BCHW = F.relu(self.bn2(self.conv2(y_BCHW)))
        y_BCHW = self.bn3(self.conv3(y_BCHW))
        return F.relu(y_BCHW + (x_BCHW if self.downsample is None else self.downsample(x_BCHW)))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(Pointwise(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class Pointwise(nn.Conv2d):
    """A 1x1 convolution whose stride is taken before it on a CPU.

    The same answer; but where oneDNN (torch 2.13) takes the stride itself, its bfloat16 gradient of the weights writes
    beyond a buffer of its own when the images do not divide among the threads, and the process dies, sooner or later.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if x_BCHW.is_cuda:
            return super().forward(x_BCHW)
        down, across = self.stride
        return F.conv2d(x_BCHW[:, :, ::down, ::across], self.weight, self.bias)


class ResNet(nn.Module):
    """`features` gives the embedding, `fc` decodes it into one logit a hashtag."""

    def __init__(self, network: NetworkShape, hashtags: int) -> None:
        super().__init__()
        block: type[BasicBlock] | type[Bottleneck] = Bottleneck if network.block == "bottleneck" else BasicBlock
        channels = 64 if network.stem == "imagenet" else network.widths[0]
        if network.stem == "imagenet":
            self.conv1 = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(3, 2, 1)
        else:
            self.conv1 = nn.Conv2d(3, channels, 3, 1, 1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(channels)
        self.stages = []
        for stage, (width, depth) in enumerate(zip(network.widths, network.depths, strict=True)):
            blocks = []
            for place in range(depth):
                blocks.append(block(channels, width, 2 if stage > 0 and place == 0 else 1))
                channels = width * block.expansion
            self.stages.append(f"layer{stage + 1}")
            self.add_module(self.stages[-1], nn.Sequential(*blocks))
        if network.embedding:
            self.conv_embed = nn.Conv2d(channels, network.embedding, 1, bias=False)
            self.bn_embed = nn.BatchNorm2d(network.embedding)
            channels = network.embedding
        self.embeds = bool(network.embedding)
        self.frozen: list[nn.Module] = []
        self.width = channels
        self.fc = nn.Linear(channels, hashtags)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x_BCHW: Tensor) -> Tensor:
        """(B, D) float: the embedding of normalized images."""
        return self.forward_rest(self.forward_stem(x_BCHW, 0), 0)

    def forward_stem(self, x_BCHW: Tensor, stages: int) -> Tensor:
        """(B, C, H, W): normalized images after the stem and the first `stages` stages."""
        y_BCHW = self.maxpool(F.relu(self.bn1(self.conv1(x_BCHW))))
        for stage in self.stages[:stages]:
            y_BCHW = self.get_submodule(stage)(y_BCHW)
        return y_BCHW

    def forward_rest(self, y_BCHW: Tensor, stages: int) -> Tensor:
        """(B, D) float: the embedding of images that passed `forward_stem`."""
        for stage in self.stages[stages:]:
            y_BCHW = self.get_submodule(stage)(y_BCHW)
        if self.embeds:
            y_BCHW = F.relu(self.bn_embed(self.conv_embed(y_BCHW)))
        return y_BCHW.mean(dim=(2, 3))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.fc(self.features(x_BCHW))

    def shared_layers(self, stages: int) -> list[nn.Module]:
        """The stem and the first `stages` stages; nothing for 0."""
        return [self.get_submodule(name) for name in shared_layer_names(stages)]

    def freeze_stages(self, stages: int) -> None:
        """Excludes the stem and the first `stages` stages from training, their running statistics too."""
        self.frozen = self.shared_layers(stages)
        for module in self.frozen:
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> ResNet:
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self


def shared_layer_names(stages: int) -> list[str]:
    """Names of the stem and the first `stages` stages; none for 0."""
    return ["conv1", "bn1", *(f"layer{stage + 1}" for stage in range(stages))] if stages else []


def build(network: NetworkShape, hashtags: int, seed: int) -> ResNet:
    """A network with weights drawn from `seed`, in channels-last layout; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet(network, hashtags).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def build_on_meta(network: NetworkShape, hashtags: int) -> ResNet:
    """A network without weights, to load some into: none are drawn only to be replaced."""
    with torch.device("meta"):
        return ResNet(network, hashtags).eval()


def channels_last(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights with filters laid out as `build` does."""
    layouts = {4: torch.channels_last}
    return {
        name: tensor.contiguous(memory_format=layouts.get(tensor.ndim, torch.contiguous_format))
        for name, tensor in state.items()
    }
