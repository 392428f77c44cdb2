"""A small joint training, and processes that take part or die in it."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import torch

from moe_core.models.resnet import build
from moe_core.settings import Decoder, Network, Training
from moe_core.training.joint import Joint, take_part, trained_expert
from moe_core.training.posts import ImagesInMemory, Posts

TINY = Network(widths=(4, 8), depths=(1, 1), embedding=8)
TRAINING = Training(epochs=5, batch_size=8, lr=0.1, checkpoint_seconds=1e-9)


def random_posts(count):
    images = np.random.default_rng(count).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return Posts(ImagesInMemory(images), torch.arange(count) % 4, torch.arange(count + 1))


def network(key):
    return build(TINY, 4, seed=0)


def joint(folder, sizes=(40, 16, 24), rounds=2, **more):
    """Experts with 25, 10 and 15 steps."""
    posts = {f"e{number:03d}": random_posts(size) for number, size in enumerate(sizes)}
    return Joint(folder, posts, network, TRAINING, Decoder(mode="joint", rounds=rounds, **more))


def finish(one):
    torch.set_num_threads(1)
    for _ in take_part(one):
        pass
    return {key: trained_expert(one, key) for key in one.posts}


def work(folder):
    finish(joint(folder))


def die_at_a_rename(folder, before):
    """By SIGKILL, before its second rename or after its first: every attempt gets one rename further."""
    rename, done = Path.replace, []

    def replace(self, target):
        if before and done:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(self, target)
        done.append(target)
        if not before:
            os.kill(os.getpid(), signal.SIGKILL)

    Path.replace = replace
    work(folder)


def hold(folder):
    """Takes an expert and goes no further."""
    torch.set_num_threads(1)
    for _ in take_part(joint(folder)):
        (folder / "held").touch()
        time.sleep(300)


# What a child would import for a second each; joint_work itself is not on the fork server's path.
PRELOAD = [
    "moe_core.models.resnet",
    "moe_core.training.joint",
    "moe_core.settings",
    "safetensors.torch",
    "torch._dynamo",
]
