"""Why an expert: how far an image lies from the centroids of each, and what expert, trunk and mixture make of it.

Letters: N images, K experts, D embedding width, V hashtags.
"""

from dataclasses import dataclass

import numpy as np
import torch

from moe_core.evaluation.metrics import best_hashtags
from moe_core.serving.bundle import Bundle
from moe_core.training.infer import features_of
from moe_core.training.posts import ImagesInMemory

Said = list[tuple[str, float]]  # (hashtag, probability), the most probable first


@dataclass(frozen=True)
class Near:
    """An expert, and the distance of an image to the nearest of its centroids in whitened space: 0 to 2."""

    expert: str
    published: bool
    distance: float


@dataclass(frozen=True)
class Why:
    """Of one image."""

    experts: list[Near]  # the nearest first; the first of them is the image's own
    embedding_D: np.ndarray  # by its own expert, float32
    mixture: Said  # the published answer
    expert: Said  # its own expert alone, published or not
    trunk: Said


def explain(
    bundle: Bundle, images_NHWC: np.ndarray, experts: int = 5, hashtags: int = 8, device: str = "cpu"
) -> list[Why]:
    """One of each uint8 image of the bundle's size."""
    images, keys = ImagesInMemory(images_NHWC), list(bundle.published)
    trunk_ND = features_of(bundle.router_on(device), images, bundle.precision, device)
    squared_NK = bundle.gate.distances(trunk_ND.numpy(), device)
    expert_N = squared_NK.argmin(axis=1)
    own_ND = bundle.features_by_expert(expert_N, images, device)
    with torch.inference_mode():
        own_NV, trunk_NV = bundle.logits(own_ND, device), bundle.router_logits(trunk_ND, device)
        with_router = bundle.answer == "mixture_top1_router"
        given_NV = bundle.mixed(own_NV, trunk_NV) if with_router else bundle.probabilities(own_NV)
        own_NV, trunk_NV = bundle.probabilities(own_NV), bundle.probabilities(trunk_NV)
        used_N = torch.tensor([bundle.published[keys[number]] for number in expert_N], device=given_NV.device)
        given_NV = torch.where(used_N[:, None], given_NV, trunk_NV)
        best = [(each.cpu(), best_hashtags(each, hashtags)) for each in (given_NV, own_NV, trunk_NV)]

    def why(place: int) -> Why:
        order_K = np.argsort(squared_NK[place], kind="stable")[:experts]
        near = [Near(keys[k], bundle.published[keys[k]], round(float(squared_NK[place, k]) ** 0.5, 4)) for k in order_K]
        said = [
            [(bundle.hashtags[tag], round(float(p_NV[place, tag]), 4)) for tag in best_NV[place].tolist()]
            for p_NV, best_NV in best
        ]
        return Why(near, own_ND[place].numpy(), *said)

    return [why(place) for place in range(len(images_NHWC))]
