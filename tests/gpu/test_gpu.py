"""What trains and answers on a GPU, against the same on the CPU; `pytest -m gpu tests/gpu`.

Each test runs on the CPU, too, in its place. They need torch, numpy, pillow, pytest, safetensors and pydantic alone.
"""

import numpy as np
import pytest
import torch

from helpers.bundles import EXPERTS, bundle_at, images, random_parts
from helpers.joint_work import joint
from helpers.random_posts import bright_posts, random_posts
from moe_core.clustering import device_kmeans
from moe_core.evaluation.answers import Answer
from moe_core.evaluation.metrics import per_post
from moe_core.models.resnet import build
from moe_core.serving.bundle import Bundle
from moe_core.serving.routed import routed
from moe_core.settings import Network, Training
from moe_core.training import loop
from moe_core.training.batches import batches
from moe_core.training.infer import features_of
from moe_core.training.joint import take_part, trained_expert
from moe_core.training.last_layer import refit
from moe_core.training.loop import train

CUDA = torch.cuda.is_available()
NETWORK = Network(widths=(8, 16), depths=(1, 1), embedding=16)
TRAINING = Training(epochs=10, batch_size=8, lr=0.1, precision="float32", deterministic=True)


@pytest.fixture(
    params=[
        "cpu",
        pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="needs a CUDA device")]),
    ]
)
def device(request):
    return request.param


def network(seed=0):
    return build(NETWORK, 4, seed)


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


def test_a_resumed_run_ends_in_the_same_bits(device, tmp_path):
    whole, part, resumed = network(), network(), network(9)
    list(train(whole, random_posts(), TRAINING, device=device))
    list(train(part, random_posts(), TRAINING, device=device, until=33, checkpoint=tmp_path / "c"))
    list(train(resumed, random_posts(), TRAINING, device=device, checkpoint=tmp_path / "c"))
    assert same(whole, resumed)


def test_a_captured_step_trains_as_one_that_is_not(device):
    """A CPU captures nothing: the setting changes nothing there."""
    eager, captured = network(), network()
    list(train(eager, bright_posts(), TRAINING, device=device))
    training = TRAINING.model_copy(update={"capture": True})
    seen = [m.loss for m in train(captured, bright_posts(), training, device=device)]
    assert same(eager, captured, atol=1e-4)
    assert seen == pytest.approx(losses(device), rel=1e-3)


@pytest.mark.parametrize("device_mib", [0, "auto"])
def test_between_two_readings_no_step_waits_for_the_device(device, device_mib, monkeypatch):
    if device == "cpu":
        pytest.skip("there is nothing to wait for")
    read, waits = loop.Readings.read, []

    def reading(readings):
        torch.cuda.set_sync_debug_mode("default")  # this is the one
        found = read(readings)
        waits.append(readings.next)
        torch.cuda.set_sync_debug_mode("error")
        return found

    monkeypatch.setattr(loop.Readings, "read", reading)
    training = TRAINING.model_copy(update={"epochs": 40, "device_mib": device_mib, "deterministic": False})
    try:
        for _ in train(network(), random_posts(), training, device=device):
            torch.cuda.set_sync_debug_mode("error")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) > 1


def test_rounds_of_joint_experts_end_near_those_of_the_cpu_and_their_images_stay_on_the_device(device, tmp_path):
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


def unit(count, width, seed):
    x_NP = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return x_NP / np.linalg.norm(x_NP, axis=1, keepdims=True)


def test_kmeans_ends_where_it_ends_on_the_cpu(device):
    x_NP = unit(5000, 16, 0)
    starts = [x_NP[first : first + 12] for first in (0, 100)]
    wanted_KP, objective = device_kmeans.best_fit(x_NP, starts, 10, ["cpu"])
    found_KP, found = device_kmeans.best_fit(x_NP, starts, 10, [device])
    assert found == pytest.approx(objective, rel=1e-5)
    assert np.abs(found_KP - wanted_KP).max() < 1e-3


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
