"""pilot: what a mixture would gain over training the trunk on for its budget, for several numbers of experts.

For each, experts of a few clusters are trained on growing shares of their posts, and the trunk is trained on for the
same shares of the budget. What both gain over the trunk on validation posts is extrapolated to the whole, with an
interval, beside what it would cost.

Letters: M validation posts, N of one cluster, S shares, W weights of the router, Q measures.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moe_core.advice import measure_for
from moe_core.devices import gpu_names
from moe_core.engine.context import Context
from moe_core.evaluation.answers import Answer
from moe_core.evaluation.extrapolation import FORMS, Estimate, Sampled, chosen, curve, estimates
from moe_core.evaluation.measures import MEASURES
from moe_core.evaluation.metrics import tag_statistics
from moe_core.models.resnet import ResNet
from moe_core.stages import reading
from moe_core.stages.experts.experts import start
from moe_core.stages.gate.posts import post_table, sample
from moe_core.stages.pilot.clusters import Cluster, drawn_clusters
from moe_core.stages.pilot.plan import MOST_VALIDATION, PilotPlan, plan_of
from moe_core.stages.pilot.trainings import Judge, Measured, Trainings, weights_of
from moe_core.stages.training.device import device_and_threads
from moe_core.store.artifact import Spec, StageOutput
from moe_core.store.hashing import content_hash

CURVE_POINTS = 13  # of a fitted law, from the smallest share to the whole
ENTROPY = "cross_entropy"


def make(context: Context, spec: Spec, folder: Path) -> StageOutput:
    study = context.study
    device = device_and_threads(study, parallel=False, hashtags=len(reading.vocabulary(context).hashtags))
    table, index = post_table(context), reading.index(context)
    validation_N = sample(index.use("validation"), MOST_VALIDATION, study.pilot.seed)
    training = int(table.training_N.sum())
    plan = plan_of(study, training, int(validation_N.sum()))
    trunk = context.need("trunk")
    posts = reading.posts_where(context, index, validation_N)
    tags_a_post, top_share = tag_statistics(posts.tags_T, len(posts))
    measure = measure_for(tags_a_post, top_share, study.expert_training.loss, study.publish.measure)
    if not MEASURES[measure].of_posts:  # mAP, which no post has by itself
        measure = "r_at_5"
    features_MD = torch.from_numpy(reading.trunk_features_where(context, validation_N))
    judge = Judge(
        posts,
        Answer(features_MD, [reading.last_layer(trunk).to(device)]),
        weights_of(study.expert.router_weight),
        tuple(dict.fromkeys((measure, "p_at_1", ENTROPY))),
        study.expert_training.loss,
        study.expert_training.precision,
        device,
    )
    budget = study.expert_training.epochs * training
    with context.store.work(spec) as work:
        clusters = drawn_clusters(context, plan, table, validation_N, work.folder / "clusters.safetensors")
        trainings = Trainings(context, index, work, judge, plan.budgets * budget)
        every = reading.training_posts(context)
        onward = [trainings.of_trunk(share, every) for share in plan.shares]
        experts = _of_clusters(trainings, clusters, plan)
    runs = [*onward, *(run for each in experts for run in each)]
    found = {
        name: _gains(plan, judge, clusters, experts, onward, name, study.pilot.seed)
        for name in judge.measures
        if name != ENTROPY
    }
    law = {
        "measure": measure,
        "shares": list(plan.shares),
        "curve_shares": _rounded(_curve_shares(np.array(plan.shares))),
        "training_posts": training,
        "validation_posts": len(posts),
        "left_out": {str(experts): why for experts, why in plan.left_out.items()},
        **found.pop(measure),
        "others": found,
    }
    costs = _costs(plan, clusters, experts, onward, budget, _bytes_of(start(context, "e000", own_decoder=False)))
    costs["training_on"]["bytes"] = _bytes_of(reading.network(context, trunk))
    images, seconds = sum(run.images for run in runs), sum(run.seconds for run in runs)
    spent = {"images": images, "seconds": round(seconds, 3), "budgets": round(images / budget, 3)}
    (folder / "pilot.json").write_text(json.dumps({**law, "costs": costs, "pilot": spent}, indent=1))
    about = {"training_images": images, "seconds": round(seconds, 3), "device": device, "trainings": len(runs)}
    return StageOutput(
        about | {"chosen": law["chosen"], "measure": measure, "validation_posts": len(posts)},
        content={"law": content_hash(law)},  # without times
    )


def _of_clusters(trainings: Trainings, clusters: Sequence[Cluster], plan: PilotPlan) -> list[list[Measured]]:
    """The experts of each cluster, one a share: each share's posts are among those of the next."""
    found: list[list[Measured]] = []
    for number in plan.experts:
        mine = [cluster for cluster in clusters if cluster.experts == number]
        of_shares = [trainings.of_experts(mine, share) for share in plan.shares]
        found += map(list, zip(*of_shares, strict=True))
    return found


