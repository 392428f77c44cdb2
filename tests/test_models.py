import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from moe_core.models.cost import multiply_adds, parameters
from moe_core.models.resnet import build, shared_layer_names
from moe_core.recipes import resnet18_k16, resnet50_k32
from moe_core.serving.branches import ExpertTemplate, fused
from moe_core.settings import Network, Training
from moe_core.training.loop import train
from moe_core.training.posts import ImagesInMemory, Posts
from moe_core.weights import load_weights, save_weights

NETWORKS = {
    "tiny": Network(widths=(4, 8, 16), depths=(1, 1, 1), embedding=0),
    "tiny_embedding": Network(widths=(4, 8, 16), depths=(1, 1, 1), embedding=24),
    "bottleneck": Network(block="bottleneck", widths=(4, 8), depths=(1, 2), embedding=0),
    "imagenet_stem": Network(stem="imagenet", widths=(8, 8, 8, 8), depths=(1, 1, 1, 1), embedding=0),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    return NETWORKS[request.param]


def test_shapes(network):
    model = build(network, 5, seed=0)
    x_BCHW = torch.randn(3, 3, 32, 32)
    assert model.features(x_BCHW).shape == (3, model.width)
    assert model(x_BCHW).shape == (3, 5)


def test_every_parameter_gets_a_gradient(network):
    model = build(network, 5, seed=0)
    model(torch.randn(4, 3, 32, 32)).pow(2).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


BACKWARD = """
import torch
from moe_core.models.resnet import build
from moe_core.settings import Network

for block in ("basic", "bottleneck"):
    model = build(Network(block=block, widths=(4, 8), depths=(1, 1), embedding=0), 5, seed=0)
    images_BCHW = torch.randn(3, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.to(memory_format=torch.channels_last)(images_BCHW).float().square().mean()
    loss.backward()
"""


def test_no_stride_is_taken_in_the_gradient_that_writes_beyond_its_buffer():
    verbose = {**os.environ, "ONEDNN_VERBOSE": "1"}
    said = subprocess.run([sys.executable, "-c", BACKWARD], env=verbose, check=True, capture_output=True, text=True)
    gradients = [line for line in said.stdout.splitlines() if ",backward_weights," in line]
    if not gradients:
        pytest.skip("oneDNN computes no bfloat16 on this processor")
    assert any("sh2" in line for line in gradients), "those of 3x3 convolutions are there"
    assert [line for line in gradients if "kh1sh2" in line] == []


def test_a_shortcut_answers_and_learns_as_a_strided_convolution():
    ours = build(NETWORKS["tiny"], 5, seed=0).layer2[0].downsample[0]
    theirs = nn.Conv2d(4, 8, 1, stride=2, bias=False)
    theirs.load_state_dict(ours.state_dict())
    images_BCHW = torch.randn(5, 4, 9, 8)
    assert torch.allclose(ours(images_BCHW), theirs(images_BCHW), atol=1e-6)
    for one in (ours, theirs):
        one(images_BCHW).square().sum().backward()
    assert torch.allclose(ours.weight.grad, theirs.weight.grad, rtol=1e-4)


def test_sixteen_images_are_learned_by_heart(network):
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    posts = Posts(ImagesInMemory(images.permute(0, 2, 3, 1).numpy()), torch.arange(16), torch.arange(17))
    model = build(network, 16, seed=0)
    steady = Training(epochs=300, batch_size=16, lr=0.1, flip=False, crop=0, weight_decay=0, precision="float32")
    last = list(train(model, posts, steady))[-1]
    assert last.loss < 0.1


def test_same_seed_same_weights_and_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    first, second = (build(NETWORKS["tiny"], 5, seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert torch.equal(before, torch.random.get_rng_state())


def test_cost_of_a_network_small_enough_to_count_by_hand():
    model = build(Network(widths=(2,), depths=(1,), embedding=0), 3, seed=0)
    # conv1 3*2*9, two convolutions 2*2*9, all on 8x8 pixels; three batch norms of 2+2; the decoder 2*3 (+3 biases)
    assert multiply_adds(model, 8) == 64 * (54 + 36 + 36) + 6
    assert parameters(model) == 54 + 36 + 36 + 3 * 4 + 9
    assert multiply_adds(model, 8, after=1) == 6  # of its one stage nothing is left


@pytest.mark.parametrize("stages", [0, 1])
def test_an_expert_in_a_bundle_computes_what_its_network_does_up_to_rounding(network, stages):
    router, expert = build(network, 5, seed=0), build(network, 5, seed=1)
    for model in (router, expert):
        model.train()(torch.randn(8, 3, 32, 32))  # batch norms that have seen something
    for mine, theirs in zip(expert.shared_layers(stages), router.shared_layers(stages), strict=True):
        mine.load_state_dict(theirs.state_dict())
    body = ExpertTemplate(network, router.eval(), stages)
    names = tuple(f"{name}." for name in shared_layer_names(stages))
    own = {name: tensor for name, tensor in expert.state_dict().items() if not name.startswith(names)}
    x_BCHW = torch.randn(3, 3, 32, 32)
    with torch.inference_mode(), body.filled(fused(own)) as filled:
        got_BD, wanted_BD = filled.features(x_BCHW), expert.eval().features(x_BCHW)
        assert got_BD.numpy() == pytest.approx(wanted_BD.numpy(), abs=1e-5)
        assert torch.equal(
            filled.forward_rest((router if stages else filled).forward_stem(x_BCHW, stages), stages), got_BD
        )
    norms = [n for n, m in filled.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [name for name in norms if not f"{name}.".startswith(names)] == []


def test_resnet50_has_torchvisions_size_and_names():
    resnet50 = Network(
        block="bottleneck", stem="imagenet", widths=(64, 128, 256, 512), depths=(3, 4, 6, 3), embedding=0
    )
    model = build(resnet50, 1000, seed=0)
    assert parameters(model) == 25_557_032  # torchvision's documented number
    assert {"conv1.weight", "layer1.0.downsample.0.weight", "layer4.2.bn3.running_var"} <= set(model.state_dict())


def test_weights_come_back_with_what_was_said_about_them(tmp_path):
    save_weights(tmp_path / "w.safetensors", {"a": torch.ones(2)}, {"step": "3"})
    state, about = load_weights(tmp_path / "w.safetensors")
    assert state["a"].tolist() == [1, 1]
    assert about == {"step": "3"}


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"layer1.w holds a number that is not finite"):
        save_weights(tmp_path / "w.safetensors", {"layer1.w": torch.tensor([1.0, float("nan")])}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_weights_file_is_refused(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="not a readable weights file"):
        load_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize(("recipe", "weights"), [(resnet18_k16, 11_689_512), (resnet50_k32, 25_557_032)])
def test_recipes_for_gpus_have_torchvisions_sizes_and_take_steps(recipe, weights):
    # the numbers of parameters are torchvision's for 1,000 classes
    model = build(recipe().network, 1000, seed=0)
    assert parameters(model) == weights
    size = recipe().data.image_size
    pixels = torch.randint(0, 255, (4, size, size, 3), dtype=torch.uint8)
    posts = Posts(ImagesInMemory(pixels.numpy()), torch.arange(4), torch.arange(5))
    training = recipe().trunk.model_copy(update={"epochs": 2, "batch_size": 2})
    assert [m.step for m in train(model, posts, training)][-1] == 4
