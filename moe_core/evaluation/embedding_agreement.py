"""Agreement of the embedding space: do a post's neighbors share its hashtags across experts as they do within its own?

Letters: N posts, B posts at a time, D embedding width, k neighbors.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 512  # posts whose neighbors are searched at a time


def tag_agreement(
    features_ND: Tensor, expert_N: np.ndarray, tags_N: Sequence[set[int]], k: int
) -> dict[str, np.ndarray]:
    """{"within": (N,), "across": (N,)} float64: mean overlap of the hashtags of a post and of its k nearest neighbors.

    Overlap is |both| / |either|; neighbors are by cosine, within: of the post's own expert, across: of all the others.
    Fewer than k where there are fewer posts; NaN where there is none.
    """
    count = len(tags_N)
    unit_ND = F.normalize(features_ND.float(), dim=1)
    expert = torch.from_numpy(np.asarray(expert_N))
    agreement = {name: np.full(count, np.nan) for name in ("within", "across")}
    for first in range(0, count, CHUNK):
        rows = torch.arange(first, min(first + CHUNK, count))
        near_BN = unit_ND[rows] @ unit_ND.T
        near_BN[torch.arange(len(rows)), rows] = -torch.inf  # a post is no neighbor of itself
        same_BN = expert[rows, None] == expert[None, :]
        for name, wanted_BN in (("within", same_BN), ("across", ~same_BN)):
            best = near_BN.where(wanted_BN, -torch.inf).topk(min(k, count))
            for row, places, scores in zip(rows.tolist(), best.indices.tolist(), best.values.tolist(), strict=True):
                overlaps = [
                    len(tags_N[row] & tags_N[place]) / len(tags_N[row] | tags_N[place])
                    for place, score in zip(places, scores, strict=True)
                    if score > -np.inf
                ]
                if overlaps:
                    agreement[name][row] = np.mean(overlaps)
    return agreement
