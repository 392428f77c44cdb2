"""Bytes that live at once where many hashtags are answered among, for choices on validation posts and for the table.

100,000 hashtags and 50,000 posts, scaled down: a part has 5 posts, and a last layer as many bytes as a part.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.bundles import EXPERTS, NETWORK, bundle_at, images, random_parts
from helpers.memory import LiveBytes
from moe_core.evaluation import answers
from moe_core.evaluation.answers import Answer
from moe_core.models.resnet import build
from moe_core.serving.bundle import Bundle
from moe_core.settings import Study, Training
from moe_core.stages.evaluation import predictions, score
from moe_core.stages.evaluation.predictions import Control
from moe_core.stages.mixture import calibrate
from moe_core.stages.reading import RoutedPosts
from moe_core.training.posts import ImagesInMemory, Posts

HASHTAGS, WIDTH = 20_000, 6
PART = 4 * HASHTAGS * 5
LAYER = 4 * HASHTAGS * (WIDTH + 1)


@pytest.fixture(autouse=True)
def _parts_of_five_posts(monkeypatch):
    monkeypatch.setattr(answers, "PART_BYTES", PART)


def layer(seed):
    torch.manual_seed(seed)
    return torch.nn.Linear(WIDTH, HASHTAGS)


def routed_posts(count, experts=EXPERTS):
    draw = np.random.default_rng(0)
    starts_N1 = np.concatenate([[0], draw.integers(1, 4, count).cumsum()])
    tags = np.concatenate([draw.choice(HASHTAGS, n, replace=False) for n in np.diff(starts_N1)])
    posts = Posts(ImagesInMemory(images(count)), torch.from_numpy(tags), torch.from_numpy(starts_N1))
    features_ND = draw.random((count, WIDTH), np.float32)
    return RoutedPosts(posts, features_ND, draw.integers(0, experts, count), draw.integers(0, experts, count))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    tags = [f"tag{number}" for number in range(HASHTAGS)]
    return Bundle(bundle_at(folder / "bundle", random_parts(folder, 0, hashtags=HASHTAGS), tags=tags))


def test_choices_on_validation_posts_hold_no_more_however_many_posts_there_are(bundle):
    decoder, peaks = layer(0), []
    for count in (5, 50):
        some = routed_posts(count)
        own, router = (Answer(torch.rand(count, WIDTH), [decoder]) for _ in range(2))
        experts = [lambda sample: Answer(torch.rand(len(sample), WIDTH), [decoder])] * EXPERTS
        with LiveBytes() as live, torch.no_grad():
            weight = calibrate.router_weight("validation", own, router, some.posts, "softmax", "cpu")
            measured = calibrate.measures(own, router, weight, some.posts, "softmax", "cpu")
            calibrate.temperature("validation", bundle.gate, 2, some, experts, "softmax", "cpu")
        assert len(measured["trunk"]["cross_entropy"]) == count
        peaks.append(live.peak)
    assert peaks[1] < peaks[0] + PART / 10  # their features and measures
    assert peaks[1] < LAYER + 10 * PART


def control(experts, shared):
    """A control of networks that are built when they are wanted."""

    def network(number):
        model = build(NETWORK, 1, number)
        model.fc = torch.nn.Identity()
        return model

    return Control(network, layer, 1 if shared else experts, WIDTH, "random", router_weight=0.2)


def test_the_table_holds_no_more_however_many_posts_and_control_networks_there_are(bundle, monkeypatch):
    monkeypatch.setattr(predictions, "hashtag_frequency", lambda context: np.ones(HASHTAGS, np.float32) / HASHTAGS)
    reports, peaks = [], []
    context = SimpleNamespace(study=Study(expert_training=Training(precision="float32")), report=reports.append)
    for count, experts in ((30, 2), (120, 16)):
        test = routed_posts(count, experts)
        test = replace(test, expert_N=test.expert_N % EXPERTS)
        controls = {"random_partition": control(experts, True), "separate_decoders_top1": control(experts, False)}
        with LiveBytes() as live, torch.no_grad():
            scores, *_ = score.score(context, bundle, controls, test, "cpu")
        for name in ("mixture_top1", "separate_decoders_top1_router"):
            assert np.isfinite(scores[name]["p_at_1"]).all()
        peaks.append(live.peak)
    assert peaks[1] < peaks[0] + LAYER / 2
    assert peaks[1] < 3 * LAYER + 14 * PART
