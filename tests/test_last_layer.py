"""The refit of the one decoder: what travels to the device, and when images are read. cpu:0 is another device."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.random_posts import random_posts
from moe_core import threads
from moe_core.models.resnet import build
from moe_core.settings import Network, Study, Training
from moe_core.stages import reading
from moe_core.stages.experts import shared_decoder
from moe_core.training import last_layer
from moe_core.training.infer import BATCH, features_of
from moe_core.training.last_layer import refit
from moe_core.training.order import TOGETHER, moves_of
from moe_core.training.posts import ImagesInMemory

DEVICE, WIDTH = "cpu:0", 8


def decoder():
    torch.manual_seed(0)
    return torch.nn.Linear(WIDTH, 4)


def features(count):
    return torch.rand(count, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("room", [1 << 30, 0], ids=["fit", "too many"])
def test_no_step_waits_for_a_copy_and_features_that_fit_are_copied_once(monkeypatch, room):
    posts, waits = random_posts(), []
    wanted, layer = decoder(), decoder()
    loss = refit(wanted, features(len(posts)), posts, 2 * TOGETHER, 0.5, "softmax", 0)
    monkeypatch.setattr(last_layer, "bytes_for_posts", lambda mib, device: room)
    to = torch.Tensor.to

    def counted(tensor, *where, **how):
        if where == (DEVICE,):
            waits.append(not how.get("non_blocking", False))
        return to(tensor, *where, **how)

    monkeypatch.setattr(torch.Tensor, "to", counted)
    assert refit(layer, features(len(posts)), posts, 2 * TOGETHER, 0.5, "softmax", 0, device=DEVICE) == loss
    assert torch.equal(layer.weight, wanted.weight)
    assert waits.count(True) == (1 if room else 0), "before the first step"
    assert waits.count(False) >= 2 * 2, "places and tags of each block"


def test_images_of_an_expert_are_read_ahead_moved_as_they_were_drawn(monkeypatch):
    training, count = Training(crop=2, flip=True, precision="float32"), 2 * BATCH
    posts, expert_N = random_posts(2 * count), np.arange(2 * count) % 2
    network, fitted, readers = build(Network(widths=(4,), depths=(1,), embedding=WIDTH), 4, 0), [], set()
    read = ImagesInMemory.read

    def seen(images, rows_B, moves=None):
        readers.add(threading.current_thread())
        return read(images, rows_B, moves)

    monkeypatch.setattr(ImagesInMemory, "read", seen)
    monkeypatch.setattr(reading, "index", lambda context: SimpleNamespace(use=lambda split: np.ones(2 * count, bool)))
    monkeypatch.setattr(reading, "posts_where", lambda context, index, use_N: posts)
    monkeypatch.setattr(reading, "assigned", lambda context, column: expert_N)
    monkeypatch.setattr(reading, "embedder", lambda context, artifact: network)
    monkeypatch.setattr(threads, "use", lambda work: 1)
    monkeypatch.setattr(
        shared_decoder, "refit", lambda layer, features_ND, *rest, **how: fitted.append(features_ND) or 0
    )
    context = SimpleNamespace(
        study=Study(expert_training=training), experts=["e000", "e001"], need=lambda *names: names, report=print
    )
    shared_decoder.refit_on_posts(context, decoder(), SimpleNamespace(column="expert", stage="expert"), "cpu")
    assert threading.main_thread() not in readers, "a GPU would wait for what is decoded meanwhile"
    for number in (0, 1):
        rows = np.flatnonzero(expert_N == number)
        moved = read(posts.images, rows, moves_of((count,), training, number))
        assert torch.equal(fitted[0][rows], features_of(network, ImagesInMemory(moved), "float32"))
