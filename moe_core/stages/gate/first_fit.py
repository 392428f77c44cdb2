"""A partition that is fitted from scratch.

Letters: N posts, P whitened dimensions, M centroids, K experts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moe_core.engine.context import Context
from moe_core.stages import reading
from moe_core.stages.gate import membership
from moe_core.store.artifact import StageOutput

if TYPE_CHECKING:
    pass

from moe_core.clustering.balance import pack
from moe_core.clustering.kmeans import fit_kmeans
from moe_core.clustering.random_partition import random_partition
from moe_core.stages.gate.common import as_fitted, nearest, posts_of, sample, sizes_of, whitening_of, write


def make(context: Context, folder: Path) -> StageOutput:
    from moe_core.clustering.gate import Gate

    settings, posts = context.study.partition, posts_of(context)
    whitening = whitening_of(context, posts)
    fitted_NP = whitening.apply(
        reading.trunk_features_where(context, sample(posts.training_N, settings.max_fit_posts, settings.seed))
    )
    clusters = settings.fine or settings.experts
    found = fit_kmeans(fitted_NP, clusters, settings.iterations, settings.restarts, settings.seed)
    expert_M = np.arange(clusters)
    if settings.fine:
        sizes_M = sizes_of(context, posts, whitening, found.centroids_KP)
        expert_M = pack(sizes_M, found.centroids_KP, settings.experts)
    gate = Gate(whitening, found.centroids_KP, expert_M)
    expert_N, distance_N, gap_N = nearest(context, gate)
    random_N = np.empty_like(expert_N)
    for rows_N in posts.groups():
        sizes_K = np.bincount(expert_N[rows_N], minlength=settings.experts)
        random_N[rows_N] = random_partition(posts.ids[rows_N].tolist(), sizes_K, settings.seed)
    lines = membership.lines(context, posts.columns, posts.index)
    members = [membership.fresh(context.experts, n_N, posts.training_N, lines) for n_N in (expert_N, random_N)]
    fitted = {
        "fitted_on": len(fitted_NP),
        "objective": float(found.objective),
        "fit": as_fitted(posts, gate, expert_N, distance_N, gap_N),
    }
    said = {"members": members[0], "random_members": members[1]}
    more = {name: np.zeros(len(expert_N), bool) for name in ("trained", "late")}  # none came since the fit
    return write(context, folder, posts, gate, (expert_N, distance_N, gap_N, random_N), more, fitted | said)
