"""Answers among many hashtags, a part of the posts at a time: the same whatever the part, in memory that is bounded."""

import json

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.growing import add_shard, growing_study, make, opened
from moe_core.evaluation import answers
from moe_core.evaluation.answers import Answer
from moe_core.serving.bundle import Bundle
from moe_core.stages.evaluation import evaluation, score
from moe_core.stages.evaluation.predictions import open_controls
from moe_core.stages.evaluation.score import relevant_tags
from moe_core.stages.mixture import bundle, calibrate
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


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that is made."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.nbytes = max(self.nbytes, tensor.numel() * tensor.element_size())
        return made


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


def test_choices_on_validation_posts_hold_no_more_however_many_posts_there_are(monkeypatch):
    monkeypatch.setattr(answers, "PART_BYTES", 4 * HASHTAGS * 5)
    decoder, found = layer(0), []
    for count in (5, 50):
        posts = some_posts(count)
        own, router = (Answer(torch.rand(count, WIDTH), [decoder]) for _ in range(2))
        with Largest() as largest, torch.no_grad():
            weight = calibrate.router_weight("validation", own, router, posts, "softmax", "cpu")
            measured = calibrate.measures(own, router, weight, posts, "softmax", "cpu")
        assert len(measured["trunk"]["cross_entropy"]) == count
        found.append(largest.nbytes)
    assert found[0] == found[1] == 2 * answers.PART_BYTES  # of whole numbers that order as probabilities do


def test_the_posts_of_map_carry_their_hashtags():
    posts = some_posts(30)
    frequent = sorted(set(posts.tags_T.tolist()))[::2]
    wanted_NV = posts.targets(np.arange(30), HASHTAGS)[:, frequent].numpy() > 0
    assert np.array_equal(relevant_tags(posts, frequent), wanted_NV)


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
    chosen = bundle.choose(finished, finished.need("trunk"), finished.need("shared_decoder"), experts)
    for name, value in chosen.items():
        assert value == (pytest.approx(before[name], abs=2e-4) if name.startswith("validation") else before[name]), name


def test_controls_answer_through_one_layer_or_each_its_own(finished):
    controls = open_controls(finished, Bundle(finished.need("mixture").path), "cpu")
    layers = {row: len(control.layers) for row, control in controls.items()}
    assert layers["random_partition"] == 1
    assert layers["separate_decoders_top1"] == len(finished.experts)
