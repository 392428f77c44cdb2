"""Mixing the router's answer in, what validation posts choose, paired differences and the dense control's size."""

from pkgutil import resolve_name
from typing import get_args

import numpy as np
import pytest
import torch

from moe_core.clustering.gate import Gate
from moe_core.clustering.whitening import Whitening
from moe_core.evaluation.answers import Answer
from moe_core.models.cost import multiply_adds
from moe_core.models.resnet import build, build_on_meta
from moe_core.recipes import resnet18_k16, small
from moe_core.settings import Decoder, Evaluation, Network, Study, Training, TrunkSetup
from moe_core.stages.evaluation.rows import controls_of
from moe_core.stages.evaluation.score import gains_over_rows
from moe_core.stages.experts.controls import training_of, widened
from moe_core.stages.experts.modes import MODES
from moe_core.stages.graph import GRAPH
from moe_core.stages.mixture import calibrate
from moe_core.stages.reading import RoutedPosts
from moe_core.training.infer import mixed
from moe_core.training.posts import ImagesInMemory, Posts

TWO = torch.tensor([0, 1])  # the one tag of each of two posts


def saying(logits):
    """An answer that has these logits."""
    width = len(logits[0]) if len(logits) else 2
    same = torch.nn.Linear(width, width, bias=True)
    with torch.no_grad():
        same.weight.copy_(torch.eye(width))
        same.bias.zero_()
    return Answer(torch.tensor(logits).reshape(-1, width), [same])


def posts(tags=TWO):
    images = ImagesInMemory(np.zeros((len(tags), 8, 8, 3), np.uint8))
    return Posts(images, tags, torch.arange(len(tags) + 1))


def test_mixing_is_the_geometric_mean_of_two_answers():
    one, other = torch.tensor([[0.8, 0.2]]), torch.tensor([[0.5, 0.5]])
    found = mixed(one.log(), other.log(), 0.5, "softmax")
    # (0.8 x 0.5)^1/2 : (0.2 x 0.5)^1/2 = 2 : 1
    assert found.numpy() == pytest.approx(np.array([[2 / 3, 1 / 3]]), abs=1e-6)
    assert torch.equal(mixed(one.log(), other.log(), 0.0, "softmax"), one.log().softmax(1))


def test_with_the_sigmoid_loss_the_mean_is_that_of_the_logits():
    found = mixed(torch.tensor([[4.0, -2.0]]), torch.tensor([[-4.0, 2.0]]), 0.5, "sigmoid")
    assert found.tolist() == [[0.5, 0.5]]  # sigmoid(0) each, scaled to one


@pytest.mark.parametrize(
    ("expert", "router", "weight"),
    [
        ([[9.0, 0.0], [0.0, 9.0]], [[0.0, 0.0], [0.0, 0.0]], 0.0),  # the expert is right, the router knows nothing
        ([[0.0, 0.0], [0.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]], 0.7),  # the other way round: the most there is
        ([[3.0, 0.0], [3.0, 0.0]], [[0.0, 3.0], [0.0, 3.0]], 0.5),  # each is wrong once: best is to say neither
        ([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]], 0.0),  # alike: of equally good ones the smallest
    ],
)
def test_the_router_weight_is_the_one_with_the_lowest_cross_entropy(expert, router, weight):
    both = saying(expert), saying(router), posts(), "softmax", "cpu"
    assert calibrate.router_weight("validation", *both) == weight
    assert calibrate.router_weight(0.25, *both) == 0.25


def test_without_validation_posts_weight_and_temperature_are_fixed():
    none = posts(torch.tensor([], dtype=torch.int64))
    asked = RoutedPosts(none, np.zeros((0, 2), np.float32), np.zeros(0, int), np.zeros(0, int))
    nothing = saying([])
    assert calibrate.router_weight("validation", nothing, nothing, none, "softmax", "cpu") == calibrate.WEIGHT
    assert calibrate.temperature("validation", None, 2, asked, [], "softmax", "cpu") == calibrate.TEMPERATURE
    assert calibrate.temperature(0.4, None, 2, asked, [], "softmax", "cpu") == 0.4


def test_the_answer_is_chosen_by_cross_entropy_not_by_one_right_post_more():
    def measures(right, entropy):
        return {"p_at_1": np.array([1.0] * right + [0.0] * (10 - right)), "cross_entropy": np.full(10, entropy)}

    alone, mixed = measures(5, 2.0), measures(4, 1.9)
    assert calibrate.answer({"mixture_top1": alone, "mixture_top1_router": mixed}) == "mixture_top1_router"
    assert calibrate.answer({"mixture_top1": alone, "mixture_top1_router": alone}) == "mixture_top1"


