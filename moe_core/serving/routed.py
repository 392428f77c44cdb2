"""Routed answers to a stream of batches: each expert is read once for many batches, whatever K is.

A batch of 256 over 64 experts has four images for each. So a window of several batches is answered at a time: the
router computes each batch as it comes, images are grouped by expert, each expert computes all of its own, and the
answers leave in order. Until then an image keeps its features and what its expert starts from: the pixels, or the
output of the stages that the experts share with the router.

Letters: B images of a batch, M images of an expert, H W pixels, C channels, D embedding width, V hashtags, K experts,
S experts of an image.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moe_core.errors import BadSetting
from moe_core.models.resnet import ResNet
from moe_core.serving.bundle import Bundle
from moe_core.training.batches import as_tensor, normalize
from moe_core.training.infer import BATCH, check_finite, inference_context
from moe_core.training.transfer import named, on_the_way, one_behind, pinned

WINDOW = 32  # batches
WINDOW_BYTES = 256 << 20  # of what is kept of their images
ACTIVATION_BYTES = 4 << 30  # about, of the images that pass a network together; 256 of 224 pixels in a ResNet-50
# Images that pass a network together are made a multiple of an eighth of their number or less, at most of this one:
# oneDNN takes milliseconds to prepare for a number that it has not seen.
MULTIPLE = 8


@dataclass(frozen=True)
class Predictions:
    """Answers to one batch."""

    probabilities_BV: Tensor  # float32, rows sum to one; on the device
    experts: list[str]  # the nearest of each image
    embeddings_BD: Tensor | None = None  # float32, on the CPU: of each image by the nearest, published or not


@dataclass(frozen=True)
class RoutedBatch:
    """A batch after the router: its features, the input of its experts, and which experts answer."""

    trunk_BD: Tensor  # features, float32
    start_BHWC: Tensor  # uint8 pixels, or what the shared stages made of them
    expert_BS: np.ndarray  # int64, the nearest first
    weight_BS: np.ndarray  # float32, rows sum to one

    @property
    def nbytes(self) -> int:
        return self.trunk_BD.nbytes + self.start_BHWC.nbytes


def routed(
    bundle: Bundle,
    batches: Iterable[np.ndarray],
    *,
    window: int = WINDOW,
    window_bytes: int = WINDOW_BYTES,
    topk: int = 1,
    temperature: float | None = None,
    device: str = "cpu",
    embed: bool = False,
) -> Iterator[Predictions]:
    """Answers in the order of `batches`, (B, H, W, C) uint8 of the bundle's size each; B may vary and be 0.

    A window has at most `window` batches, fewer where what is kept of them reaches `window_bytes`. With
    `topk` = 1 the published answer; above, the `topk` nearest experts weighted by softmax(-d^2 / temperature), an
    unpublished one replaced by the router; the temperature is the bundle's where none is given. With `embed` also the
    images' embeddings. Raises ValueError for images of another size or an expert's damaged file.
    """
    temperature, device = bundle.temperature if temperature is None else temperature, named(device)
    if window < 1 or window_bytes < 1 or topk < 1 or not 0 < temperature < math.inf:
        raise BadSetting(
            f"window {window} and {window_bytes:,} bytes, topk {topk}, temperature {temperature}: wanted 1 or more of "
            "each, a finite temperature above 0"
        )
    waiting: list[RoutedBatch] = []
    for seen in one_behind(_seen(bundle, batches, device), device):
        waiting.append(_route(bundle, *seen, topk, temperature))
        if len(waiting) == window or sum(batch.nbytes for batch in waiting) >= window_bytes:
            yield from _predict(bundle, waiting, topk == 1, device, embed)
            waiting = []
    if waiting:
        yield from _predict(bundle, waiting, topk == 1, device, embed)


def predict(bundle: Bundle, images_NHWC: np.ndarray) -> tuple[Tensor, list[str]]:
    """(probabilities (N, V), expert of each image) of uint8 images of the bundle's size; `routed` takes a stream."""
    (answer,) = routed(bundle, [images_NHWC])
    return answer.probabilities_BV, answer.experts


