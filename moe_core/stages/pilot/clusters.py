"""The clusters that a pilot draws: for each number of experts a gate is fitted as a partition fits it, and a few of its
clusters are drawn, each with a probability in proportion to its validation posts.

Letters: N posts, M validation posts that are measured on, K experts, C clusters that were drawn.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from moe_core.clustering.kmeans import fit_kmeans
from moe_core.engine.context import Context
from moe_core.evaluation.extrapolation import draw_clusters
from moe_core.stages.gate.partition import gate_with
from moe_core.stages.gate.posts import PostTable, placed, sample, whitened, whitening_of
from moe_core.stages.pilot.plan import PilotPlan
from moe_core.tables.memory import large_blocks_given_back
from moe_core.weights import load_weights, save_weights


@dataclass(frozen=True)
class Cluster:
    """One of the clusters of K experts."""

    experts: int
    number: int
    weight: float  # in the mean over all posts; those of one K sum to one
    training_rows: np.ndarray  # places of posts for the largest share, in a random order: a smaller one takes the first
    posts: int  # training posts in all
    validation_rows: np.ndarray  # places among the M validation posts

    @property
    def name(self) -> str:
        return f"k{self.experts}-{self.number}"


def drawn_clusters(
    context: Context, plan: PilotPlan, posts: PostTable, validation_N: np.ndarray, file: Path
) -> list[Cluster]:
    """The clusters, as they are in the file where that is there: a pilot that was killed goes on with the same."""
    if not file.exists():
        with large_blocks_given_back():
            clusters = _draw(context, plan, posts, validation_N)
        save_weights(file, _as_tensors(clusters), {})
    state, _ = load_weights(file)
    return _from_tensors({name: tensor.numpy() for name, tensor in state.items()})


def _draw(context: Context, plan: PilotPlan, posts: PostTable, validation_N: np.ndarray) -> list[Cluster]:
    settings, seed = context.study.partition, context.study.pilot.seed
    whitening = whitening_of(context, posts)
    fitted_NP = whitened(context, whitening, sample(posts.training_N, settings.max_fit_posts, settings.seed))
    found: list[Cluster] = []
    for experts in plan.experts:
        context.report({"experts": experts})
        how = settings.iterations, settings.restarts, settings.seed
        centroids_MP, _ = fit_kmeans(fitted_NP, settings.fine or experts, *how)
        gate = gate_with(context, posts, whitening, centroids_MP, experts)
        expert_N = placed(context, gate, posts).expert_N
        draw = np.random.default_rng([seed, experts])
        expert_M = expert_N[validation_N]
        sizes_K = np.bincount(expert_M, minlength=experts)
        numbers, weight_C = draw_clusters(sizes_K, plan.clusters[experts], draw)
        for number, weight in zip(numbers.tolist(), weight_C.tolist(), strict=True):
            rows = np.flatnonzero(posts.training_N & (expert_N == number))
            most = max(1, round(plan.shares[-1] * len(rows)))
            chosen = draw.permutation(rows)[:most]
            found.append(Cluster(experts, number, weight, chosen, len(rows), np.flatnonzero(expert_M == number)))
    return found


def _as_tensors(clusters: list[Cluster]) -> dict[str, torch.Tensor]:
    numbers = [[c.experts, c.number, c.posts] for c in clusters]
    found = {"numbers": torch.tensor(numbers), "weights": torch.tensor([c.weight for c in clusters]).double()}
    for place, cluster in enumerate(clusters):
        found[f"training {place}"] = torch.from_numpy(cluster.training_rows)
        found[f"validation {place}"] = torch.from_numpy(cluster.validation_rows)
    return found


def _from_tensors(arrays: dict[str, np.ndarray]) -> list[Cluster]:
    return [
        Cluster(experts, number, weight, arrays[f"training {place}"], posts, arrays[f"validation {place}"])
        for place, ((experts, number, posts), weight) in enumerate(
            zip(arrays["numbers"].tolist(), arrays["weights"].tolist(), strict=True)
        )
    ]
