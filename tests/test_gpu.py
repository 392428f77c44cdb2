"""Runs where only torch, numpy and pytest are; `pytest -m gpu`."""

from types import SimpleNamespace

import pytest
import torch

from moe_core.models.resnet import build
from moe_core.training.batches import batches
from moe_core.training.infer import features_of
from moe_core.training.loop import train
from moe_core.training.posts import ImagesInMemory, Posts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
NETWORK = SimpleNamespace(block="basic", stem="small", widths=(8, 16), depths=(1, 1), embedding=16)
TRAINING = SimpleNamespace(
    epochs=20,
    batch_size=16,
    accumulate=1,
    lr=0.1,
    momentum=0.9,
    weight_decay=0.0,
    schedule="one-cycle",
    warmup=0.2,
    loss="softmax",
    resample="off",
    resample_below=1000,
    flip=True,
    crop=1,
    precision="auto",
    device_mib=0,
    checkpoint_seconds=1e9,
    seed=0,
)


def posts():
    draw = torch.Generator().manual_seed(0)
    tags = torch.arange(64) % 4
    images = torch.randint(0, 60, (64, 16, 16, 3), dtype=torch.uint8, generator=draw)
    images += (tags * 60).to(torch.uint8)[:, None, None, None]  # a tag is a brightness
    return Posts(ImagesInMemory(images.numpy()), tags, torch.arange(65))


def test_features_are_those_of_the_cpu():
    model = build(NETWORK, 4, seed=0)
    on_cpu = features_of(model, posts().images, "float32", "cpu")
    on_gpu = features_of(model, posts().images, "float32", "cuda")
    assert on_gpu == pytest.approx(on_cpu, abs=1e-2)  # TF32 convolutions


def test_training_learns():
    losses = [m.loss for m in train(build(NETWORK, 4, seed=0), posts(), TRAINING, device="cuda")]
    assert losses[-1] < 0.5 * losses[0]


def test_batches_made_on_the_device_are_those_of_the_cpu():
    there = posts().on_device(1 << 20, "cuda")
    for one, other in zip(batches(posts(), TRAINING, 0, 9), batches(there, TRAINING, 0, 9), strict=True):
        assert other.images_BCHW.is_cuda
        assert torch.equal(one.images_BCHW, other.images_BCHW.cpu())
        assert torch.equal(one.tags_BM, other.tags_BM.cpu())


def test_training_learns_from_images_that_stay_on_the_device():
    training = SimpleNamespace(**vars(TRAINING) | {"device_mib": 1})
    losses = [m.loss for m in train(build(NETWORK, 4, seed=0), posts(), training, device="cuda")]
    assert losses[-1] < 0.5 * losses[0]
