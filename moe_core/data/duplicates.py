"""Near-duplicates: signatures of pictures in 96 bytes, which of them are one picture, and the groups that follow.

A signature is a thumbnail: the picture's luma in 8x8 cells and two color differences in 4x4. Two pictures are one
where their thumbnails agree in every cell after a change of brightness. Those that are compared at all are found by a
code of 126 bits, two for each frequency of the luma's cosine transform: clearly above zero, clearly below zero.

Letters: B pictures of a batch, S pixels a side, N signatures, M different ones, P pairs.
"""

import math
from collections.abc import Iterator

import numpy as np

CELLS, COLOUR_CELLS = 8, 4  # a side
LUMA = CELLS**2
WEIGHTS = np.array([299, 587, 114])  # of red, green and blue in luma
SIGNATURE_BYTES = LUMA + 2 * COLOUR_CELLS**2
CODE_BYTES = 16
RADIUS = 9  # bits in which the codes of one picture differ at most: docs/explanation/splits.md has the recall
CLEAR = 3.0  # size of a frequency, in gray levels, from which its sign is not noise
PLAIN = 8  # a code with fewer bits set has too little in it to tell one picture from another
BRIGHTER = 1.136  # largest factor of brightness between two copies of one picture
MEAN_SHARE = 1 / 3  # of the difference allowed in a cell, what is allowed on average
PAIRS = 1 << 18  # compared at once: bounds the memory
AT_MOST = 1024  # others of its code, and others of near codes, that a picture is compared with
DIRECTIONS, NEAREST = 3, 64  # of a crowd, where there are more: compared are the nearest in the order of each direction