def _seen(bundle: Bundle, batches: Iterable[np.ndarray], device: str) -> Iterator[tuple[Callable[[], Tensor], Tensor]]:
    """(features, on their way to the CPU, what the experts start from) of each batch, by the router."""
    router, at_once = bundle.router_on(device), _at_once(bundle)
    for images_BHWC in batches:
        wanted = (bundle.image_size, bundle.image_size, 3)
        if images_BHWC.dtype != np.uint8 or images_BHWC.shape[1:] != wanted:
            raise ValueError(
                f"images of {images_BHWC.dtype} and shape {images_BHWC.shape}: wanted uint8 and (B, {wanted[0]}, "
                f"{wanted[1]}, 3)"
            )
        trunk, start = [], []
        for first in range(0, max(1, len(images_BHWC)), at_once):
            some_BHWC = images_BHWC[first : first + at_once]
            pixels_BCHW = as_tensor(_filled_up(some_BHWC, at_once))
            pixels_BCHW = pinned(pixels_BCHW, device).to(device, non_blocking=True)
            with inference_context(bundle.precision, device):
                early_BCHW = router.forward_stem(normalize(pixels_BCHW), bundle.branch_at)
                trunk.append(router.forward_rest(early_BCHW, bundle.branch_at)[: len(some_BHWC)].float())
            start_BCHW = (early_BCHW if bundle.branch_at else pixels_BCHW)[: len(some_BHWC)]
            start.append(start_BCHW.permute(0, 2, 3, 1).contiguous())
        yield on_the_way(torch.cat(trunk)), torch.cat(start) if len(start) > 1 else start[0]


def _route(
    bundle: Bundle, arrived: Callable[[], Tensor], start_BHWC: Tensor, topk: int, temperature: float
) -> RoutedBatch:
    trunk_BD = arrived()
    check_finite(trunk_BD)
    expert_BS, weight_BS = _experts_of(bundle, trunk_BD.numpy(), min(topk, len(bundle.published)), temperature)
    return RoutedBatch(trunk_BD, start_BHWC, expert_BS, weight_BS)


def _filled_up(rows_B: np.ndarray, at_once: int) -> np.ndarray:
    """The rows and the last one so often that their number is one of those that networks see: see MULTIPLE."""
    multiple = min(MULTIPLE, at_once, 1 << max(0, len(rows_B).bit_length() - 4))
    missing = -len(rows_B) % multiple
    return np.concatenate([rows_B, rows_B[-1:].repeat(missing, 0)]) if missing else rows_B


