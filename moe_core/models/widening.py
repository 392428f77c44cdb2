"""A wider network that computes what a narrower one does, to go on from there.

Each new channel is a copy of a drawn old one, and what reads a channel shares its weight among the copies
(Net2WiderNet: Chen, Goodfellow, Shlens, "Net2Net", ICLR 2016). A little noise sets the copies apart, or they would
stay equal.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from moe_core.models.resnet import ResNet

NOISE = 0.02  # of a filter's own deviation


def fill_wider(state: Mapping[str, Tensor], old: ResNet, new: ResNet, seed: int, noise: float = NOISE) -> None:
    """Fills `new`, whose stages are as wide as those of `old` or wider, with what `state` of `old` computes.

    Layers of the same shape get the same weights. Raises ValueError for networks that differ in more than widths.
    """
    names = {name: tensor.shape for name, tensor in new.state_dict().items()}
    if differ := sorted(set(names) ^ set(state)):
        raise ValueError(f"networks differ in {', '.join(differ[:3])}: wanted other widths only")
    draw = np.random.default_rng(seed)

    def channels(had: int, wanted: int) -> np.ndarray:
        """(wanted,): the old channel of each new one; the first are the old ones."""
        if wanted < had:
            raise ValueError(f"{had} channels do not fit into {wanted}: wanted a stage as wide or wider")
        return np.concatenate([np.arange(had), draw.integers(0, had, wanted - had)])

    found: dict[str, Tensor] = {}

    def fill(conv: str, norm: str, reads_C: np.ndarray, gives_C: np.ndarray) -> None:
        """A convolution and its batch norm; channels that it reads and gives, by old number."""
        weight_OIHW = state[f"{conv}.weight"]
        share_C = torch.from_numpy(1 / np.bincount(reads_C)[reads_C]).float()
        wider_OIHW = weight_OIHW[gives_C][:, reads_C] * share_C[:, None, None]
        if wider_OIHW.shape != weight_OIHW.shape:
            apart_OIHW = torch.from_numpy(draw.standard_normal(tuple(wider_OIHW.shape), np.float32))
            wider_OIHW += noise * wider_OIHW.std() * apart_OIHW
        found[f"{conv}.weight"] = wider_OIHW
        for name in ("weight", "bias", "running_mean", "running_var"):
            found[f"{norm}.{name}"] = state[f"{norm}.{name}"][gives_C]
        found[f"{norm}.num_batches_tracked"] = state[f"{norm}.num_batches_tracked"]

    def of(conv: str) -> np.ndarray:
        return channels(len(state[f"{conv}.weight"]), names[f"{conv}.weight"][0])

    stream_C = of("conv1")
    fill("conv1", "bn1", np.arange(3), stream_C)
    for stage in new.stages:
        for place, block in enumerate(new.get_submodule(stage).children()):
            at = f"{stage}.{place}"
            convs = sorted(name for name, _ in block.named_children() if name.startswith("conv"))
            shortcut = f"{at}.downsample.0"
            gives_C = of(shortcut) if f"{shortcut}.weight" in state else stream_C
            if f"{shortcut}.weight" in state:
                fill(shortcut, f"{at}.downsample.1", stream_C, gives_C)
            reads_C = stream_C
            for conv in convs:
                its_C = gives_C if conv == convs[-1] else of(f"{at}.{conv}")
                fill(f"{at}.{conv}", f"{at}.{conv.replace('conv', 'bn')}", reads_C, its_C)
                reads_C = its_C
            stream_C = gives_C
    if new.embeds:
        gives_C = of("conv_embed")
        fill("conv_embed", "bn_embed", stream_C, gives_C)
        stream_C = gives_C
    if len(stream_C) != old.width:
        raise ValueError(f"the embedding grew from {old.width} to {len(stream_C)}: wanted network.embedding > 0")
    new.load_state_dict(found | {name: state[name] for name in ("fc.weight", "fc.bias")})
