"""Experts on a device: how many, which one is read first, and what travels. cpu:0 is another device by its name."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.bundles import EXPERTS, bundle_at, images, random_parts, room_for
from helpers.publishing import hardmoe
from moe_core.serving import routed as serving
from moe_core.serving.bundle import Bundle, BundlePart
from moe_core.serving.routed import routed
from moe_core.training.posts import ImagesInMemory
from moe_core.weights import load_weights, save_weights

DEVICE = "cpu:0"


@pytest.fixture(scope="module", params=[0, 1], ids=["whole", "branches"])
def folder(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("bundle")
    parts = random_parts(root, request.param)
    return bundle_at(root / "bundle", parts, "mixture_top1_router", request.param, "float32")


@pytest.fixture
def copies(monkeypatch):
    """Devices that tensors are brought to, of which none is there."""
    monkeypatch.setattr("torch.cuda.current_device", lambda: 3)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (1 << 40, 1 << 40))
    to = []
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *where, **how: to.extend(where) or tensor)
    return to


def test_what_another_thread_reads_goes_to_the_current_device_of_the_one_that_asks(folder, copies):
    bundle = Bundle(folder)
    bundle.router_on("cuda")
    bundle.decoder_on("cuda")
    bundle.experts_on("cuda").each(["e000", "e001", "e002"], lambda key, state: None)
    assert set(copies) == {"cuda:3"}
    assert bundle.experts_on("cuda") is bundle.experts_on("cuda:3")


@pytest.mark.parametrize(
    ("given", "free", "held"), [(None, 6, 3), (2, 20, 2), (9, 8, 4), (2, 0, 2)], ids=["half", "given", "less", "two"]
)
def test_a_gpu_holds_experts_in_half_of_what_is_free_or_in_what_was_given(folder, monkeypatch, given, free, held):
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (room_for(folder, free), 1 << 40))
    bundle = Bundle(folder, given and room_for(folder, given))
    assert bundle.experts_on("cuda").most_bytes == room_for(folder, held)


def test_a_gpu_holds_more_than_memory_where_it_has_more(folder, monkeypatch):
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (80 << 30, 80 << 30))
    assert Bundle(folder).experts_on("cuda:0").most_bytes == 40 << 30


def test_of_many_posts_a_chunk_begins_with_the_experts_that_are_held(folder):
    bundle, pictures, expert_N = Bundle(folder, room_for(folder, 3)), images(12), np.arange(12) % EXPERTS
    for _ in range(3):
        found_ND = bundle.features_by_expert(expert_N, ImagesInMemory(pictures))
    assert bundle.experts.reads <= EXPERTS + 2 * 2, "in ascending order each chunk would read all of them"
    for number, key in enumerate(bundle.published):
        rows = np.flatnonzero(expert_N == number)
        wanted_MD = bundle.expert_features(key, ImagesInMemory(pictures[rows]))
        assert found_ND[rows].numpy() == pytest.approx(wanted_MD.numpy(), abs=1e-5)


def test_a_window_takes_one_copy_of_places_and_answers_stay_on_the_device(folder, monkeypatch):
    batches, pinned, brought, filled = [images(6, seed) for seed in range(8)], [], [], []
    bundle = Bundle(folder)

    def counted(tensor, device):
        pinned.append(tensor.dtype)
        return tensor

    def on_the_way(tensor):
        pending = [tensor]
        filled.append(pending)
        return pending.pop

    network_filled = Bundle.filled

    @contextmanager
    def one_expert(bundle, state, device="cpu"):
        begun = len(filled)
        with network_filled(bundle, state, device) as network:
            yield network
            assert not any(filled[begun:]), "all of its parts have arrived"

    monkeypatch.setattr(serving, "pinned", counted)
    monkeypatch.setattr(serving, "on_the_way", on_the_way)
    monkeypatch.setattr(Bundle, "filled", one_expert)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: brought.append(tensor.shape) or tensor)
    answers = list(routed(bundle, batches, window=4, device=DEVICE))
    assert pinned.count(torch.int64) == 2, "one a window"
    assert brought == []
    assert len(filled) == len(batches) + 2 * 3, "features of each batch, and of each published expert in a window"
    assert len(answers) == 8


def test_of_equally_probable_hashtags_the_first_are_predicted(tmp_path):
    parts = random_parts(tmp_path, 0)
    state, about = load_weights(parts.decoder.path)
    save_weights(tmp_path / "flat.safetensors", {name: torch.zeros_like(t) for name, t in state.items()}, about)
    parts.decoder = BundlePart(tmp_path / "flat.safetensors", "1")
    folder = bundle_at(tmp_path / "bundle", parts, precision="float32")
    for seed in range(4):
        Image.fromarray(images(1, seed)[0]).save(tmp_path / f"{seed}.png")
    files = [tmp_path / f"{seed}.png" for seed in range(4)]
    result = hardmoe("predict", "--bundle", folder, "--top", 3, *files)
    answers = [line.split("]")[1].split() for line in result.output.splitlines() if "trunk" not in line]
    assert answers
    assert all(words == ["a", "0.200", "b", "0.200", "c", "0.200"] for words in answers)
