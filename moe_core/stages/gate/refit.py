"""A partition that follows another: by its frozen gate, or fitted again from its clusters.

Letters: N posts, F posts that are fitted on, P whitened dimensions, M centroids, K experts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_core.clustering.assign import assign
from moe_core.clustering.balance import pack, repack
from moe_core.clustering.kmeans import fit_kmeans, starts
from moe_core.clustering.random_partition import reshuffled
from moe_core.engine.context import Context
from moe_core.errors import MissingInput
from moe_core.stages import reading
from moe_core.stages.gate import membership
from moe_core.stages.gate.common import (
    Posts,
    as_fitted,
    imbalance,
    nearest,
    posts_of,
    sample,
    sizes_of,
    whitening_of,
    write,
)
from moe_core.stages.gate.current_partition import NO_PARTITION, current_of
from moe_core.store.artifact import Artifact, StageOutput

if TYPE_CHECKING:
    import polars as pl

    from moe_core.clustering.gate import Gate
    from moe_core.clustering.whitening import Whitening


@dataclass(frozen=True)
class Before:
    """The partition that is followed, seen from the posts that there are now."""

    artifact: Artifact
    gate: Gate
    trunk: str
    keys: list[str]
    assignment: pl.DataFrame  # as it was
    was_N: np.ndarray  # its expert's number of each post, -1 where it has none
    expert_N: np.ndarray  # the number of the expert that continues that one, -1 where there is none
    random_N: np.ndarray  # the same of the control
    trained_N: np.ndarray  # bool: a network was trained on the post
    late_N: np.ndarray  # bool: the post came since the gate was fitted


def make(context: Context, folder: Path) -> StageOutput:
    """Raises ValueError where the partition that is followed is gone."""
    plan, posts = context.spec("partition"), posts_of(context)
    before = _before(context, posts)
    same_trunk = before.trunk == context.version("trunk")
    again = plan.settings["how"] == "refit"
    said: dict[str, Any]
    if again:
        gate, said = _fit(context, posts, before, same_trunk)
    else:
        gate, said = before.gate, {name: before.artifact.metadata[name] for name in ("fitted_on", "objective")}
    expert_N, distance_N, gap_N = nearest(context, gate)
    late_N = np.zeros(len(expert_N), bool)
    if not again:
        late_N = before.late_N
        expert_N = np.where(_same_shards(context, posts, before), before.expert_N, expert_N)  # to the bit
    old_N = ~late_N
    fitted = said.get("fit") or before.artifact.metadata.get("fit")
    fitted = fitted or as_fitted(_some(posts, old_N), gate, expert_N, distance_N, gap_N)
    random_N, seed = np.empty_like(expert_N), context.study.partition.seed
    for rows_N in posts.groups():
        sizes_K = np.bincount(expert_N[rows_N], minlength=len(context.experts))
        random_N[rows_N] = reshuffled(posts.ids[rows_N].tolist(), before.random_N[rows_N], sizes_K, seed)
    lines = membership.lines(context, posts.columns, posts.index)
    trained = membership.trained_of(before.artifact, lines)
    most = plan.settings["retrain_share"]
    members = [
        membership.carried(
            column, context.experts, n_N, posts.training_N, lines, before.artifact, trained, same_trunk, most
        )
        for column, n_N in (("expert", expert_N), ("random", random_N))
    ]
    said |= membership.as_metadata(*members) | {"how": plan.settings["how"], "fit": fitted}
    said |= {"drift": _drift(posts, fitted, late_N, expert_N, distance_N, gap_N)}
    said |= _churn(context, folder, posts, before, expert_N, members[0])
    _write_trained(folder, members)
    more = {"trained": before.trained_N if same_trunk else np.zeros(len(expert_N), bool), "late": late_N}
    return write(context, folder, posts, gate, (expert_N, distance_N, gap_N, random_N), more, said)


def preview(context: Context) -> dict[str, Any]:
    """Metadata and churn of a partition fitted again; `context` was opened with the request "refit". Nothing is kept.

    Raises MissingInput where there is no partition yet, or what it needs is missing.
    """
    import tempfile

    if current_of(context.planner.state) is None:
        raise MissingInput(NO_PARTITION, "partition")
    with tempfile.TemporaryDirectory() as folder:
        metadata = make(context, Path(folder)).metadata
        return {**metadata, **json.loads((Path(folder) / "churn.json").read_text("utf-8"))}


def _before(context: Context, posts: Posts) -> Before:
    import polars as pl

    from moe_core.clustering.gate import load_gate

    version = context.spec("partition").inputs["previous"]
    artifact = context.store.get("partition", None, version)
    if artifact is None:
        raise MissingInput(
            f"partition {version}, which the next one follows, was removed after that was planned: run again"
        )
    gate, about = load_gate(artifact.file("gate.safetensors"))
    keys = list(artifact.metadata["members"])
    assignment = pl.read_parquet(artifact.file("assignment.parquet"), glob=False)
    mine = posts.columns.join(
        assignment.unique(["shard", "id"], keep="first", maintain_order=True),
        on=["shard", "id"],
        how="left",
        maintain_order="left",
    )
    number = np.array([context.experts.index(key) if key in context.experts else -1 for key in keys] + [-1])
    was_N, random_N = (mine[name].fill_null(-1).to_numpy() for name in ("expert", "random"))
    return Before(
        artifact,
        gate,
        about["trunk"],
        keys,
        assignment,
        was_N,
        number[was_N],
        number[random_N],
        trained_N=(mine["trained"].fill_null(False) | (mine["split"] == "train").fill_null(False)).to_numpy(),
        late_N=mine["late"].fill_null(True).to_numpy(),
    )


def _same_shards(context: Context, posts: Posts, before: Before) -> np.ndarray:
    """(N,) bool: posts of shards that are as the partition before saw them."""
    old = before.artifact.inputs
    same = [
        shard.key
        for shard in context.shards
        if old.get(f"features {shard.key}") == context.version("trunk_features", shard.key)
    ]
    found: np.ndarray = posts.columns["shard"].is_in(same).to_numpy() & (before.expert_N >= 0)
    return found


def _some(posts: Posts, wanted_N: np.ndarray) -> Posts:
    return Posts(posts.columns, posts.index, posts.training_N & wanted_N)


def _fit(context: Context, posts: Posts, before: Before, same_trunk: bool) -> tuple[Gate, dict[str, Any]]:
    """From the means of the clusters that are continued, in the space of the gate before where that is still one."""
    from moe_core.clustering.gate import Gate

    settings, old = context.study.partition, before.artifact.settings
    same_space = same_trunk and old["pca"] == settings.pca
    whitening = before.gate.whitening if same_space else whitening_of(context, posts)
    fitted_N = sample(posts.training_N, settings.max_fit_posts, settings.seed)
    fitted_FP = whitening.apply(reading.trunk_features_where(context, fitted_N))
    if not settings.fine:
        centroids_MP, objective = _one_level(context, before.expert_N[fitted_N], fitted_FP)
        expert_M = np.arange(len(centroids_MP))
    elif same_space and old["fine"] == settings.fine:
        centroids_MP, expert_M, objective = _same_fine(context, posts, before, whitening, fitted_FP)
    else:
        centroids_MP, expert_M, objective = _other_fine(context, posts, before, whitening, fitted_FP)
    gate = Gate(whitening, centroids_MP, expert_M)
    fitted = as_fitted(posts, gate, *nearest(context, gate))
    return gate, {"fitted_on": len(fitted_FP), "objective": objective, "fit": fitted}


def _one_level(context: Context, old_F: np.ndarray, fitted_FP: np.ndarray) -> tuple[np.ndarray, float]:
    """(centroids (K, P) in the order of the keys, objective)."""
    from moe_core.clustering.matching import continued_by, overlap

    settings = context.study.partition
    start_KP = starts(fitted_FP, old_F, settings.experts, settings.iterations, settings.seed)
    found = fit_kmeans(fitted_FP, settings.experts, settings.iterations, 1, settings.seed, start_KP)
    there = overlap(assign(fitted_FP, found.centroids_KP), old_F, settings.experts)
    return found.centroids_KP[continued_by(there)], float(found.objective)


def _same_fine(
    context: Context, posts: Posts, before: Before, whitening: Whitening, fitted_FP: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """(centroids (M, P), expert of each, objective): fine centroids go on and keep their expert where balance lets."""
    settings, gate = context.study.partition, before.gate
    found = fit_kmeans(fitted_FP, settings.fine, settings.iterations, 1, settings.seed, gate.centroids_MP)
    number = np.array([context.experts.index(key) if key in context.experts else -1 for key in before.keys])
    sizes_M = sizes_of(context, posts, whitening, found.centroids_KP)
    expert_M = repack(sizes_M, found.centroids_KP, number[gate.expert_M], settings.experts)
    return found.centroids_KP, expert_M, float(found.objective)


def _other_fine(
    context: Context, posts: Posts, before: Before, whitening: Whitening, fitted_FP: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """The same of fine centroids that nothing is continued by: experts are matched by their posts."""
    from moe_core.clustering.matching import continued_by, overlap

    settings = context.study.partition
    found = fit_kmeans(fitted_FP, settings.fine, settings.iterations, settings.restarts, settings.seed)
    cluster_M = pack(sizes_of(context, posts, whitening, found.centroids_KP), found.centroids_KP, settings.experts)
    old_F = before.expert_N[sample(posts.training_N, settings.max_fit_posts, settings.seed)]
    new_F = cluster_M[assign(fitted_FP, found.centroids_KP)]
    expert_C = np.argsort(continued_by(overlap(new_F, old_F, settings.experts)))
    return found.centroids_KP, expert_C[cluster_M], float(found.objective)


def _drift(
    posts: Posts,
    fitted: dict[str, Any],
    late_N: np.ndarray,
    expert_N: np.ndarray,
    distance_N: np.ndarray,
    gap_N: np.ndarray,
) -> dict[str, float]:
    """Of the posts that came since the fit: how many, and the shares that are far or ambiguous by what was usual then;
    and how much more unequal experts are than then."""
    far_N = distance_N[late_N] > np.array(fitted["far_beyond"])[expert_N[late_N]]
    sizes = np.bincount(expert_N[posts.training_N], minlength=len(fitted["far_beyond"])).tolist()
    return {
        "posts_since_fit": int(late_N.sum()),
        "far": round(float(far_N.mean()), 4) if len(far_N) else 0.0,
        "ambiguous": round(float((gap_N[late_N] < fitted["ambiguous_below"]).mean()), 4) if len(far_N) else 0.0,
        "imbalance": round(imbalance(sizes) / fitted["imbalance"], 3),
    }


def _churn(
    context: Context, folder: Path, posts: Posts, before: Before, expert_N: np.ndarray, members: membership.Members
) -> dict[str, Any]:
    """Writes churn.json, and says it in short: training posts that stayed, moved, came and went, by expert."""
    import polars as pl

    keys, training_N, was_N = context.experts, posts.training_N, before.was_N
    had, same_trunk = before.artifact.metadata["members"], before.trunk == context.version("trunk")
    old = len(before.keys)
    matrix = np.bincount(
        np.where(was_N < 0, old, was_N)[training_N] * len(keys) + expert_N[training_N],
        minlength=(old + 1) * len(keys),
    ).reshape(old + 1, len(keys))
    gone = before.assignment.filter(pl.col("split") == "train").join(posts.columns, on=["shard", "id"], how="anti")
    gone_K = np.bincount(gone["expert"].to_numpy(), minlength=old)
    again = [key for key in keys if not same_trunk or members.digests[key] != had.get(key)]
    by_expert = {}
    for k, key in enumerate(keys):
        was = before.keys.index(key) if key in before.keys else None
        stayed = int(matrix[was, k]) if was is not None else 0
        by_expert[key] = {
            "now": int(matrix[:, k].sum()),
            "stayed": stayed,
            "came": int(matrix[:old, k].sum()) - stayed,
            "left": int(matrix[was].sum()) - stayed if was is not None else 0,
            "new": int(matrix[old, k]),
            "gone": int(gone_K[was]) if was is not None else 0,
            "changed": members.changed[key],
            "again": key in again,
        }
    (folder / "churn.json").write_text(
        json.dumps({"before": before.keys, "now": keys, "posts": matrix.tolist(), "experts": by_expert})
    )
    return {
        "moved": sum(said["came"] for said in by_expert.values()),
        "new": int(matrix[old].sum()),
        "gone": len(gone),
        "trained_again": again,
        "kept": [key for key in keys if key not in again],
    }


def _write_trained(folder: Path, members: list[membership.Members]) -> None:
    import polars as pl

    pl.concat([one.frame for one in members]).write_parquet(folder / "trained.parquet", statistics=False)
