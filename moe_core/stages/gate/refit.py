"""A partition that continues another: by its frozen gate, or fitted again from its clusters.

Letters: N posts, F posts that are fitted on, P whitened dimensions, M centroids, K experts.
"""

import json
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from moe_core.clustering.balance import pack, repack
from moe_core.clustering.gate import Gate
from moe_core.clustering.kmeans import assign, fit_kmeans, starts
from moe_core.clustering.matching import continued_by, overlap
from moe_core.clustering.whitening import Whitening
from moe_core.engine.context import Context
from moe_core.errors import MissingInput
from moe_core.stages.gate import membership, retraining
from moe_core.stages.gate.current_partition import NO_PARTITION, current_of
from moe_core.stages.gate.drift import as_fitted, drift, write_churn
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
from moe_core.stages.gate.previous import PreviousPartition, previous_partition
from moe_core.store.artifact import Spec, StageOutput


def make(context: Context, spec: Spec, folder: Path, scratch: Path) -> StageOutput:
    """Raises MissingInput where the partition that is continued is gone."""
    settings, posts = spec.settings, post_table(context)
    previous = previous_partition(context, spec, posts, scratch)
    same_trunk = previous.trunk == context.version("trunk")
    metadata: dict[str, Any]
    if settings["how"] == "refit":
        gate, metadata = _fit(context, posts, previous, same_trunk)
        placement = placed(context, gate, posts)
        metadata["fit"] = as_fitted(posts.training_N, gate.experts, placement)
        new_since_fit_N = np.zeros(len(placement.expert_N), bool)
    else:
        gate = previous.gate
        metadata = {name: previous.artifact.metadata[name] for name in ("fitted_on", "objective", "fit")}
        placement = placed(context, gate, posts)
        expert_N = np.where(previous.unchanged_N, previous.expert_N, placement.expert_N)  # to the bit
        placement, new_since_fit_N = replace(placement, expert_N=expert_N), previous.new_since_fit_N
    random_N = dealt_at_random(context, posts, placement.expert_N, previous.random_N, scratch)
    numbers = {"expert": placement.expert_N, "random": random_N}
    now = membership.gathered(context, posts.training_N, numbers, scratch)
    trained = membership.TrainedMembers(context, previous.artifact, scratch)
    with retraining.MembersFile(folder / "trained.parquet") as file:
        members, random_members = (
            retraining.decide(
                column,
                context.experts,
                now[column].of,
                previous.artifact,
                partial(trained.of, column),
                same_trunk,
                settings["repartition"]["retrain_share"],
                file.write,
            )
            for column in membership.COLUMNS
        )
    metadata |= retraining.as_metadata(members, random_members) | {"how": settings["how"]}
    metadata |= {"drift": drift(posts.training_N, new_since_fit_N, placement, metadata["fit"])}
    retrained = [key for key in context.experts if key not in members.kept]
    metadata |= write_churn(context, folder, posts, previous, placement.expert_N, members.changed, retrained)
    trained_N = previous.trained_N if same_trunk else np.zeros(len(random_N), bool)
    more = {"trained": trained_N, "new_since_fit": new_since_fit_N}
    return write(context, spec, folder, posts, gate, placement, random_N, more, metadata)


def preview(context: Context) -> dict[str, Any]:
    """Metadata and churn of a partition fitted again; `context` was opened with the request "refit". Nothing is kept.

    Raises MissingInput where there is no partition yet, or what it needs is missing.
    """
    if current_of(context.planner.state) is None:
        raise MissingInput(NO_PARTITION, "partition")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as scratch:
        metadata = make(context, context.spec("partition"), Path(folder), Path(scratch)).metadata
        return {**metadata, **json.loads((Path(folder) / "churn.json").read_text("utf-8"))}


def _fit(
    context: Context, posts: PostTable, previous: PreviousPartition, same_trunk: bool
) -> tuple[Gate, dict[str, Any]]:
    """From the means of the clusters that are continued, in the space of the gate before where that is still one."""
    settings, old = context.study.partition, previous.artifact.settings["partition"]
    same_space = same_trunk and old["pca"] == settings.pca
    whitening = previous.gate.whitening if same_space else whitening_of(context, posts)
    fitted_N = sample(posts.training_N, settings.max_fit_posts, settings.seed)
    old_F = previous.expert_N[fitted_N]
    fitted_FP = whitened(context, whitening, fitted_N)
    if not settings.fine:
        centroids_MP, objective = _one_level(context, old_F, fitted_FP)
        expert_M = np.arange(len(centroids_MP))
    elif same_space and old["fine"] == settings.fine:
        centroids_MP, expert_M, objective = _same_fine(context, posts, previous, whitening, fitted_FP)
    else:
        centroids_MP, expert_M, objective = _other_fine(context, posts, old_F, whitening, fitted_FP)
    return Gate(whitening, centroids_MP, expert_M), {"fitted_on": len(fitted_FP), "objective": objective}


def _one_level(context: Context, old_F: np.ndarray, fitted_FP: np.ndarray) -> tuple[np.ndarray, float]:
    """(centroids (K, P) in the order of the keys, objective)."""
    settings = context.study.partition
    start_KP = starts(fitted_FP, old_F, settings.experts, settings.iterations, settings.seed)
    centroids_KP, objective = fit_kmeans(fitted_FP, settings.experts, settings.iterations, 1, settings.seed, start_KP)
    shared = overlap(assign(fitted_FP, centroids_KP), old_F, settings.experts)
    return centroids_KP[continued_by(shared)], objective


def _same_fine(
    context: Context, posts: PostTable, previous: PreviousPartition, whitening: Whitening, fitted_FP: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """(centroids (M, P), expert of each, objective): fine centroids go on and keep their expert where balance lets."""
    settings, gate = context.study.partition, previous.gate
    centroids_MP, objective = fit_kmeans(
        fitted_FP, settings.fine, settings.iterations, 1, settings.seed, gate.centroids_MP
    )
    sizes_M = sizes_of(context, posts, whitening, centroids_MP)
    expert_M = repack(sizes_M, centroids_MP, previous.number[gate.expert_M], settings.experts)
    return centroids_MP, expert_M, objective


def _other_fine(
    context: Context, posts: PostTable, old_F: np.ndarray, whitening: Whitening, fitted_FP: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """The same of fine centroids that nothing is continued by: experts are matched by their posts."""
    settings = context.study.partition
    centroids_MP, objective = fit_kmeans(
        fitted_FP, settings.fine, settings.iterations, settings.restarts, settings.seed
    )
    cluster_M = pack(sizes_of(context, posts, whitening, centroids_MP), centroids_MP, settings.experts)
    new_F = cluster_M[assign(fitted_FP, centroids_MP)]
    expert_C = np.argsort(continued_by(overlap(new_F, old_F, settings.experts)))
    return centroids_MP, expert_C[cluster_M], objective
