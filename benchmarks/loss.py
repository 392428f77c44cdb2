"""A step of the last layer with 100,000 hashtags: the loss of a post's few tags against one of dense targets.

All train the same layer on the same features from the same weights, each in a process of its own, in turn: forward,
loss, backward, step. The dense step is what hardmoe had before: targets (B, V), cross-entropy against their shares, an
optimizer that goes over each weight several times, and tensors in pages of 4 KiB. The third, the dense step in huge
pages, says which part is the loss. Printed are the medians, their ratios and the largest difference of the losses.
Example: python benchmarks/loss.py --repeats 15
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

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
    tags_BM = posts.tags_of(rows_B)
    post, place = np.nonzero(tags_BM >= 0)
    targets_BV = np.zeros(logits_BV.shape, np.float32)
    targets_BV[post, tags_BM[post, place]] = 1.0
    return dense_loss(logits_BV, torch.from_numpy(targets_BV), kind)


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


def steps(connection: Connection, kind: str, few: bool, posts: Posts, hashtags: int, width: int) -> None:
    """Makes a step on each rows and features that it is sent, and sends the loss and the seconds that it took."""
    torch.manual_seed(0)
    layer = nn.Linear(width, hashtags)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, nesterov=True, fused=few)
    bfloat16 = uses_bfloat16("auto", "cpu")
    while (sent := connection.recv()) is not None:
        rows_B, features_BD = sent
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits_BV = layer(features_BD.requires_grad_(True))  # the network below is trained, too
        value = (few_tags if few else dense)(posts, kind, logits_BV, rows_B)
        value.backward()
        optimizer.step()
        connection.send((float(value.detach()), time.perf_counter() - began))


CONTESTANTS = {"dense": (False, "0"), "dense in huge pages": (False, "1"), "few tags": (True, "1")}


@contextmanager
def started(kind: str, posts: Posts, hashtags: int, width: int) -> Iterator[dict[str, Connection]]:
    """A process of each contestant, with the pages that it has."""
    spawn, connections = multiprocessing.get_context("spawn"), {}
    for name, (few, huge_pages) in CONTESTANTS.items():
        os.environ["THP_MEM_ALLOC_ENABLE"] = huge_pages
        connections[name], there = spawn.Pipe()
        spawn.Process(target=steps, args=(there, kind, few, posts, hashtags, width), daemon=True).start()
    yield connections
    for connection in connections.values():
        connection.send(None)


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
        seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
        apart = 0.0
        with started(kind, posts, args.hashtags, args.width) as connections:
            for repeat in range(args.repeats + 1):
                rows_B = np.arange(repeat * args.batch, (repeat + 1) * args.batch)
                features_BD = torch.randn(args.batch, args.width, generator=torch.Generator().manual_seed(repeat))
                losses = {}
                for name, connection in connections.items():
                    connection.send((rows_B, features_BD))
                    losses[name], took = connection.recv()
                    if repeat:  # the first warms up
                        seconds[name].append(took)
                apart = max(apart, abs(losses["dense"] / losses["few tags"] - 1))
        before, paged, now = (statistics.median(values) for values in seconds.values())
        print(
            f"{kind}: dense {1000 * before:.0f} ms, in huge pages {1000 * paged:.0f}, few tags {1000 * now:.0f} ms; "
            f"{before / now:.2f} times as fast (target 1.5), {paged / now:.2f} times in the same pages; losses apart "
            f"by at most {apart:.1e} of themselves (target 1e-6)"
        )


if __name__ == "__main__":
    main()
