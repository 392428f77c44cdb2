"""Part e: a whole mixture on synthetic posts in device memory, against its controls.

Trunk, k-means, K experts, the same for a random partition, and the trunk trained on for the experts' budget; P@1 and
R@5 of each on held-out posts, with paired 95 % intervals of the difference in P@1 to the same budget. Network,
training (`capture = true`), whitening, k-means, gate and metrics are the project's; there are no graph, no store and no
JPEGs, and features are computed 16,384 at a time. Run in the repository's root:
python benchmarks/gpu/e_mixture.py SECONDS [POSTS]

Letters: N posts, T tags of a post at most, D embedding width, P whitened dimensions, K experts, V hashtags.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
from common import CUDA, DEVICE, Results, parser, sync
from synthetic_posts import synthetic_posts
from torch import Tensor

from moe_core.clustering.device_kmeans import best_fit, devices_for
from moe_core.clustering.gate import Gate
from moe_core.clustering.whitening import whiten
from moe_core.evaluation.metrics import paired_difference, per_post
from moe_core.models.resnet import ResNet, build
from moe_core.settings import Network, Training
from moe_core.training.batches import MEAN, STD
from moe_core.training.loop import train
from moe_core.training.posts import ImagesOnDevice, Posts

SIDE, HELD_OUT = 16, 40_000 if CUDA else 600
NETWORK = Network(widths=(8, 8, 8), depths=(1, 1, 1), embedding=48)  # of the recipe `demo`
ROUTER_WEIGHTS = (0.0, 0.15, 0.3, 0.5)
BATCH, WHITENED, MOMENT_POSTS = 16_384, 128, 500_000
RESAMPLES = 1000
ITERATIONS, RESTARTS = 30, 3


@dataclass(frozen=True)
class Part:
    """Images (N, S, S, 3) uint8 and their tags (N, T), -1 where there is none."""

    images: Tensor
    tags: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def of(self, rows: Tensor | slice) -> "Part":
        return Part(self.images[rows], self.tags[rows])

    def posts(self) -> Posts:
        """The same as the project's loop takes them, images on the device."""
        counts_N = (self.tags >= 0).sum(1).cpu()
        starts_N1 = torch.cat([torch.zeros(1, dtype=torch.int64), counts_N.cumsum(0)])
        return Posts(ImagesOnDevice(self.images), self.tags[self.tags >= 0].cpu(), starts_N1)


@dataclass(frozen=True)
class Trained:
    """A network, and what its training took."""

    model: ResNet
    seconds: float
    images: int


def fit(start: dict[str, Tensor] | None, part: Part, hashtags: int, training: Training, decoder: bool) -> Trained:
    """Trains a network from the weights `start`, or from scratch; `decoder`: the last layer is trained too."""
    model = build(NETWORK, hashtags, training.seed)
    if start is not None:
        model.load_state_dict(start)
    began = time.perf_counter()
    *_, last = train(model, part.posts(), training, train_decoder=decoder, device=DEVICE)
    return Trained(model.eval(), time.perf_counter() - began, last.images_seen)


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


def partition(
    results: Results, trunk: ResNet, train_part: Part, test_part: Part, experts: int, seed: int
) -> list[Mixture]:
    """The mixture by k-means of whitened features, and the random partition into clusters of the same sizes."""
    began = time.perf_counter()
    train_ND, test_ND = features_of(trunk, train_part.images), features_of(trunk, test_part.images)
    some = torch.randperm(len(train_ND), device=DEVICE)[:MOMENT_POSTS]
    whitening = whiten([train_ND[some].cpu().numpy()], WHITENED)
    mean_D = torch.from_numpy(whitening.mean_D).to(DEVICE)
    projection_DP = torch.from_numpy(whitening.projection_DP).to(DEVICE)

    def white(features_ND: Tensor) -> Tensor:
        x_NP = (features_ND - mean_D) @ projection_DP
        return x_NP / x_NP.norm(dim=1, keepdim=True).clamp(min=1e-12)

    train_NP = white(train_ND)
    posts, rng = train_NP.cpu().numpy(), np.random.default_rng(seed)
    starts = [posts[np.sort(rng.choice(len(posts), experts, replace=False))] for _ in range(RESTARTS)]
    fitted_KP, _ = best_fit(posts, starts, ITERATIONS, devices_for(posts.nbytes) if CUDA else ["cpu"])
    centroids_KP = torch.from_numpy(fitted_KP).to(DEVICE)
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
    random_N[torch.randperm(len(train_part), device=DEVICE)] = owners
    random_held_out_N = torch.randint(0, experts, (len(test_part),), device=DEVICE)
    return [Mixture("mixture", expert_N, held_out_N), Mixture("random partition", random_N, random_held_out_N)]


