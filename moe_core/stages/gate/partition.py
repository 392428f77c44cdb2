"""partition: PCA-whitening and k-means on the trunk's features of the training posts; every post gets one expert.

Fitted here from scratch; `refit` makes one that continues another.

Letters: N posts, P whitened dimensions, M centroids, K experts.
"""

import tempfile
from pathlib import Path

import numpy as np

from moe_core.clustering.balance import pack
from moe_core.clustering.gate import Gate
from moe_core.clustering.kmeans import fit_kmeans
from moe_core.clustering.whitening import Whitening
from moe_core.engine.context import Context
from moe_core.stages.gate import membership, refit
from moe_core.stages.gate.drift import as_fitted
from moe_core.stages.gate.output import write
from moe_core.stages.gate.posts import (
    PostTable,
    dealt_at_random,
    placed,
    post_table,
    sample,
    sizes_of,
    whitened,
    whitening_of,
)
from moe_core.store.artifact import Spec, StageOutput
from moe_core.tables.memory import large_blocks_given_back


def make(context: Context, spec: Spec, folder: Path) -> StageOutput:
    with large_blocks_given_back(), tempfile.TemporaryDirectory(dir=folder, prefix=".scratch-") as scratch:
        if "previous" in spec.inputs:
            return refit.make(context, spec, folder, Path(scratch))
        return _fit(context, spec, folder, Path(scratch))


def _fit(context: Context, spec: Spec, folder: Path, scratch: Path) -> StageOutput:
    settings, posts = context.study.partition, post_table(context)
    whitening = whitening_of(context, posts)
    fitted_NP = whitened(context, whitening, sample(posts.training_N, settings.max_fit_posts, settings.seed))
    clusters = settings.fine or settings.experts
    centroids_MP, objective = fit_kmeans(fitted_NP, clusters, settings.iterations, settings.restarts, settings.seed)
    fitted_on = len(fitted_NP)
    del fitted_NP  # as large as all that follows
    gate = gate_with(context, posts, whitening, centroids_MP, settings.experts)
    placement = placed(context, gate, posts)
    nobody_N = np.broadcast_to(np.int32(-1), len(posts.split_N))
    random_N = dealt_at_random(context, posts, placement.expert_N, nobody_N, scratch)
    metadata = {
        "fitted_on": fitted_on,
        "objective": objective,
        "fit": as_fitted(posts.training_N, gate.experts, placement),
    }
    numbers = {"expert": placement.expert_N, "random": random_N}
    members = membership.gathered(context, posts.training_N, numbers, scratch)
    for name, column in (("members", "expert"), ("random_members", "random")):
        its = members[column]
        metadata[name] = {key: membership.hash_of(its.of(k)["line"]) for k, key in enumerate(context.experts)}
    more = {name: np.zeros(len(random_N), bool) for name in ("trained", "new_since_fit")}  # none arrived since the fit
    return write(context, spec, folder, posts, gate, placement, random_N, more, metadata)


def gate_with(context: Context, posts: PostTable, whitening: Whitening, centroids_MP: np.ndarray, experts: int) -> Gate:
    """The gate with these centroids: each its own expert's, or fine ones packed into so many experts."""
    expert_M = np.arange(experts)
    if context.study.partition.fine:
        expert_M = pack(sizes_of(context, posts, whitening, centroids_MP), centroids_MP, experts)
    return Gate(whitening, centroids_MP, expert_M)
