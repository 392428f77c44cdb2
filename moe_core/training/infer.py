"""Features and probabilities of posts, without augmentation.

Letters: N posts, B posts in the batch, D embedding width, V hashtags.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from moe_core.errors import NotFinite
from moe_core.models.resnet import ResNet
from moe_core.training.batches import ahead, as_tensor, normalize
from moe_core.training.loop import uses_bfloat16
from moe_core.training.posts import Images
from moe_core.training.transfer import named, on_the_way, one_behind, pinned, use

BATCH = 256


def features_of(model: ResNet, images: Images, precision: str = "auto", device: str = "cpu") -> Tensor:
    """(N, D) float32 on the CPU."""
    out_ND = torch.empty(len(images), model.width)
    for first, some_BD in features_in_parts(model, images, precision, device):
        out_ND[first : first + len(some_BD)] = some_BD
    return out_ND


def features_in_parts(
    model: ResNet, images: Images, precision: str = "auto", device: str = "cpu"
) -> Iterator[tuple[int, Tensor]]:
    """(place of the first, (B, D) float32 on the CPU), BATCH images at a time: memory does not grow with N.

    On a GPU the next batch is under way while one is waited for. Raises NotFinite for features that are not finite,
    naming the first image that has them.
    """
    device = named(device)
    model.to(device).eval()

    def read(first: int) -> Tensor:
        use(device)
        images_BHWC = images.read(np.arange(first, min(first + BATCH, len(images))))
        return pinned(as_tensor(images_BHWC), device)

    def computed() -> Iterator[tuple[int, Callable[[], Tensor]]]:
        starts = range(0, len(images), BATCH)
        for first, images_BCHW in zip(starts, ahead(read, starts, 1), strict=True):
            with inference_context(precision, device):
                some_BD = model.features(normalize(images_BCHW.to(device, non_blocking=True))).float()
            yield first, on_the_way(some_BD)

    for first, arrived in one_behind(computed(), device):
        some_BD = arrived()
        check_finite(some_BD, first, len(images))
        yield first, some_BD


def by_expert(expert_N: np.ndarray, images: Images, width: int, compute: Callable[[int, Images], Tensor]) -> Tensor:
    """(N, width): what `compute(number, images)` gives of each image by its own expert."""
    out_NW = torch.zeros(len(images), width)
    for number in np.unique(expert_N).tolist():
        rows = np.flatnonzero(expert_N == number)
        out_NW[rows] = compute(number, images.subset(rows))
    return out_NW


@contextmanager
def inference_context(precision: str, device: str) -> Iterator[None]:
    """Nothing is recorded for gradients, and networks compute in bfloat16 where that is wanted."""
    bfloat16 = uses_bfloat16(precision, device)
    with torch.inference_mode(), torch.autocast(device.split(":")[0], torch.bfloat16, enabled=bfloat16):
        yield


def check_finite(rows_BD: Tensor, first: int = 0, of: int | None = None, what: str = "features") -> None:
    """Raises NotFinite for rows that are not finite; `first` is the place of the first image of `of`."""
    finite_B = rows_BD.isfinite().all(1)
    if not finite_B.all():
        raise NotFinite(
            f"{what} of image {first + int((~finite_B).int().argmax())} of {of or len(rows_BD)} hold a number "
            'that is not finite: check the network\'s weights, or set precision = "float32"'
        )


def logits_of(features_ND: Tensor, decoder: nn.Linear, device: str = "cpu") -> Tensor:
    """(N, V) float32 on the device: what a last layer says of features."""
    return features_ND.to(device) @ decoder.weight.detach().to(device).T + decoder.bias.detach().to(device)


def mixed(logits_NV: Tensor, router_NV: Tensor, router_weight: float, loss: str) -> Tensor:
    """(N, V): probabilities of the mean of an expert's and the router's logits, the latter weighted by `router_weight`.

    With softmax that is the weighted geometric mean of the two answers, scaled to sum to one.
    """
    return probabilities_of(logits_NV.lerp(router_NV, router_weight), loss)


def probabilities_of(logits_NV: Tensor, loss: str) -> Tensor:
    """(N, V) float32, rows sum to one: the softmax; or each hashtag's sigmoid, scaled so that both are scored alike."""
    if loss == "sigmoid":
        each_NV = logits_NV.sigmoid()
        return each_NV / each_NV.sum(1, keepdim=True).clamp(min=1e-12)
    return logits_NV.softmax(1)