@pytest.mark.parametrize(("near_is_right", "wanted"), [(True, 0.02), (False, 1.0)])
def test_the_temperature_trusts_the_nearest_expert_as_far_as_it_is_right(near_is_right, wanted):
    centroids_KP = np.eye(2, dtype=np.float32)
    gate = Gate(Whitening(np.zeros(2, np.float32), np.eye(2, dtype=np.float32)), centroids_KP, np.arange(2))
    right, wrong = (saying(np.log(p).tolist()) for p in ([[0.9, 0.1], [0.1, 0.9]], [[0.1, 0.9], [0.9, 0.1]]))
    asked = RoutedPosts(posts(), np.array([[1, 0.5], [1, 0.5]], np.float32), np.zeros(2, int), np.zeros(2, int))
    experts = [lambda _: right, lambda _: wrong]
    answers = experts if near_is_right else experts[::-1]
    assert calibrate.temperature("validation", gate, 2, asked, answers, "softmax", "cpu") == wanted


def test_paired_differences_by_hand():
    def scored(p_at_1):
        return dict.fromkeys(("p_at_1", "r_at_5", "r_at_10"), np.array(p_at_1))

    found = gains_over_rows(
        "best", {"best": scored([1.0, 1.0]), "half": scored([1.0, 0.0]), "same": scored([1.0, 1.0])}, 50
    )
    assert set(found) == {"half", "same"}
    assert found["half"]["p_at_1_gain"] == found["half"]["r_at_10_gain"] == 0.5
    assert found["half"]["p_at_1_gain_ci95"] == [0.0, 1.0]
    assert found["same"] == {
        f"{name}_gain{what}": value
        for name in ("p_at_1", "r_at_5", "r_at_10")
        for what, value in (("", 0.0), ("_ci95", [0.0, 0.0]))
    }


def test_the_wider_network_by_hand():
    """64 pixels of w channels: 27 w + 18 w^2 multiply-adds each, and 3 w of the last layer. w=2: 8,070; w=3: 15,561."""
    assert widened(Network(widths=(2,), depths=(1,), embedding=0), 3, 8, times=2).widths == (3,)
    assert widened(Network(widths=(2,), depths=(1,), embedding=0), 3, 8, times=1).widths == (2,)


@pytest.mark.parametrize("study", [small(), resnet18_k16()])
def test_the_wider_network_is_as_dear_as_it_may_be_and_keeps_its_embedding(study):
    wide = widened(study.network, 500, study.data.image_size, times=2)
    cost = {n: multiply_adds(build_on_meta(n, 500), study.data.image_size) for n in (study.network, wide)}
    assert 0.9 < cost[wide] / (2 * cost[study.network]) <= 1
    assert wide.embedding == study.network.embedding
    assert wide.model_copy(update={"widths": study.network.widths}) == study.network


def test_a_hollow_network_is_counted_as_a_whole_one():
    network = Network(widths=(4, 8), depths=(1, 2), embedding=12)
    assert multiply_adds(build_on_meta(network, 7), 16) == multiply_adds(build(network, 7, 0), 16)


def test_the_wider_network_is_trained_for_the_multiply_adds_of_trunk_and_experts():
    study = Study(
        trunk=Training(epochs=22, accumulate=2), expert_training=Training(epochs=8), trunk_setup=TrunkSetup(ranks=3)
    )
    found = training_of(study, times=1.5)
    assert (found.epochs, found.accumulate) == (20, 6)
    assert found.model_copy(update={"epochs": 22.0, "accumulate": 2}) == study.trunk


def test_a_study_can_leave_the_wider_network_out():
    without = Study(evaluation=Evaluation(dense_control=False))
    every, rest = (set(controls_of(GRAPH.for_study(study))) for study in (Study(), without))
    assert every - rest == {"dense_same_cost"}
    assert "trunk_same_budget" in rest
    assert "dense_same_cost" not in GRAPH.for_study(without)


def test_every_decoder_mode_of_the_settings_is_one_of_the_stage():
    assert get_args(Decoder.model_fields["mode"].annotation) == tuple(MODES)
    assert [name for name, mode in MODES.items() if mode.joint] == ["joint"]
    used = {name for mode in MODES.values() for name in mode.settings}
    assert used <= set(Decoder.model_fields)
    assert all(callable(resolve_name(mode.fit)) for mode in MODES.values())