def _gains(
    plan: PilotPlan,
    judge: Judge,
    clusters: Sequence[Cluster],
    experts: Sequence[Sequence[Measured]],
    onward: Sequence[Measured],
    name: str,
    seed: int,
) -> dict[str, Any]:
    """What each number of experts gains by one measure, at the shares and as a whole, and which would be chosen."""
    share_S, place = np.array(plan.shares), judge.measures.index(name)
    trunk_M = judge.of_trunk()[place].astype(float)
    onward_SM = np.stack([run.measures_WQN[0, place] for run in onward]) - trunk_M
    mixtures, differences = [], []
    for number in plan.experts:
        mine = [c for c, cluster in enumerate(clusters) if cluster.experts == number]
        rows = [clusters[c].validation_rows for c in mine]
        weight_C = np.array([clusters[c].weight for c in mine])
        answers = [_with_router([experts[c][s] for c in mine], judge, place) for s in range(len(share_S))]
        gains = [np.stack([of_share[c] for of_share in answers]) - trunk_M[rows[c]] for c in range(len(mine))]
        mixtures.append(Sampled(number, gains, weight_C))
        less = [gain_SN - onward_SM[:, rows_N] for gain_SN, rows_N in zip(gains, rows, strict=True)]
        differences.append(Sampled(number, less, weight_C))
    estimated = estimates(differences, share_S, seed)
    of_onward = onward_SM.mean(1)
    return {
        "chosen": chosen(dict(zip(plan.experts, estimated, strict=True))),
        "training_on": {"gains": _rounded(of_onward), "curves": _curves(share_S, of_onward)},
        "rows": [
            _row(share_S, mixture, difference, estimate)
            for mixture, difference, estimate in zip(mixtures, differences, estimated, strict=True)
        ],
    }


def _with_router(runs: Sequence[Measured], judge: Judge, place: int) -> list[np.ndarray]:
    """(N,) of each cluster: the measure of each post, with the router's weight that is best on the other half of the
    posts of all the clusters by cross-entropy, as a mixture has one weight."""
    entropy_WN = np.concatenate([run.measures_WQN[:, judge.measures.index(ENTROPY)] for run in runs], 1)
    measure_WN = np.concatenate([run.measures_WQN[:, place] for run in runs], 1)
    half_N = np.random.default_rng(0).permutation(entropy_WN.shape[1]) % 2
    out_N = np.zeros(len(half_N))
    for half in (0, 1):
        others = half_N != half if (half_N != half).any() else half_N == half
        best = int(entropy_WN[:, others].mean(1).argmin())
        out_N[half_N == half] = measure_WN[best, half_N == half]
    return np.split(out_N, np.cumsum([run.measures_WQN.shape[2] for run in runs])[:-1])


def _row(share_S: np.ndarray, mixture: Sampled, difference: Sampled, estimate: Estimate) -> dict[str, Any]:
    """A row of the result: of one number of experts."""
    return {
        "experts": mixture.clusters,
        "clusters": len(mixture.gains),
        "validation_posts": sum(gain_SN.shape[1] for gain_SN in mixture.gains),
        "gains": _rounded(mixture.mean_S),  # over the trunk
        "curves": _curves(share_S, mixture.mean_S),
        "over_training_on": _rounded(difference.mean_S),
        "gain": round(estimate.mean, 5),
        "gain_ci95": [round(estimate.low, 5), round(estimate.high, 5)],
        "above_zero": round(estimate.above_zero, 3),
        "forms": {name: round(value, 5) for name, value in estimate.forms.items()},
        "parts": {name: round(half, 5) for name, half in estimate.parts.items()},
    }


def _curves(share_S: np.ndarray, gain_S: np.ndarray) -> dict[str, list[float]]:
    """The gain over the trunk along each form of the law, at `curve_shares`."""
    at_M = _curve_shares(share_S)
    return {form: _rounded(curve(form, share_S, gain_S, at_M)) for form in FORMS}


def _curve_shares(share_S: np.ndarray) -> np.ndarray:
    return np.geomspace(share_S[0], 1.0, CURVE_POINTS)


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 5) for value in values]


def _bytes_of(network: ResNet) -> int:
    """Bytes of a network's weights."""
    return sum(tensor.nbytes for tensor in network.state_dict().values())


def _costs(
    plan: PilotPlan,
    clusters: Sequence[Cluster],
    experts: Sequence[Sequence[Measured]],
    onward: Sequence[Measured],
    budget: float,
    expert_bytes: int,
) -> dict[str, Any]:
    """Images, hours and bytes of disk of training on, and of each number of experts, at the speeds of this pilot."""
    devices = max(1, len(gpu_names()))

    def cost(networks: int, runs: Sequence[Measured]) -> dict[str, Any]:
        hours = budget / (sum(run.images for run in runs) / sum(run.seconds for run in runs)) / 3600
        return {
            "images": round(budget),
            "device_hours": hours,
            "hours": hours * math.ceil(networks / devices) / networks,
            "bytes": networks * expert_bytes,
        }

    of_experts = {
        str(number): cost(number, [each[-1] for each, c in zip(experts, clusters, strict=True) if c.experts == number])
        for number in plan.experts
    }
    return {"devices": devices, "training_on": cost(1, onward[-1:]), "experts": of_experts}
