"""Part e: a whole mixture on synthetic posts in device memory, against its controls.

Trunk, k-means, K experts, the same for a random partition, and the trunk trained on for the experts' budget; P@1 and
R@5 of each on held-out posts, with paired 95 % intervals of the difference in P@1 to the same budget. Network, loss,
schedule, whitening, gate and metrics are the project's; steps are captured (captured_step.py), k-means is torch's
(c_kmeans_step.py). Run in the repository's root: python benchmarks/gpu/e_mixture.py SECONDS [POSTS]

Letters: N posts, T tags of a post at most, D embedding width, P whitened dimensions, K experts, V hashtags.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
from c_kmeans_step import best_of
from captured_step import Step
from common import CUDA, DEVICE, Results, parser, sync
from synthetic_posts import synthetic_posts
from torch import Tensor

from moe_core.clustering.gate import Gate
from moe_core.clustering.whitening import whiten
from moe_core.evaluation.metrics import paired_difference, per_post
from moe_core.models.resnet import ResNet, build
from moe_core.settings import Network
from moe_core.training.batches import MEAN, STD

SIDE, HELD_OUT = 16, 40_000 if CUDA else 600
NETWORK = Network(widths=(8, 8, 8), depths=(1, 1, 1), embedding=48)  # of the recipe `demo`
ROUTER_WEIGHTS = (0.0, 0.15, 0.3, 0.5)
BATCH, WHITENED, MOMENT_POSTS = 16_384, 128, 500_000
RESAMPLES = 1000


@dataclass(frozen=True)
class Budget:
    """How long a network trains."""

    epochs: float
    batch: int
    lr: float


@dataclass(frozen=True)
class Part:
    """Images (N, S, S, 3) uint8 and their tags (N, T), -1 where there is none."""

    images: Tensor
    tags: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def of(self, rows: Tensor | slice) -> "Part":
        return Part(self.images[rows], self.tags[rows])


@dataclass(frozen=True)
class Trained:
    """A network, and what its training took."""

    model: ResNet
    seconds: float
    images: int


def fit(
    start: dict[str, Tensor] | None, part: Part, hashtags: int, budget: Budget, decoder: bool, seed: int
) -> Trained:
    """Trains a network from the weights `start`, or from scratch; `decoder`: the last layer is trained too.

    Raises FloatingPointError where the loss is not finite at the end.
    """
    torch.manual_seed(seed)
    model = build(NETWORK, hashtags, seed).to(DEVICE)
    if start is not None:
        model.load_state_dict(start)
    batch = min(budget.batch, len(part))
    steps_per_epoch = len(part) // batch
    steps = max(1, round(budget.epochs * steps_per_epoch))
    step = Step(model, part.images, part.tags, batch=batch, steps=steps, lr=budget.lr, train_decoder=decoder)
    step.capture()
    began = time.perf_counter()
    for done in range(steps):
        if done % steps_per_epoch == 0:
            step.shuffle()
        step()
    loss = step.final_loss()
    if not np.isfinite(loss):
        raise FloatingPointError(f"loss is {loss} after {steps} steps at learning rate {budget.lr}")
    return Trained(model.eval(), time.perf_counter() - began, steps * batch)


@torch.inference_mode()
def features_of(model: ResNet, images: Tensor) -> Tensor:
    """(N, D) float32."""
    features_ND = torch.empty(len(images), model.width, device=DEVICE)
    mean_C11, std_C11 = (torch.tensor(value, device=DEVICE).view(3, 1, 1) for value in (MEAN, STD))
    for first in range(0, len(images), BATCH):
        x_BCHW = (images[first : first + BATCH].permute(0, 3, 1, 2).float() - mean_C11) / std_C11
        with torch.autocast(DEVICE, torch.bfloat16, enabled=CUDA):
            features_ND[first : first + BATCH] = model.features(x_BCHW).float()
    return features_ND


@torch.inference_mode()
def logits_of(model: ResNet, features_ND: Tensor) -> Tensor:
    """(N, V) float32."""
    return features_ND @ model.fc.weight.float().T + model.fc.bias.float()


def metrics_of(logits_NV: Tensor, tags_NT: Tensor) -> dict[str, np.ndarray]:
    """The project's metrics of each post."""
    counts_N = (tags_NT >= 0).sum(1).cpu()
    starts_N1 = torch.cat([torch.zeros(1, dtype=torch.int64), counts_N.cumsum(0)])
    return per_post(logits_NV.softmax(1).cpu(), tags_NT[tags_NT >= 0].cpu(), starts_N1)


@dataclass(frozen=True)
class Mixture:
    """An expert of each training post and of each held-out post."""

    name: str
    expert_N: Tensor
    held_out_N: Tensor