def _at_once(bundle: Bundle) -> int:
    """Images that pass a network together: BATCH, fewer where their largest activations would not fit into memory."""
    network, side = bundle.network, bundle.image_size
    imagenet, outputs = network.stem == "imagenet", 4 if network.block == "bottleneck" else 1
    first = side // 4 if imagenet else side  # that stem halves the side, and its pooling again; so does each stage
    largest = max(
        (side // 2) ** 2 * 64 if imagenet else 0,
        *(max(1, first >> stage) ** 2 * outputs * width for stage, width in enumerate(network.widths)),
    )
    return min(BATCH, max(1, ACTIVATION_BYTES // (largest * 4 * 4)))  # four of them at a time, float32


def _predict(
    bundle: Bundle, window: list[RoutedBatch], published: bool, device: str, embed: bool
) -> Iterator[Predictions]:
    """Predictions of a window of batches. `published`: by the published answer, which may mix the router's in."""
    keys = list(bundle.published)
    expert_NS = np.concatenate([batch.expert_BS for batch in window])
    used_NS = np.array([bundle.published[key] for key in keys])[expert_NS]
    features_NSD = torch.empty(*expert_NS.shape, bundle.router.width)
    ends = np.cumsum([len(batch.expert_BS) for batch in window])
    computed_NS = used_NS.copy()
    computed_NS[:, 0] |= embed
    parts = _parts(expert_NS, np.unique(expert_NS[computed_NS]), ends, _at_once(bundle), device)

    def compute(key: str, network: ResNet) -> None:
        mine = parts[keys.index(key)]
        coming = [on_the_way(_features(bundle, network, _gathered(window, part, ends), device)) for part in mine]
        for part, arrived in zip(mine, coming, strict=True):
            features_MD = arrived()[: len(part.rows)]
            check_finite(features_MD)
            features_NSD[part.rows, part.places] = features_MD

    bundle.each_expert([keys[number] for number in parts], compute, device)
    for batch, end in zip(window, ends, strict=True):
        part = slice(end - len(batch.expert_BS), end)
        with_router = published and bundle.answer == "mixture_top1_router"
        probabilities_BV = _mixed(bundle, batch, features_NSD[part], used_NS[part], with_router, device)
        check_finite(probabilities_BV, what="answers")
        experts = [keys[number] for number in batch.expert_BS[:, 0].tolist()]
        yield Predictions(probabilities_BV, experts, features_NSD[part, 0] if embed else None)


@dataclass(frozen=True)
class _Part:
    """Images of a window that an expert computes together."""

    rows: np.ndarray  # of the window, ascending
    places: np.ndarray  # which of the experts of each image it is
    padded_M: np.ndarray  # the rows, the last one so often that their number is one that is seen more often
    index_M: Tensor  # where these lie in their batches, on the device


def _parts(
    expert_NS: np.ndarray, numbers: np.ndarray, ends: np.ndarray, at_once: int, device: str
) -> dict[int, list[_Part]]:
    """Parts of each of these experts; all that they take out of the batches goes to the device in one copy."""
    cut, begins = [], np.concatenate([[0], ends[:-1]])
    for number in numbers.tolist():
        rows, places = np.nonzero(expert_NS == number)
        split = np.array_split(np.arange(len(rows)), -(-len(rows) // at_once))
        cut += [(number, rows[some], places[some], _filled_up(rows[some], at_once)) for some in split]
    rows_P = np.concatenate([np.zeros(0, np.int64), *(padded_M for *_, padded_M in cut)])
    index_P = torch.from_numpy(rows_P - begins[np.searchsorted(ends, rows_P, side="right")])
    index_P = pinned(index_P, device).to(device, non_blocking=True)
    parts: dict[int, list[_Part]] = {number: [] for number in numbers.tolist()}
    each = index_P.split([len(padded_M) for *_, padded_M in cut])
    for (number, rows, places, padded_M), index_M in zip(cut, each, strict=True):
        parts[number].append(_Part(rows, places, padded_M, index_M))
    return parts


def _gathered(window: list[RoutedBatch], part: _Part, ends: np.ndarray) -> Tensor:
    """(M, C, H, W) channels-last: what the expert starts from."""
    counts = np.diff(np.searchsorted(part.padded_M, ends), prepend=0)
    found = [
        batch.start_BHWC.index_select(0, index_B)
        for batch, index_B in zip(window, part.index_M.split(counts.tolist()), strict=True)
        if len(index_B)
    ]
    return torch.cat(found).permute(0, 3, 1, 2)


def _features(bundle: Bundle, network: ResNet, start_MCHW: Tensor, device: str) -> Tensor:
    """(M, D) float32 on the device: of images in the one embedding space, by an expert."""
    with inference_context(bundle.precision, device):
        if bundle.branch_at:
            features_MD = network.forward_rest(start_MCHW, bundle.branch_at)
        else:
            features_MD = network.features(normalize(start_MCHW))
        return features_MD.float()


def _experts_of(bundle: Bundle, trunk_ND: np.ndarray, count: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """((N, S) int64, the nearest first; (N, S) float32, rows sum to one)."""
    if count == 1:
        expert_N1 = bundle.gate.assign(trunk_ND)[:, None]
        return expert_N1, np.ones(expert_N1.shape, np.float32)
    weight_NK = bundle.gate.weights(trunk_ND, count, temperature)
    expert_NS = np.argsort(-weight_NK, axis=1, kind="stable")[:, :count]
    return expert_NS, np.take_along_axis(weight_NK, expert_NS, axis=1)


def _mixed(
    bundle: Bundle,
    batch: RoutedBatch,
    features_BSD: Tensor,
    used_BS: np.ndarray,
    with_router: bool,
    device: str,
) -> Tensor:
    """(B, V) on the device: the experts' answers, and the router's where an expert is not published."""
    router_BV = bundle.router_logits(batch.trunk_BD, device)
    alone_BV, out_BV = bundle.probabilities(router_BV), torch.zeros_like(router_BV)
    weight_BS = torch.from_numpy(batch.weight_BS).to(device)
    for place in range(used_BS.shape[1]):
        used_B = torch.from_numpy(used_BS[:, place])
        logits_MV = bundle.logits(features_BSD[used_B, place], device)
        each_BV, used_B = alone_BV.clone(), used_B.to(device)
        each_BV[used_B] = bundle.mixed(logits_MV, router_BV[used_B]) if with_router else bundle.probabilities(logits_MV)
        out_BV += weight_BS[:, place, None] * each_BV
    return out_BV
