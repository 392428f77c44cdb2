"""Answers among many hashtags, a part of the posts at a time: the same whatever the part, in memory that is bounded."""

import json
import weakref

import numpy as np
import pytest
import torch

from helpers.growing import add_shard, growing_study, make, opened
from moe_core.evaluation import answers
from moe_core.evaluation.answers import Answer, ReadLayers
from moe_core.serving.bundle import Bundle
from moe_core.stages.evaluation import evaluation, score
from moe_core.stages.evaluation.predictions import open_controls
from moe_core.stages.mixture import bundle
from moe_core.training.posts import ImagesInMemory, Posts

HASHTAGS, WIDTH = 20_000, 4


def layer(seed):
    torch.manual_seed(seed)
    return torch.nn.Linear(WIDTH, HASHTAGS)


def some_posts(count):
    draw = np.random.default_rng(0)
    starts_N1 = np.concatenate([[0], draw.integers(1, 4, count).cumsum()])
    tags = np.concatenate([draw.choice(HASHTAGS, n, replace=False) for n in np.diff(starts_N1)])
    return Posts(
        ImagesInMemory(np.zeros((count, 1, 1, 3), np.uint8)), torch.from_numpy(tags), torch.from_numpy(starts_N1)
    )


def test_parts_hold_each_post_once_and_one_layer(monkeypatch):
    monkeypatch.setattr(answers, "PART_BYTES", 4 * HASHTAGS * 3)
    features_ND, layer_N = torch.rand(20, WIDTH), np.arange(20) % 3
    answer = Answer(features_ND, [layer(k) for k in range(3)], layer_N)
    parts = list(answer.parts())
    assert sorted(np.concatenate(parts).tolist()) == list(range(20))
    assert {len(part) for part in parts} == {1, 3}
    for rows_B in parts:
        (number,) = set(layer_N[rows_B])
        assert torch.allclose(answer.logits(rows_B, "cpu"), answer.layers[number](features_ND[rows_B]), atol=1e-6)


def test_of_layers_that_are_read_the_last_one_is_kept():
    reads = []
    layers = ReadLayers(3, lambda number: reads.append(number) or layer(number))
    first = weakref.ref(layers[0])
    assert layers[0] is first()
    assert len(layers) == 3
    layers[2]
    assert first() is None
    assert reads == [0, 2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study with its controls, all of it measured."""
    folder = tmp_path_factory.mktemp("answers")
    for number in (0, 1):
        add_shard(folder / "source", number)
    study = growing_study(folder / "source", experts=2, controls=True)
    make(study, folder / "store", "evaluation")
    return opened(study, folder / "store")


def test_a_table_is_the_same_in_parts_of_any_size(finished, monkeypatch, tmp_path):
    before = json.loads(finished.need("evaluation").file("table.json").read_text())
    largest = []
    for posts in (3, 7):
        monkeypatch.setattr(answers, "PART_BYTES", posts * 4 * before["hashtags"])
        monkeypatch.setattr(score, "CHUNK", 3 * posts + 1)
        evaluation.make(finished, finished.spec("evaluation"), tmp_path)
        now = json.loads((tmp_path / "table.json").read_text())
        for row, old in zip(now["rows"], before["rows"], strict=True):
            for name, value in row.items():
                numbers = not isinstance(value, str | None)
                assert value == (pytest.approx(old[name], abs=2e-5) if numbers else old[name]), (row["name"], name)
        assert now["per_expert"] == before["per_expert"]
        largest.append(now["router_weight"])
    assert largest[0] == largest[1] == before["router_weight"]


def test_choices_of_the_mixture_are_the_same_in_parts_of_any_size(finished, monkeypatch):
    before = finished.need("mixture").metadata
    monkeypatch.setattr(answers, "PART_BYTES", 2 * 4 * len(Bundle(finished.need("mixture").path).hashtags))
    experts = {key: finished.need("expert", key) for key in finished.experts}
    chosen, _ = bundle.choose(finished, finished.need("trunk"), finished.need("shared_decoder"), experts)
    for name, value in chosen.items():
        assert value == (pytest.approx(before[name], abs=2e-4) if name.startswith("validation") else before[name]), name


def test_controls_answer_through_one_layer_or_each_its_own(finished):
    controls = open_controls(finished, Bundle(finished.need("mixture").path), "cpu")
    layers = {row: control.layers for row, control in controls.items()}
    assert layers["random_partition"] == 1
    assert layers["separate_decoders_top1"] == len(finished.experts)
    for control in controls.values():
        assert control.network(0) is not control.network(0), "none is kept"
        assert not list(control.network(0).fc.parameters()), "its last layer is read by itself"
