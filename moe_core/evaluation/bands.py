"""Head, middle and tail: three bands of the hashtags by the training posts that carry them, and means over each band.

Thirds of all tag occurrences, not fixed numbers of posts: fixed ones (more than 100, 20 to 100 and fewer training
pictures in ImageNet-LT) leave a band empty where a vocabulary begins at 20 posts, and say nothing at a billion. With
thirds each band weighs the same in training, and is judged by about as many tags of test posts.

Letters: V hashtags, C distinct numbers of posts.
"""

import numpy as np

BANDS = ("head", "middle", "tail")
DEFINITION = (
    "by training posts: the most frequent hashtags that make up a third of all tag occurrences are the head, the "
    "rarest that make up a third the tail; hashtags on equally many posts are in one band, the middle where all are"
)


def band_of(posts_V: np.ndarray) -> np.ndarray:
    """(V,) int8: the place in BANDS of each hashtag, given the training posts that carry it."""
    counts_C, group_V = np.unique(posts_V, return_inverse=True)  # hashtags on equally many posts are one group
    mass_C = np.bincount(group_V, weights=posts_V, minlength=len(counts_C))[::-1].astype(float)  # most frequent first
    middle_C = (mass_C.cumsum() - mass_C / 2) / max(mass_C.sum(), 1)
    number_C = np.minimum((middle_C * len(BANDS)).astype(np.int8), len(BANDS) - 1)[::-1]
    if len(counts_C) > 1:  # also where one group is more than a third by itself
        number_C[0], number_C[-1] = len(BANDS) - 1, 0
    return np.asarray(number_C[group_V], np.int8)


def band_means(values_V: np.ndarray, band_V: np.ndarray) -> np.ndarray:
    """(bands,) float64: the mean over the hashtags of each band, those that are NaN left out; NaN for no others."""
    known_V = np.isfinite(values_V)
    counts = np.bincount(band_V[known_V], minlength=len(BANDS))
    sums = np.bincount(band_V[known_V], values_V[known_V], len(BANDS))
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
