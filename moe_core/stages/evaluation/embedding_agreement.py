"""Whether the embedding is one space: agreement of hashtags among neighbors within an expert and across experts.

Letters: N test posts, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_core.engine.context import Context
from moe_core.stages import reading
from moe_core.stages.mixture.routed_posts import RoutedPosts

if TYPE_CHECKING:
    from torch import Tensor

    from moe_core.serving.bundle import Bundle
    from moe_core.training.batches import Images

UNITY_POSTS, UNITY_NEIGHBOURS = 4_000, 10  # the neighbors of some test posts among them


def unity(context: Context, bundle: Bundle, test: RoutedPosts, device: str) -> dict[str, Any]:
    """Agreement of hashtags among neighbors within an expert and across experts, of a sample of the test posts.

    The trunk is one network: its row is what one space gives on these clusters. Experts with decoders of their own,
    where the controls are there, share no space but that of the trunk they started from.
    """
    import torch

    from moe_core.evaluation.embedding_agreement import tag_agreement
    from moe_core.evaluation.metrics import bootstrap
    from moe_core.training.infer import features_of

    rows = np.sort(np.random.default_rng(0).permutation(len(test))[:UNITY_POSTS])
    part, mine_N = test.posts.subset(rows), test.expert_N[rows]
    starts = part.starts_N1.tolist()
    tags_N = [set(part.tags_T[a:b].tolist()) for a, b in pairwise(starts)]

    def embedded(features: Callable[[str, Images], Tensor]) -> Tensor:
        found_ND = torch.zeros(len(rows), bundle.router.width)
        for number, key in enumerate(bundle.published):
            of_expert = np.flatnonzero(mine_N == number)
            if len(of_expert):
                found_ND[of_expert] = features(key, part.images.subset(of_expert))
        return found_ND

    def separate(key: str, images: Images) -> Tensor:
        model = reading.network(context, context.need("separate_expert", key))
        return features_of(model, images, context.study.expert_training.precision, device)

    spaces = {
        "trunk": torch.from_numpy(test.features_ND[rows]),
        "mixture": embedded(lambda key, images: bundle.expert_features(key, images, device)),
    }
    if context.study.evaluation.controls:
        spaces["separate_decoders"] = embedded(separate)
    found: dict[str, Any] = {"n": len(rows), "neighbors": UNITY_NEIGHBOURS, "rows": []}
    for name, features_ND in spaces.items():
        row: dict[str, Any] = {"name": name}
        for where, values_N in tag_agreement(features_ND, mine_N, tags_N, UNITY_NEIGHBOURS).items():
            values_N = values_N[~np.isnan(values_N)]
            if len(values_N):  # one expert alone has nothing across
                mean = bootstrap(values_N, context.study.evaluation.bootstrap, seed=0)
                row |= {where: round(mean.mean, 5), f"{where}_ci95": [round(mean.low, 5), round(mean.high, 5)]}
        found["rows"].append(row)
    return found
