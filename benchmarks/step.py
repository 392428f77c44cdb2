"""A training step of hardmoe's loop against the same network in a bare loop on tensors in memory.

The bare loop does what any training has to: batches by index from one tensor, flips and crops, forward, loss, backward,
SGD; no store, no threads, no checkpoint, no log, no look at the loss. On the CPU the images are a numpy array in
memory, augmented batch by batch; on a GPU a byte tensor there, augmented there, for both. The two take turns in one
process, a stretch of steps each, and the ratio is that of the sums of their times.

Example: python benchmarks/step.py --steps 40 --turns 10
"""

import argparse
import time
from collections.abc import Callable, Generator, Iterator

import numpy as np
import torch
import torch.nn.functional as F

from moe_core.models.resnet import build
from moe_core.settings import Network, Training
from moe_core.training.batches import MEAN, STD
from moe_core.training.loop import train, uses_bfloat16
from moe_core.training.posts import ImagesInMemory, Posts

HASHTAGS, POSTS, CROP = 500, 20_000, 4
NETWORKS = {
    "tiny": (Network(), 32),
    "wide": (Network(widths=(32, 64, 128)), 32),
    "resnet18": (Network(widths=(64, 128, 256, 512), depths=(2, 2, 2, 2), embedding=0), 64),
}


def drawn(side: int) -> tuple[np.ndarray, np.ndarray]:
    """((N, H, W, C) uint8, (N,) int64): noise, a tag each."""
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (POSTS, side, side, 3), dtype=np.uint8), draw.integers(0, HASHTAGS, POSTS)


def bare(network: Network, images: np.ndarray, tags: np.ndarray, training: Training, device: str) -> Iterator[None]:
    """One step each time it is asked."""
    model = build(network, HASHTAGS, 0).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)
    there_NHWC = torch.from_numpy(images).to(device)
    tags_N = torch.from_numpy(tags).to(device)
    mean_C, std_C = (torch.tensor(value, device=device)[:, None, None] for value in (MEAN, STD))
    size, side = training.batch_size, images.shape[1]
    draw = np.random.default_rng(0)
    bfloat16 = uses_bfloat16(training.precision, device)
    while True:
        for rows in np.array_split(draw.permutation(POSTS)[: POSTS // size * size], POSTS // size):
            if device == "cpu":
                padded = np.pad(images[rows], ((0, 0), (CROP, CROP), (CROP, CROP), (0, 0)))
                seen = np.empty((size, side, side, 3), np.uint8)
                flips, corners = draw.integers(0, 2, size).tolist(), draw.integers(0, 2 * CROP + 1, (size, 2)).tolist()
                for n, (flip, (y, x)) in enumerate(zip(flips, corners, strict=True)):
                    window = padded[n, y : y + side, x : x + side]
                    seen[n] = window[:, ::-1] if flip else window
                seen_BHWC = torch.from_numpy(seen)
            else:
                padded_BHWC = F.pad(there_NHWC[torch.from_numpy(rows).to(device)], (0, 0, CROP, CROP, CROP, CROP))
                y_B, x_B = torch.randint(0, 2 * CROP + 1, (2, size), device=device)
                across = torch.arange(side, device=device)
                flip_B1 = torch.rand(size, 1, device=device) < 0.5
                x_BW = x_B[:, None] + torch.where(flip_B1, side - 1 - across, across)
                each = torch.arange(size, device=device)[:, None, None]
                seen_BHWC = padded_BHWC[each, (y_B[:, None] + across)[:, :, None], x_BW[:, None, :]]
            x_BCHW = seen_BHWC.permute(0, 3, 1, 2).float().sub(mean_C).div(std_C)
            targets_BV = F.one_hot(tags_N[torch.from_numpy(rows).to(device)], HASHTAGS).float()
            with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
                logits_BV = model(x_BCHW.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits_BV.float(), targets_BV)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            yield


def ours(network: Network, images: np.ndarray, tags: np.ndarray, training: Training, device: str) -> Generator[None]:
    """Ten steps each time it is asked, as `train` measures."""
    posts = Posts(ImagesInMemory(images), torch.from_numpy(tags), torch.arange(POSTS + 1))
    for _ in train(build(network, HASHTAGS, 0), posts, training, device=device):
        yield


def timed(work: Callable[[], object], device: str) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    began, began_busy = time.perf_counter(), time.process_time()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, time.process_time() - began_busy


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=["tiny"])
    options.add_argument("--batch", type=int, default=128)
    options.add_argument("--steps", type=int, default=40, help="a turn, a multiple of 10")
    options.add_argument("--turns", type=int, default=10)
    args = options.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name in args.networks:
        network, side = NETWORKS[name]
        images, tags = drawn(side)
        training = Training(epochs=1e5, batch_size=args.batch, lr=1e-3, crop=CROP)
        mine, other = ours(network, images, tags, training, device), bare(network, images, tags, training, device)
        turns = (
            lambda other=other: [next(other) for _ in range(args.steps)],
            lambda mine=mine: [next(mine) for _ in range(args.steps // 10)],
        )
        seconds, busy = np.zeros((2, args.turns)), np.zeros((2, args.turns))
        for turn in range(args.turns + 1):  # the first warms up
            for who in (0, 1) if turn % 2 else (1, 0):
                took = timed(turns[who], device)
                if turn:
                    seconds[who, turn - 1], busy[who, turn - 1] = took
        mine.close()
        bare_rate, our_rate = args.turns * args.steps * args.batch / seconds.sum(1)
        print(
            f"{name}, {side} px, batch {args.batch}, {device}, {torch.get_num_threads()} threads: bare loop "
            f"{bare_rate:,.0f} images/s, hardmoe {our_rate:,.0f} images/s, ratio {our_rate / bare_rate:.3f} (target "
            f"0.95), of processor time {busy[0].sum() / busy[1].sum():.3f}"
        )


if __name__ == "__main__":
    main()
