"""A step of the last layer with 100,000 hashtags: the loss of a post's few tags against one of dense targets.

Both train the same layer on the same features from the same weights, in turn in one process: forward, loss, backward,
step. The dense step is what hardmoe had before: targets (B, V), cross-entropy against their shares, and an optimizer
that goes over each weight several times. Printed are the medians, their ratio and the difference of the losses.
Example: python benchmarks/loss.py --repeats 15
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import moe_core  # noqa: F401  # before torch: it sets how threads wait
from moe_core.training.loop import uses_bfloat16
from moe_core.training.losses import hashtag_loss
from moe_core.training.posts import ImagesInMemory, Posts


def dense_loss(logits_BV: Tensor, targets_BV: Tensor, kind: str) -> Tensor:
    if kind == "sigmoid":
        return F.binary_cross_entropy_with_logits(logits_BV.float(), targets_BV, reduction="none").sum(1).mean()
    logits_BV = logits_BV.float()
    share_BV = targets_BV / targets_BV.sum(1, keepdim=True).clamp(min=1)
    return F.cross_entropy(logits_BV, share_BV)


def dense(posts: Posts, kind: str, logits_BV: Tensor, rows_B: np.ndarray) -> Tensor:
    return dense_loss(logits_BV, posts.targets(rows_B, logits_BV.shape[1]), kind)


def few_tags(posts: Posts, kind: str, logits_BV: Tensor, rows_B: np.ndarray) -> Tensor:
    return hashtag_loss(logits_BV, torch.from_numpy(posts.tags_of(rows_B)), kind)


def drawn(posts: int, hashtags: int, most: int) -> Posts:
    """One to `most` distinct tags a post."""
    draw = np.random.default_rng(0)
    counts_N = draw.integers(1, most + 1, posts)
    tags = [draw.choice(hashtags, count, replace=False) for count in counts_N]
    starts_N1 = np.concatenate([[0], counts_N.cumsum()]).astype(np.int64)
    images = ImagesInMemory(np.zeros((posts, 1, 1, 3), np.uint8))
    return Posts(images, torch.from_numpy(np.concatenate(tags)), torch.from_numpy(starts_N1))


def step_of(
    loss: Callable[[Tensor, np.ndarray], Tensor], hashtags: int, width: int, fused: bool
) -> Callable[..., float]:
    """A step on some features of some posts, which returns the loss; in bfloat16 where training computes in that."""
    torch.manual_seed(0)
    layer = nn.Linear(width, hashtags)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, nesterov=True, fused=fused)
    bfloat16 = uses_bfloat16("auto", "cpu")

    def step(features_BD: Tensor, rows_B: np.ndarray) -> float:
        features_BD = features_BD.requires_grad_(True)  # the network below is trained, too
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits_BV = layer(features_BD)
        value = loss(logits_BV, rows_B)
        value.backward()
        optimizer.step()
        return float(value.detach())

    return step


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--hashtags", type=int, default=100_000)
    options.add_argument("--batch", type=int, default=128)
    options.add_argument("--width", type=int, default=512)
    options.add_argument("--tags", type=int, default=10)
    options.add_argument("--repeats", type=int, default=15)
    args = options.parse_args()
    posts = drawn(args.batch * (args.repeats + 1), args.hashtags, args.tags)
    print(f"{args.hashtags:,} hashtags, batch {args.batch}, width {args.width}, {torch.get_num_threads()} threads")
    for kind in ("softmax", "sigmoid"):
        steps = {
            "dense": step_of(partial(dense, posts, kind), args.hashtags, args.width, fused=False),
            "few tags": step_of(partial(few_tags, posts, kind), args.hashtags, args.width, fused=True),
        }
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        apart = 0.0
        for repeat in range(args.repeats + 1):
            rows_B = np.arange(repeat * args.batch, (repeat + 1) * args.batch)
            features_BD = torch.randn(args.batch, args.width, generator=torch.Generator().manual_seed(repeat))
            losses = {}
            for name, step in steps.items():
                began = time.perf_counter()
                losses[name] = step(features_BD.clone(), rows_B)
                if repeat:  # the first warms up
                    seconds[name].append(time.perf_counter() - began)
            apart = max(apart, abs(losses["dense"] / losses["few tags"] - 1))
        before, now = (statistics.median(values) for values in seconds.values())
        print(
            f"{kind}: dense {1000 * before:.0f} ms, few tags {1000 * now:.0f} ms a step; {before / now:.2f} times as "
            f"fast (target 1.5); losses apart by at most {apart:.1e} of themselves (target 1e-6)"
        )


if __name__ == "__main__":
    main()
