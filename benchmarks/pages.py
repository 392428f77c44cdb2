"""Training with tensors in huge pages, as hardmoe asks Linux for, against pages of 4 KiB.

Two processes train the same tiny network on the same posts, an epoch each in turn. Printed are the medians of processor
time, which another program changes little, and their ratio. Where /sys/kernel/mm/transparent_hugepage/enabled says
"never" there is nothing to compare.
Example: python benchmarks/pages.py --side 32 64 --repeats 7
"""

import argparse
import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection

import numpy as np
import torch

from moe_core import threads
from moe_core.models.resnet import build
from moe_core.settings import Network, Training
from moe_core.training.loop import train
from moe_core.training.posts import ImagesInMemory, Posts

POSTS, HASHTAGS = 2048, 107


def epochs(connection: Connection, side: int) -> None:
    """Trains an epoch whenever it is asked to, and sends the seconds of processor time that it took."""
    torch.set_num_threads(1)
    draw = np.random.default_rng(0)
    images = ImagesInMemory(draw.integers(0, 256, (POSTS, side, side, 3), np.uint8))
    posts = Posts(images, torch.from_numpy(draw.integers(0, HASHTAGS, POSTS)), torch.arange(POSTS + 1))
    while connection.recv():
        model = build(Network(), HASHTAGS, seed=0)
        began = time.process_time()
        for _ in train(model, posts, Training(epochs=1)):
            pass
        connection.send(time.process_time() - began)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--side", type=int, nargs="+", default=[32, 64])
    options.add_argument("--repeats", type=int, default=7)
    args = options.parse_args()
    spawn = multiprocessing.get_context("spawn")
    print(f"waiting: {threads.waiting()}; one thread, {POSTS} posts an epoch")
    for side in args.side:
        seconds: dict[str, list[float]] = {"0": [], "1": []}
        connections = {}
        for huge in seconds:
            os.environ["THP_MEM_ALLOC_ENABLE"] = huge
            connections[huge], there = spawn.Pipe()
            spawn.Process(target=epochs, args=(there, side), daemon=True).start()
        for repeat in range(args.repeats + 1):
            for huge, connection in connections.items():
                connection.send(True)
                took = connection.recv()
                if repeat:  # the first warms up
                    seconds[huge].append(took)
        small, large = (statistics.median(values) for values in seconds.values())
        for connection in connections.values():
            connection.send(False)
        print(f"{side} px: {1000 * small:.0f} ms, in huge pages {1000 * large:.0f}; {small / large:.2f} times as fast")


if __name__ == "__main__":
    main()