def main() -> None:
    arguments = parser(__doc__, 150)
    arguments.add_argument("posts", nargs="?", type=int, default=2_000_000 if CUDA else 2_000)
    arguments.add_argument("--experts", type=int, default=16 if CUDA else 3)
    arguments.add_argument("--trunk-epochs", type=float, default=4 if CUDA else 1)
    arguments.add_argument("--expert-epochs", type=float, default=3 if CUDA else 1)
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    results, seed, experts = Results("e", options.seconds), options.seed, options.experts
    of_both = Training(flip=False, crop=1, capture=True, seed=seed)
    of_trunk = of_both.model_copy(
        update={"epochs": options.trunk_epochs, "batch_size": 1024 if CUDA else 64, "lr": 1.0 if CUDA else 0.4}
    )
    of_experts = of_both.model_copy(
        update={"epochs": options.expert_epochs, "batch_size": 512 if CUDA else 32, "lr": 0.6 if CUDA else 0.3}
    )

    began = time.perf_counter()
    posts = synthetic_posts(options.posts + HELD_OUT, SIDE, seed)
    everything, hashtags = Part(posts.images_NSS3, posts.tags_NT), len(posts.hashtags)
    test_part, train_part = everything.of(slice(0, HELD_OUT)), everything.of(slice(HELD_OUT, None))
    sync()
    results.record(
        "posts",
        posts=len(train_part),
        side=SIDE,
        gib=round(train_part.images.nbytes / 2**30, 2),
        hashtags=hashtags,
        seconds=round(time.perf_counter() - began, 1),
    )

    def record_training(what: str, seconds: float, images: int) -> None:
        results.record(what, seconds=round(seconds, 1), images=images, images_per_s=round(images / seconds))

    trunk = fit(None, train_part, hashtags, of_trunk, True)
    record_training("trunk", trunk.seconds, trunk.images)
    start = trunk.model.state_dict()
    trunk_NV = logits_of(trunk.model, features_of(trunk.model, test_part.images))
    # the router's weight is chosen on posts that judge nothing
    choose, judge = slice(0, HELD_OUT // 4), slice(HELD_OUT // 4, HELD_OUT)
    rows = {"trunk": metrics_of(trunk_NV[judge], test_part.tags[judge])}
    for mixture in partition(results, trunk.model, train_part, test_part, experts, seed):
        logits_NV, seconds, images = torch.empty(HELD_OUT, hashtags, device=DEVICE), 0.0, 0
        for k in range(experts):
            if results.seconds_left() < 8:
                results.skip(mixture.name, f"{results.seconds_left():.0f} s left at expert {k}")
                return
            expert = fit(start, train_part.of(mixture.expert_N == k), hashtags, of_experts, False)
            mine_N = mixture.held_out_N == k
            logits_NV[mine_N] = logits_of(expert.model, features_of(expert.model, test_part.images[mine_N]))
            seconds, images = seconds + expert.seconds, images + expert.images
        rows[mixture.name] = metrics_of(logits_NV[judge], test_part.tags[judge])
        entropy = {}
        for weight in ROUTER_WEIGHTS:
            mixed = metrics_of(logits_NV.lerp(trunk_NV, weight)[choose], test_part.tags[choose])
            entropy[weight] = float(mixed["cross_entropy"].mean())
        weight = min(entropy, key=lambda weight: entropy[weight])
        mixed_NV = logits_NV.lerp(trunk_NV, weight)
        rows[f"{mixture.name}, router weight {weight}"] = metrics_of(mixed_NV[judge], test_part.tags[judge])
        record_training(mixture.name, seconds, images)
    control = fit(start, train_part, hashtags, of_experts, True)
    control_NV = logits_of(control.model, features_of(control.model, test_part.images))
    rows["trunk, same budget"] = metrics_of(control_NV[judge], test_part.tags[judge])
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
