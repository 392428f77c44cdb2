"""Test of one embedding space: agreement of hashtags among neighbors within an expert and across experts.

Letters: N test posts, D embedding width.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from moe_core.engine.context import Context
from moe_core.evaluation.metrics import bootstrap, tag_agreement
from moe_core.serving.bundle import Bundle
from moe_core.stages.evaluation.predictions import Control
from moe_core.stages.evaluation.rows import ROWS
from moe_core.stages.reading import RoutedPosts

SAMPLE, NEIGHBORS = 4_000, 10  # test posts at most, and the neighbors of each among them


def embedding_agreement(
    context: Context, bundle: Bundle, controls: Mapping[str, Control], test: RoutedPosts, device: str
) -> dict[str, Any]:
    """Agreement of hashtags among neighbors, in each embedding space, of a sample of the test posts.

    The trunk is one network: its row is what one space gives on these clusters. Experts with decoders of their own
    share no space but that of the trunk they started from.
    """
    rows = np.sort(np.random.default_rng(0).permutation(len(test))[:SAMPLE])
    posts, expert_N = test.posts.subset(rows), test.expert_N[rows]

    spaces = {
        "trunk": torch.from_numpy(test.features_ND[rows]),
        "mixture": bundle.features_by_expert(expert_N, posts.images, device),
    }
    for name, control in controls.items():
        networks = ROWS[name].networks
        if networks and networks.space:
            precision = context.study.expert_training.precision
            spaces[networks.space] = control.features(posts, expert_N, precision, device)
    table: dict[str, Any] = {"n": len(rows), "neighbors": NEIGHBORS, "rows": []}
    for name, features_ND in spaces.items():
        row: dict[str, Any] = {"name": name}
        agreement = tag_agreement(features_ND, expert_N, posts.tags_T, posts.starts_N1, NEIGHBORS)
        for where, values_N in agreement.items():
            values_N = values_N[~np.isnan(values_N)]
            if len(values_N):  # one expert alone has nothing across
                row |= bootstrap(values_N, context.study.evaluation.bootstrap, seed=0).as_json(where)
        table["rows"].append(row)
    return table