def signature(images_BSS3: np.ndarray) -> np.ndarray:
    """(B, SIGNATURE_BYTES) uint8 of uint8 RGB squares of any size. Equal pixels give equal bytes, on every machine.

    All sums are of whole numbers, so no order of summation changes them.
    """
    count, size = images_BSS3.shape[:2]
    times = CELLS // math.gcd(size, CELLS)  # a side that is no multiple of the cells is made one
    if times > 1:
        images_BSS3, size = images_BSS3.repeat(times, 1).repeat(times, 2), size * times
    rows = images_BSS3.reshape(count * CELLS, size // CELLS, size * 3).sum(1, dtype=np.uint32)
    cells_BCC3 = rows.reshape(count * CELLS**2, size // CELLS, 3).sum(1, dtype=np.int64).reshape(count, CELLS, CELLS, 3)
    half = CELLS // COLOUR_CELLS
    coarse_Bcc3 = cells_BCC3.reshape(count, COLOUR_CELLS, half, COLOUR_CELLS, half, 3).sum((2, 4))
    luma_BCC, coarse_luma_Bcc = cells_BCC3 @ WEIGHTS, coarse_Bcc3 @ WEIGHTS
    scale = WEIGHTS.sum() * (size // CELLS) ** 2
    parts = [np.rint(luma_BCC / scale).reshape(count, LUMA)]
    for channel, share in ((2, 0.564), (0, 0.713)):  # Cb and Cr of JPEG
        above_Bcc = coarse_Bcc3[..., channel] * WEIGHTS.sum() - coarse_luma_Bcc
        parts.append(np.rint(128 + share / (scale * half**2) * above_Bcc).reshape(count, COLOUR_CELLS**2))
    return np.concatenate(parts, axis=1).clip(0, 255).astype(np.uint8)


def codes(signatures_NW: np.ndarray) -> np.ndarray:
    """(N, CODE_BYTES) uint8: what is searched. A small change of a picture changes few bits."""
    angle = np.pi * (np.arange(CELLS) + 0.5) * np.arange(CELLS)[:, None] / CELLS
    cosine = np.cos(angle) * np.where(np.arange(CELLS) == 0, 0.5, 1.0)[:, None] ** 0.5 * (2 / CELLS) ** 0.5
    # neighboring frequencies are alike, and the search cuts a code into blocks: so the bits are mixed
    order = np.random.default_rng(5).permutation(2 * (LUMA - 1))
    out = np.zeros((len(signatures_NW), CODE_BYTES), np.uint8)
    for first in range(0, len(signatures_NW), PAIRS):
        luma = signatures_NW[first : first + PAIRS, :LUMA].reshape(-1, CELLS, CELLS).astype(np.float32)
        waves = (cosine.astype(np.float32) @ luma @ cosine.T.astype(np.float32)).reshape(len(luma), -1)[:, 1:]
        bits = np.concatenate([waves > CLEAR, waves < -CLEAR], axis=1)[:, order]
        out[first : first + PAIRS] = np.packbits(bits, axis=1)
    return out


def is_plain(codes_NB: np.ndarray) -> np.ndarray:
    """(N,) bool: pictures with so little in them that only equal signatures are one picture."""
    return np.bitwise_count(codes_NB).sum(1) < PLAIN


def same_picture(one_PW: np.ndarray, other_PW: np.ndarray, levels: float) -> np.ndarray:
    """(P,) bool: whether no cell differs by more than `levels` of 255 once the brightness is the same."""
    one, other = one_PW.astype(np.float32), other_PW.astype(np.float32)
    luma, luma_other = one[:, :LUMA], other[:, :LUMA]
    factor_P = np.sqrt(np.maximum((luma_other**2).sum(1), 1) / np.maximum((luma**2).sum(1), 1))
    root_P1 = np.sqrt(factor_P.clip(1 / BRIGHTER, BRIGHTER))[:, None]  # half of the change on each side: symmetric
    apart = np.abs(luma_other / root_P1 - luma * root_P1)
    color = np.abs((other[:, LUMA:] - 128) / root_P1 - (one[:, LUMA:] - 128) * root_P1)
    close = (apart.max(1) <= levels) & (apart.mean(1) <= levels * MEAN_SHARE) & (color.max(1) <= levels)
    return close | (one_PW == other_PW).all(1)


PARTS = (slice(0, LUMA), slice(LUMA, LUMA + COLOUR_CELLS**2), slice(LUMA + COLOUR_CELLS**2, SIGNATURE_BYTES))


def may_be_same(one_P3: np.ndarray, other_P3: np.ndarray, levels: float) -> np.ndarray:
    """(P,) bool: a cheap condition that follows from `same_picture`, on the means of luma and colors."""
    zero = np.array([0, 128, 128], np.float32)
    slack = levels * BRIGHTER + (BRIGHTER - 1) * np.maximum(np.abs(one_P3 - zero), np.abs(other_P3 - zero)) + 1
    return (np.abs(one_P3 - other_P3) <= slack).all(1)


def before(key_K: np.ndarray, count_K: np.ndarray) -> np.ndarray:
    """(K,) int64: sum of the counts before each among those of its key; keys ascend."""
    before_K = count_K.cumsum() - count_K
    _, first, which = np.unique(key_K, return_index=True, return_inverse=True)
    return np.asarray(before_K - before_K[first[which]])


def expand(
    start_K: np.ndarray, size_K: np.ndarray, other_K: np.ndarray, width_K: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of one of the `size` places from `start` on and one of the `width` from `other` on."""
    end_K = (size_K * width_K).cumsum()
    for first in range(0, int(end_K[-1]) if len(end_K) else 0, PAIRS):
        number_P = np.arange(first, min(first + PAIRS, int(end_K[-1])))
        at_P = np.searchsorted(end_K, number_P, side="right")
        within_P = number_P - np.where(at_P > 0, end_K[at_P - 1], 0)
        yield start_K[at_P] + within_P // width_K[at_P], other_K[at_P] + within_P % width_K[at_P]


def at_equal_brightness(look_QW: np.ndarray) -> np.ndarray:
    """(Q, W) float64 of whole numbers: signatures of which only the structure is left."""
    luma = look_QW[:, :LUMA].astype(np.float64)
    bright_Q1 = np.sqrt(np.maximum((luma**2).mean(1), 1))[:, None] / 128
    return np.asarray(np.rint(np.concatenate([luma, look_QW[:, LUMA:] - 128.0], axis=1) / bright_Q1))


def directions(count: int, sum_W: np.ndarray, square_WW: np.ndarray) -> np.ndarray:
    """(DIRECTIONS, W) float64 of whole numbers: in which `count` rows with these sums and squares differ most."""
    _, directions_WW = np.linalg.eigh(count * square_WW - np.outer(sum_W, sum_W))
    return np.asarray(np.rint(127 * directions_WW.T[::-1][:DIRECTIONS]))
