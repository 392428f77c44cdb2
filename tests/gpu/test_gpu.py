"""What trains and answers on a GPU, against the same on the CPU; `pytest -m gpu tests/gpu`.

Each test runs on the CPU, too, in its place. They need torch, numpy, pillow, pytest, safetensors and pydantic alone.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.joint_work import joint
from helpers.random_posts import bright_posts, random_posts
from moe_core.models.resnet import build
from moe_core.settings import Network, Training
from moe_core.training import loop
from moe_core.training.batches import batches
from moe_core.training.infer import features_of
from moe_core.training.joint import take_part, trained_expert
from moe_core.training.last_layer import refit
from moe_core.training.loop import train
from moe_core.training.posts import ImagesInMemory

ROOT = Path(__file__).parents[2]
NETWORK = Network(widths=(8, 16), depths=(1, 1), embedding=16)
BOTTLENECK = Network(block="bottleneck", stem="imagenet", widths=(8, 16), depths=(1, 2), embedding=0)
TRAINING = Training(epochs=10, batch_size=8, lr=0.1, precision="float32", deterministic=True)


def network(seed=0, of=NETWORK):
    return build(of, 4, seed)


def same(one, other, atol=0.0):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.allclose(a.cpu().double(), b.cpu().double(), atol=atol, rtol=atol) for a, b in pairs)


def losses(device, **changes):
    return [m.loss for m in train(network(), bright_posts(), TRAINING.model_copy(update=changes), device=device)]


def test_batches_are_those_of_the_cpu_wherever_the_posts_lie(device):
    training = TRAINING.model_copy(update={"crop": 2})
    wanted = list(batches(random_posts(), training, 0, 70))
    on_device = random_posts().on_device(1 << 20, device)
    for posts in (random_posts(), on_device):
        for one, other in zip(wanted, batches(posts, training, 0, 70, device=device, threads=2), strict=True):
            assert other.images_BCHW.device.type == other.tags_BM.device.type == device
            assert torch.equal(one.images_BCHW, other.images_BCHW.cpu())
            assert torch.equal(one.tags_BM, other.tags_BM.cpu())


def test_features_are_those_of_the_cpu(device):
    wanted = features_of(network(), random_posts().images, "float32", "cpu")
    assert features_of(network(), random_posts().images, "float32", device) == pytest.approx(wanted, abs=1e-2)


@pytest.mark.parametrize("changes", [{}, {"precision": "bfloat16"}, {"device_mib": 0}, {"accumulate": 2}])
def test_training_learns_as_on_the_cpu(device, changes):
    here, there = losses(device, **changes), losses("cpu", **changes)
    assert here[-1] < 0.7 * here[0]
    assert np.mean(here) == pytest.approx(np.mean(there), rel=0.1)


@pytest.mark.parametrize("of", [NETWORK, BOTTLENECK], ids=["basic", "bottleneck"])
@pytest.mark.parametrize("changes", [{}, {"capture": True}, {"precision": "bfloat16"}], ids=str)
def test_a_resumed_run_ends_in_the_same_bits(device, of, changes, tmp_path):
    training = TRAINING.model_copy(update=changes)
    whole, part, resumed = network(0, of), network(0, of), network(9, of)
    list(train(whole, random_posts(), training, device=device))
    list(train(part, random_posts(), training, device=device, until=33, checkpoint=tmp_path / "c"))
    list(train(resumed, random_posts(), training, device=device, checkpoint=tmp_path / "c"))
    assert same(whole, resumed)


DETERMINISTIC = """
import sys, torch
from helpers.random_posts import random_posts
from moe_core.models.resnet import build
from moe_core.settings import Network, Training
from moe_core.training.loop import let_products_repeat, train
device = sys.argv[1]
let_products_repeat()
torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)
model = build(Network(widths=(4, 8), depths=(1, 1), embedding=8), 4, seed=0)
list(train(model, random_posts(), Training(epochs=2, batch_size=8, deterministic=True), device=device))
"""


def test_a_worker_that_has_used_the_device_trains_deterministically(device):
    """Whether cuBLAS repeats itself, torch asks the environment once in a process: at the first product."""
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = ['.', 'tests']{DETERMINISTIC}", device]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("of", [NETWORK, BOTTLENECK], ids=["basic", "bottleneck"])
def test_a_captured_step_trains_as_one_that_is_not(device, of, precision):
    """A CPU captures nothing: the setting changes nothing there."""
    training, seen = TRAINING.model_copy(update={"precision": precision}), {}
    models = {capture: network(0, of) for capture in (False, True)}
    for capture, model in models.items():
        training = training.model_copy(update={"capture": capture})
        seen[capture] = [m.loss for m in train(model, bright_posts(), training, device=device)]
    assert seen[True] == pytest.approx(seen[False], rel=1e-3)
    assert same(*models.values(), atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: a CPU has nothing to wait for")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("device_mib", [0, "auto"])
def test_between_two_readings_no_step_waits_for_the_device(device_mib, capture, monkeypatch):
    read, readings_at = loop.Readings.read, []

    def reading(readings):
        torch.cuda.set_sync_debug_mode("default")  # waits, as does the look at the weights after it
        result = read(readings)
        readings_at.append(readings.first)
        return result

    monkeypatch.setattr(loop.Readings, "read", reading)
    changes = {"epochs": 40, "device_mib": device_mib, "capture": capture, "deterministic": False}
    try:
        for _ in train(network(), random_posts(), TRAINING.model_copy(update=changes), device="cuda"):
            torch.cuda.set_sync_debug_mode("error")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert readings_at[-1] == 320
    assert len(readings_at) > 1


def test_rounds_of_joint_experts_end_near_those_of_the_cpu(device, tmp_path):
    ends = {}
    for name, place in (("here", device), ("cpu", "cpu")):
        work = joint(tmp_path / name)
        for _ in take_part(work, device=place):
            pass
        ends[name] = {key: trained_expert(work, key) for key in work.posts}
    for key, state in ends["cpu"].items():
        moved = torch.cat([tensor.flatten().double() for tensor in ends["here"][key].values()])
        wanted = torch.cat([tensor.flatten().double() for tensor in state.values()])
        assert (moved - wanted).norm() < 0.2 * wanted.norm()


def test_images_of_joint_experts_are_brought_to_the_device_once_for_all_rounds(device, tmp_path, monkeypatch):
    read, images = ImagesInMemory.read, []

    def counted(self, rows_B, moves=None):
        images.append(len(rows_B))
        return read(self, rows_B, moves)

    monkeypatch.setattr(ImagesInMemory, "read", counted)
    for _ in take_part(joint(tmp_path, rounds=4), device=device):
        pass
    seen = 8 * (25 + 10 + 15)  # a batch of 8 for each step of the three experts
    assert sum(images) < 100 if device == "cuda" else sum(images) >= seen


def test_a_decoder_is_refitted_as_on_the_cpu(device):
    features_ND = torch.rand(64, 16, generator=torch.Generator().manual_seed(0))
    fitted = {}
    for place in ("cpu", device):
        decoder = network().fc
        loss = refit(decoder, features_ND, random_posts(), 20, 0.5, "softmax", 0, device=place)
        fitted[place] = loss, decoder
        assert decoder.weight.device.type == "cpu"
    assert fitted[device][0] == pytest.approx(fitted["cpu"][0], rel=1e-3)
    assert same(fitted[device][1], fitted["cpu"][1], atol=1e-3)
