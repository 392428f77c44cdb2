"""Ranks of one training on GPUs, against one process on the CPU; `pytest -m gpu tests/gpu`."""

import pytest
import torch

from helpers.random_posts import random_posts
from helpers.rank_work import TRAINING, network, trained_by_ranks
from moe_core.training.loop import train

GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0


def on_gpus(count, *values):
    why = "needs a CUDA device" if count == 1 else f"needs {count} CUDA devices"
    return pytest.param(*values, marks=[pytest.mark.gpu, pytest.mark.skipif(count > GPUS, reason=why)])


def distance(one, other):
    return sum(float((one[name] - other[name]).norm()) for name in one if name.endswith("weight"))


@pytest.mark.parametrize(
    ("backend", "devices"),
    [
        ("gloo", ["cpu", "cpu"]),
        on_gpus(1, "gloo", ["cuda:0", "cuda:0"]),
        on_gpus(2, "nccl", ["cuda:0", "cuda:1"]),
    ],
    ids=["cpu", "one card", "nccl"],
)
def test_two_ranks_are_one_process_that_adds_up_two_batches(backend, devices, tmp_path):
    one, two = trained_by_ranks(tmp_path / "ranks", backend, devices)
    assert all(torch.equal(one[name], two[name]) for name, _ in network().named_parameters())
    alone = network()
    list(train(alone, random_posts(), TRAINING.model_copy(update={"accumulate": 2})))
    assert distance(one, alone.state_dict()) < 0.05 * distance(one, network().state_dict())


@pytest.mark.parametrize(
    ("backend", "device"), [("gloo", "cpu"), on_gpus(1, "nccl", "cuda:0")], ids=["cpu", "nccl on one card"]
)
def test_the_only_rank_there_is_trains_on_its_part(backend, device, tmp_path):
    """NCCL wants a card for each rank; of the first rank of two one card shows all but that gradients travel."""
    (here,) = trained_by_ranks(tmp_path / "here", backend, [device])
    (there,) = trained_by_ranks(tmp_path / "there", "gloo", ["cpu"])
    assert distance(here, there) < 0.05 * distance(here, network().state_dict())
