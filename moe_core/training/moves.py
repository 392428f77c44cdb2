"""Moves of images: some are mirrored, and each is cut out of itself with a border of zeros around it.

Letters: N images, B of them in a batch, S steps, C channels, H W pixels.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CACHE_BYTES = 2 << 20  # of images that are cut at once: they are in a core's cache the second time


@dataclass(frozen=True)
class Moves:
    """How N images, or S times B, are moved."""

    mirrored_N: np.ndarray  # bool: left and right change places
    corner_N2: np.ndarray  # int64: row and column, in the image with its border, where the cut begins
    crop: int  # pixels of the border

    def __getitem__(self, places: slice | np.ndarray) -> Moves:
        return Moves(self.mirrored_N[places], self.corner_N2[places], self.crop)

    def flat(self) -> Moves:
        """Those of S times B images, one after the other."""
        return Moves(self.mirrored_N.reshape(-1), self.corner_N2.reshape(-1, 2), self.crop)

    def packed(self, places_SB: np.ndarray) -> np.ndarray:
        """(S, B, 4) int64: the places of the images and their moves, as `moved` takes them."""
        return np.concatenate([places_SB[..., None], self.mirrored_N[..., None], self.corner_N2], 2)

    def of(self, images_NHWC: np.ndarray) -> np.ndarray:
        """(N, H, W, C) uint8: these images, moved."""
        if not self.crop and not self.mirrored_N.any():
            return images_NHWC
        out_NHWC = np.empty_like(images_NHWC)
        together = max(1, CACHE_BYTES // images_NHWC[:1].nbytes)
        for first in range(0, len(images_NHWC), together):
            some = slice(first, first + together)
            self[some]._cut(images_NHWC[some], out_NHWC[some])
        return out_NHWC

    def _cut(self, images_NHWC: np.ndarray, out_NHWC: np.ndarray) -> None:
        crop, (count, height, width, channels) = self.crop, images_NHWC.shape
        padded = _zeros((count, height + 2 * crop, width + 2 * crop, channels), crop)
        padded[:, crop : crop + height, crop : crop + width] = images_NHWC
        image, down, right, _ = padded.strides
        at_every_corner = np.lib.stride_tricks.as_strided(
            padded, (count, 2 * crop + 1, 2 * crop + 1, height, width * channels), (image, down, right, down, 1)
        )
        out_NHW = out_NHWC.view(f"V{channels}")[..., 0]  # a pixel is one number of so many bytes
        for mirrored, across in ((False, slice(None)), (True, slice(None, None, -1))):
            rows = np.flatnonzero(self.mirrored_N == mirrored)
            cut = at_every_corner[rows, self.corner_N2[rows, 0], self.corner_N2[rows, 1]].view(out_NHW.dtype)
            out_NHW[rows] = cut[:, :, across]

    def move(self, place: int, image_HWC: np.ndarray) -> None:
        """Moves one image where it lies: a large one, that was decoded just now and is in the core's cache.

        Of an image that is to be mirrored the colors come in reverse order: all bytes of a row turn round together.
        """
        down, right = (self.corner_N2[place] - self.crop).tolist()
        if not (down or right or self.mirrored_N[place]):
            return
        whole_HWC = _scratch(image_HWC.shape)
        if self.mirrored_N[place]:
            right = -right  # the cut comes first
            row = image_HWC[0].nbytes
            size = math.gcd(row, 8)  # bytes that turn at once: three at a time would take ten times as long
            whole_HWC.reshape(-1, row).view(f"<u{size}")[:] = image_HWC.reshape(-1, row).view(f">u{size}")[:, ::-1]
        else:
            whole_HWC[:] = image_HWC
        height, width, _ = image_HWC.shape
        rows, columns = _filled(down, height), _filled(right, width)
        image_HWC[: rows.start] = image_HWC[rows.stop :] = 0
        image_HWC[rows, : columns.start] = image_HWC[rows, columns.stop :] = 0
        seen = slice(rows.start + down, rows.stop + down), slice(columns.start + right, columns.stop + right)
        image_HWC[rows, columns] = whole_HWC[seen]


def _filled(shift: int, side: int) -> slice:
    """The rows, or columns, that hold something of an image after it was shifted towards its beginning."""
    begin = min(max(-shift, 0), side)
    return slice(begin, max(side - max(shift, 0), begin))


_kept = threading.local()


def _scratch(shape: tuple[int, ...]) -> np.ndarray:
    """Of this thread: memory that is fresh costs more than what is done with it here."""
    if getattr(_kept, "image", np.empty(0)).shape != shape:
        _kept.image = np.empty(shape, np.uint8)
    image: np.ndarray = _kept.image
    return image


def _zeros(shape: tuple[int, ...], border: int) -> np.ndarray:
    """Of this thread, zero on the border."""
    if getattr(_kept, "of", None) != (shape, border):
        _kept.of, _kept.padded = (shape, border), np.zeros(shape, np.uint8)
    padded: np.ndarray = _kept.padded
    return padded


def moved(images_NHWC: Tensor, moves_B4: Tensor, crop: int) -> Tensor:
    """(B, C, H, W) uint8, channels-last: as `Moves.of`, by one gather on the device of the images.

    Moves are (place of the image, whether it is mirrored, row and column of the corner).
    """
    device, (_, height, width, _) = images_NHWC.device, images_NHWC.shape
    row_B, flip_B, y_B, x_B = moves_B4.unbind(1)
    y_BH = (y_B - crop)[:, None] + torch.arange(height, device=device)
    across_W = torch.arange(width, device=device)
    x_BW = (x_B - crop)[:, None] + torch.where(flip_B[:, None] > 0, width - 1 - across_W, across_W)
    inside_BHW = ((y_BH >= 0) & (y_BH < height))[:, :, None] & ((x_BW >= 0) & (x_BW < width))[:, None, :]
    y_BH1, x_B1W = y_BH.clamp(0, height - 1)[:, :, None], x_BW.clamp(0, width - 1)[:, None, :]
    seen_BHWC = images_NHWC[row_B[:, None, None], y_BH1, x_B1W] * inside_BHW[..., None]
    return seen_BHWC.permute(0, 3, 1, 2)