def partition(results: Results, trunk: ResNet, train: Part, test: Part, experts: int, seed: int) -> list[Mixture]:
    """The mixture by k-means of whitened features, and the random partition into clusters of the same sizes."""
    began = time.perf_counter()
    train_ND, test_ND = features_of(trunk, train.images), features_of(trunk, test.images)
    some = torch.randperm(len(train_ND), device=DEVICE)[:MOMENT_POSTS]
    whitening = whiten([train_ND[some].cpu().numpy()], WHITENED)
    mean_D = torch.from_numpy(whitening.mean_D).to(DEVICE)
    projection_DP = torch.from_numpy(whitening.projection_DP).to(DEVICE)

    def white(features_ND: Tensor) -> Tensor:
        x_NP = (features_ND - mean_D) @ projection_DP
        return x_NP / x_NP.norm(dim=1, keepdim=True).clamp(min=1e-12)

    train_NP = white(train_ND)
    centroids_KP = best_of(train_NP, experts, 30, 3, seed)
    expert_N, held_out_N = (train_NP @ centroids_KP.T).argmax(1), (white(test_ND) @ centroids_KP.T).argmax(1)
    gate = Gate(whitening, centroids_KP.cpu().numpy(), np.arange(experts))
    agreement = (gate.assign(test_ND.cpu().numpy()) == held_out_N.cpu().numpy()).mean()
    sizes_K = expert_N.bincount(minlength=experts)
    results.record(
        "partition",
        seconds=round(time.perf_counter() - began, 1),
        sizes=sizes_K.tolist(),
        gate_agrees=round(float(agreement), 4),
    )
    random_N = torch.empty_like(expert_N)
    owners = torch.repeat_interleave(torch.arange(experts, device=DEVICE), sizes_K)
    random_N[torch.randperm(len(train), device=DEVICE)] = owners
    random_held_out_N = torch.randint(0, experts, (len(test),), device=DEVICE)
    return [Mixture("mixture", expert_N, held_out_N), Mixture("random partition", random_N, random_held_out_N)]


def main() -> None:
    arguments = parser(__doc__, 150)
    arguments.add_argument("posts", nargs="?", type=int, default=2_000_000 if CUDA else 2_000)
    arguments.add_argument("--experts", type=int, default=16 if CUDA else 3)
    arguments.add_argument("--trunk-epochs", type=float, default=4 if CUDA else 1)
    arguments.add_argument("--expert-epochs", type=float, default=3 if CUDA else 1)
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    trunk_budget = Budget(options.trunk_epochs, 1024 if CUDA else 64, 1.0 if CUDA else 0.4)
    expert_budget = Budget(options.expert_epochs, 512 if CUDA else 32, 0.6 if CUDA else 0.3)
    results, seed, experts = Results("e", options.seconds), options.seed, options.experts

    began = time.perf_counter()
    posts = synthetic_posts(options.posts + HELD_OUT, SIDE, seed)
    everything, hashtags = Part(posts.images_NSS3, posts.tags_NT), len(posts.hashtags)
    test, train = everything.of(slice(0, HELD_OUT)), everything.of(slice(HELD_OUT, None))
    sync()
    results.record(
        "posts",
        posts=len(train),
        side=SIDE,
        gib=round(train.images.nbytes / 2**30, 2),
        hashtags=hashtags,
        seconds=round(time.perf_counter() - began, 1),
    )

    def record_training(what: str, seconds: float, images: int) -> None:
        results.record(what, seconds=round(seconds, 1), images=images, images_per_s=round(images / seconds))

    trunk = fit(None, train, hashtags, trunk_budget, True, seed)
    record_training("trunk", trunk.seconds, trunk.images)
    start = trunk.model.state_dict()
    trunk_NV = logits_of(trunk.model, features_of(trunk.model, test.images))
    # the router's weight is chosen on posts that judge nothing
    choose, judge = slice(0, HELD_OUT // 4), slice(HELD_OUT // 4, HELD_OUT)
    rows = {"trunk": metrics_of(trunk_NV[judge], test.tags[judge])}
    for mixture in partition(results, trunk.model, train, test, experts, seed):
        logits_NV, seconds, images = torch.empty(HELD_OUT, hashtags, device=DEVICE), 0.0, 0
        for k in range(experts):
            if results.seconds_left() < 8:
                results.skip(mixture.name, f"{results.seconds_left():.0f} s left at expert {k}")
                return
            expert = fit(start, train.of(mixture.expert_N == k), hashtags, expert_budget, False, seed)
            mine_N = mixture.held_out_N == k
            logits_NV[mine_N] = logits_of(expert.model, features_of(expert.model, test.images[mine_N]))
            seconds, images = seconds + expert.seconds, images + expert.images
        rows[mixture.name] = metrics_of(logits_NV[judge], test.tags[judge])
        entropy = {}
        for weight in ROUTER_WEIGHTS:
            mixed = metrics_of(logits_NV.lerp(trunk_NV, weight)[choose], test.tags[choose])
            entropy[weight] = float(mixed["cross_entropy"].mean())
        weight = min(entropy, key=lambda weight: entropy[weight])
        mixed_NV = logits_NV.lerp(trunk_NV, weight)
        rows[f"{mixture.name}, router weight {weight}"] = metrics_of(mixed_NV[judge], test.tags[judge])
        record_training(mixture.name, seconds, images)
    control = fit(start, train, hashtags, expert_budget, True, seed)
    control_NV = logits_of(control.model, features_of(control.model, test.images))
    rows["trunk, same budget"] = metrics_of(control_NV[judge], test.tags[judge])
    record_training("trunk, same budget", control.seconds, control.images)
    for name, row in rows.items():
        gain = paired_difference(row["p_at_1"], rows["trunk, same budget"]["p_at_1"], RESAMPLES, 0)
        results.record(
            f"P@1 of {name}",
            p_at_1=round(float(row["p_at_1"].mean()), 4),
            r_at_5=round(float(row["r_at_5"].mean()), 4),
            p_at_1_gain=round(gain.mean, 4),
            p_at_1_gain_ci95=[round(gain.low, 4), round(gain.high, 4)],
        )


if __name__ == "__main__":
    main()
