"""Routed answers to a stream of batches: each expert is read once for many batches, whatever K is.

A batch of 256 over 64 experts has four images for each. So some batches are looked at together: the router goes over
them, their images are grouped by expert, each expert looks at all of its own, and the batches are answered in order.
What is kept of each image meanwhile is its features, not its probabilities.

Letters: B images of a batch, N images of a window, H W pixels, C channels, D embedding width, V hashtags, K experts,
S experts asked for an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from moe_core.training.batches import ImagesInMemory
from moe_core.training.infer import features_of

if TYPE_CHECKING:
    from moe_core.serving.bundle import Bundle
    from moe_core.serving.held import State

WINDOW = 32  # batches
WINDOW_BYTES = 256 << 20  # of their pixels


@dataclass(frozen=True)
class Answer:
    """To one batch."""

    probabilities_BV: Tensor  # float32, rows sum to one
    experts: list[str]  # the nearest of each image


def routed(
    bundle: Bundle,
    batches: Iterable[np.ndarray],
    *,
    window: int = WINDOW,
    topk: int = 1,
    temperature: float | None = None,
    device: str = "cpu",
) -> Iterator[Answer]:
    """Answers in the order of `batches`, (B, H, W, C) uint8 of the bundle's size each; B may vary and be 0.

    With `topk` = 1 the published answer; above, the `topk` nearest experts weighted by softmax(-d^2 / temperature), an
    unpublished one replaced by the router; the temperature is the bundle's where none is given. Raises ValueError for
    images of another size or an expert's damaged file.
    """
    temperature = bundle.temperature if temperature is None else temperature
    if window < 1 or topk < 1 or temperature <= 0:
        raise ValueError(
            f"window {window}, topk {topk}, temperature {temperature}: wanted 1 or more, 1 or more, above 0"
        )
    waiting: list[np.ndarray] = []
    for images_BHWC in batches:
        wanted = (bundle.image_size, bundle.image_size, 3)
        if images_BHWC.dtype != np.uint8 or images_BHWC.shape[1:] != wanted:
            raise ValueError(
                f"images of {images_BHWC.dtype} and shape {images_BHWC.shape}: wanted uint8 and (B, {wanted[0]}, "
                f"{wanted[1]}, 3)"
            )
        waiting.append(images_BHWC)
        if len(waiting) == window or sum(b.nbytes for b in waiting) >= WINDOW_BYTES:
            yield from _answer(bundle, waiting, topk, temperature, device)
            waiting = []
    if waiting:
        yield from _answer(bundle, waiting, topk, temperature, device)


def _answer(bundle: Bundle, batches: list[np.ndarray], topk: int, temperature: float, device: str) -> Iterator[Answer]:
    images = ImagesInMemory(np.concatenate(batches))
    keys = list(bundle.published)
    trunk_ND = features_of(bundle.router, images, bundle.precision, device)
    expert_NS, weight_NS = _experts_of(bundle, trunk_ND.numpy(), min(topk, len(keys)), temperature)
    features_NSD = torch.empty(*expert_NS.shape, bundle.router.width)

    def ask(key: str, state: State) -> None:
        rows, places = np.nonzero(expert_NS == keys.index(key))
        features_NSD[rows, places] = features_of(bundle.filled(state), images.subset(rows), bundle.precision, device)

    asked_NS = np.array([bundle.published[key] for key in keys])[expert_NS]
    bundle.experts.each([keys[number] for number in np.unique(expert_NS[asked_NS])], ask)
    first = 0
    for images_BHWC in batches:
        part = slice(first, first + len(images_BHWC))
        first += len(images_BHWC)
        router_BV = bundle.router_logits(trunk_ND[part])
        probabilities_BV = _mixed(bundle, router_BV, features_NSD[part], asked_NS[part], weight_NS[part])
        yield Answer(probabilities_BV, [keys[number] for number in expert_NS[part, 0]])


def _experts_of(bundle: Bundle, trunk_ND: np.ndarray, count: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """((N, S) int64, the nearest first; (N, S) float32, rows sum to one)."""
    if count == 1:
        expert_N1 = bundle.gate.assign(trunk_ND)[:, None]
        return expert_N1, np.ones(expert_N1.shape, np.float32)
    weight_NK = bundle.gate.weights(trunk_ND, count, temperature)
    expert_NS = np.argsort(-weight_NK, axis=1, kind="stable")[:, :count]
    return expert_NS, np.take_along_axis(weight_NK, expert_NS, axis=1)


def _mixed(
    bundle: Bundle, router_BV: Tensor, features_BSD: Tensor, asked_BS: np.ndarray, weight_BS: np.ndarray
) -> Tensor:
    """(B, V): the experts' answers, and the router's where an expert was not asked; `router_BV` are its logits."""
    with_router = asked_BS.shape[1] == 1 and bundle.answer == "mixture_top1_router"
    alone_BV, out_BV = bundle.probabilities(router_BV), torch.zeros_like(router_BV)
    for place in range(asked_BS.shape[1]):
        mine_B = torch.from_numpy(asked_BS[:, place])
        logits_MV = bundle.logits(features_BSD[mine_B, place])
        each_BV = alone_BV.clone()
        each_BV[mine_B] = bundle.mixed(logits_MV, router_BV[mine_B]) if with_router else bundle.probabilities(logits_MV)
        out_BV += torch.from_numpy(weight_BS[:, place, None]) * each_BV
    return out_BV
