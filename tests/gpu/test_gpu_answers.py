"""Features, clusters, measures and answers on a GPU, against the same on the CPU; `pytest -m gpu tests/gpu`."""

import numpy as np
import pytest
import torch

from helpers.bundles import EXPERTS, bundle_at, images, random_parts, room_for
from helpers.random_posts import random_posts
from moe_core.clustering import device_kmeans
from moe_core.clustering.device_search import by_faiss, by_torch
from moe_core.clustering.faiss_build import sees_gpus
from moe_core.clustering.gate import Gate
from moe_core.clustering.kmeans import assign, fit_kmeans
from moe_core.clustering.whitening import Whitening
from moe_core.evaluation.answers import Answer
from moe_core.evaluation.metrics import per_post
from moe_core.serving.bundle import Bundle
from moe_core.serving.routed import routed


def unit(count, width, seed):
    x_NP = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return x_NP / np.linalg.norm(x_NP, axis=1, keepdims=True)


@pytest.mark.parametrize("stays", [device_kmeans.STAYS, 0.0], ids=["posts on the device", "posts in memory"])
def test_kmeans_ends_where_it_ends_on_the_cpu(device, stays, monkeypatch):
    monkeypatch.setattr(device_kmeans, "STAYS", stays)
    monkeypatch.setattr(device_kmeans, "PART_BYTES", 1000 * 16 * 4)
    x_NP = unit(5000, 16, 0)
    starts = [x_NP[first : first + 12] for first in (0, 100)]
    wanted_KP, objective = device_kmeans.best_fit(x_NP, starts, 10, ["cpu"])
    found_KP, found = device_kmeans.best_fit(x_NP, starts, 10, [device])
    assert found == pytest.approx(objective, rel=1e-5)
    assert np.abs(found_KP - wanted_KP).max() < 1e-3


def test_an_empty_cluster_takes_half_of_the_same_one_as_on_the_cpu(device):
    x_NP = unit(400, 8, 0)
    start_KP = x_NP[[0, 1, 2, 0, 0]]  # of equal centroids the first takes all posts
    wanted_KP, _ = device_kmeans.best_fit(x_NP, [start_KP], 3, ["cpu"], by_torch)
    assert device_kmeans.best_fit(x_NP, [start_KP], 3, [device], by_torch)[0] == pytest.approx(wanted_KP, abs=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: its twin needs FAISS (tests)")
def test_faiss_and_torch_end_with_the_same_centroids():
    if not sees_gpus():
        pytest.skip("needs a FAISS that is built for GPUs")
    x_NP = unit(5000, 16, 0)
    wanted_KP, objective = device_kmeans.best_fit(x_NP, [x_NP[:12]], 10, ["cuda:0"], by_torch)
    found_KP, found = device_kmeans.best_fit(x_NP, [x_NP[:12]], 10, ["cuda:0"], by_faiss)
    assert found == pytest.approx(objective, rel=1e-5)
    assert np.abs(found_KP - wanted_KP).max() < 1e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: a CPU fits with FAISS")
def test_a_fit_that_continues_another_needs_no_faiss():
    x_NP = unit(5000, 16, 0)
    centroids_KP, objective = fit_kmeans(x_NP, 12, 10, 1, 0, x_NP[:12])
    wanted_KP, wanted = device_kmeans.best_fit(x_NP, [x_NP[:12]], 10, ["cpu"])
    assert objective == pytest.approx(wanted, rel=1e-5)
    assert centroids_KP == pytest.approx(wanted_KP, abs=1e-3)


def test_distances_and_assignments_are_those_of_the_cpu(device):
    features_ND = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32)
    whitening = Whitening(features_ND.mean(0), np.diag(1 / features_ND.std(0)).astype(np.float32))
    gate = Gate(whitening, unit(6, 8, 1), np.arange(6) // 2)
    assert gate.distances(features_ND, device) == pytest.approx(gate.distances(features_ND), abs=1e-4)
    white_NP = whitening.apply(features_ND, device)
    assert white_NP == pytest.approx(whitening.apply(features_ND), abs=1e-5)
    same = assign(white_NP, gate.centroids_MP, device=device) == assign(white_NP, gate.centroids_MP, device="cpu")
    assert same.mean() > 0.999  # of two centroids as near as rounding, either may be taken


def test_measures_are_those_of_the_cpu(device):
    layer, posts = torch.nn.Linear(16, 5000), random_posts()
    answer = Answer(torch.rand(64, 16, generator=torch.Generator().manual_seed(0)), [layer])
    for rows_B in answer.parts():
        tags = posts.tag_rows(rows_B)
        here, there = (per_post(answer.logits(rows_B, place).softmax(1), *tags) for place in (device, "cpu"))
        for name, values_B in there.items():
            assert here[name] == pytest.approx(values_B, abs=1e-3), name


@pytest.mark.parametrize("branch_at", [0, 1])
@pytest.mark.parametrize("topk", [1, 2])
def test_a_bundle_answers_as_on_the_cpu_and_reads_each_expert_once(device, branch_at, topk, tmp_path):
    folder = bundle_at(
        tmp_path / "bundle", random_parts(tmp_path, branch_at), "mixture_top1_router", branch_at, "float32"
    )
    bundle, stream = Bundle(folder), [images(9, seed) for seed in range(6)]
    here, there = (
        torch.cat([a.probabilities_BV.cpu() for a in routed(bundle, stream, window=2, topk=topk, device=place)])
        for place in (device, "cpu")
    )
    assert torch.allclose(here, there, atol=1e-3)
    experts = bundle.experts_on(device)
    assert experts.reads <= EXPERTS
    with experts.using("e000") as state:
        assert {tensor.device.type for tensor in state.values()} == {device}


def test_no_more_experts_lie_on_the_device_than_there_is_room_for(device, tmp_path):
    folder = bundle_at(tmp_path / "bundle", random_parts(tmp_path, 0), precision="float32")
    room, stream = room_for(folder, 2), [images(30, seed) for seed in range(4)]
    small, whole = Bundle(folder, room), Bundle(folder)
    here, there = (list(routed(bundle, stream, window=1, device=device)) for bundle in (small, whole))
    for one, other in zip(here, there, strict=True):
        assert torch.allclose(one.probabilities_BV, other.probabilities_BV, atol=1e-6)
    experts = small.experts_on(device)
    assert experts.most_held_bytes <= room
    assert experts.reads > whole.experts_on(device).reads
    for key in experts.held:
        with experts.using(key) as state:
            assert {tensor.device.type for tensor in state.values()} == {device}
