"""The gate on a device: what is there at once, and what is brought back. cpu:0 is another device by its name."""

import numpy as np
import pytest
import torch

from helpers.memory import LiveBytes
from moe_core.clustering import product
from moe_core.clustering.gate import Gate
from moe_core.clustering.kmeans import assign
from moe_core.clustering.whitening import Whitening, whiten
from moe_core.stages import reading
from moe_core.stages.gate import posts

POSTS, WIDTH, CENTROIDS, EXPERTS = 600, 8, 200, 3
DEVICE = "cpu:0"


@pytest.fixture
def features_ND():
    features_ND = np.random.default_rng(0).normal(0, range(1, WIDTH + 1), (POSTS, WIDTH)).astype(np.float32)
    features_ND.flags.writeable = False  # as Lance gives them
    return features_ND


@pytest.fixture
def gate(features_ND):
    whitening = whiten([features_ND], WIDTH)
    return Gate(whitening, whitening.apply(features_ND[:CENTROIDS]), np.arange(CENTROIDS) % EXPERTS)


@pytest.fixture
def brought(monkeypatch):
    """Bytes that come back from the device, a copy at a time."""
    copies = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: copies.append(tensor.nbytes) or tensor)
    return copies


def test_few_products_are_there_at_once_however_many_centroids_and_posts_there_are(monkeypatch, gate, features_ND):
    monkeypatch.setattr(product, "BYTES_AT_ONCE", 4 * CENTROIDS * 10)
    x_NP = gate.whitening.apply(features_ND)
    for compute in (lambda: gate.nearest(features_ND, DEVICE), lambda: assign(x_NP, gate.centroids_MP, DEVICE)):
        with LiveBytes() as live:
            compute()
        assert live.peak < 4 * CENTROIDS * WIDTH + 3 * product.BYTES_AT_ONCE


def test_of_a_post_its_distances_to_experts_come_back_and_its_centroid(gate, features_ND, brought):
    gate.nearest(features_ND, DEVICE)
    assert brought == [POSTS * EXPERTS * 4]
    brought.clear()
    assign(features_ND, gate.centroids_MP, DEVICE)
    assert brought == [POSTS * 8]


def test_distances_and_weights_are_those_of_the_cpu(gate, features_ND):
    assert gate.distances(features_ND, DEVICE) == pytest.approx(gate.distances(features_ND), abs=1e-5)
    here_NK, there_NK = (gate.weights(features_ND, 2, 0.5, device) for device in ("cpu", DEVICE))
    assert here_NK == pytest.approx(there_NK, abs=1e-5)


def test_of_the_fitted_posts_a_part_is_whitened_at_a_time_whatever_the_shards(monkeypatch, gate, features_ND):
    sizes = []
    apply = Whitening.apply

    def counted(whitening, part_BD, device="cpu"):
        sizes.append(len(part_BD))
        return apply(whitening, part_BD, device)

    def shards(*ends):
        places = np.split(np.arange(POSTS), ends)
        parts = [(features_ND[rows], slice(rows[0], rows[-1] + 1)) for rows in places]
        monkeypatch.setattr(reading, "trunk_features", lambda context: iter(parts))

    wanted_N = np.arange(POSTS) % 3 > 0
    monkeypatch.setattr(Whitening, "apply", counted)
    shards(50, 60, 400)
    whole_FP = posts.whitened(None, gate.whitening, wanted_N)
    assert sizes == [400]
    assert np.array_equal(whole_FP, apply(gate.whitening, features_ND[wanted_N]))
    monkeypatch.setattr(product, "BYTES_AT_ONCE", 4 * WIDTH * 150)
    found = []
    for ends in ((50, 60, 400), (300,)):
        sizes.clear()
        shards(*ends)
        found.append(posts.whitened(None, gate.whitening, wanted_N))
        assert sizes == [150, 150, 100]
    assert np.array_equal(*found)
    assert found[0] == pytest.approx(whole_FP, abs=1e-5)
