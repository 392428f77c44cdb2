"""A wider network starts where the narrower one is."""

import json

import numpy as np
import pytest
import torch

from helpers import bundles
from moe_core.errors import CorruptArtifact
from moe_core.models.resnet import ResNet, build
from moe_core.models.widening import fill_wider
from moe_core.serving.bundle import Bundle
from moe_core.serving.onnx_files import export_onnx
from moe_core.serving.routed import predict
from moe_core.settings import Network
from moe_core.store.hashing import with_checksum, without_checksum
from moe_core.training.infer import features_of
from moe_core.training.posts import ImagesInMemory
from moe_core.weights import load_weights

NARROW = Network(widths=(4, 6, 8), depths=(1, 2, 1), embedding=12)


def used(network, hashtags=5):
    """A network whose batch norms have seen something."""
    model = build(network, hashtags, 0).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_()
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(8, 3, 16, 16))
    return model.eval()


@pytest.mark.parametrize(
    ("network", "widths"),
    [
        (NARROW, (4, 9, 20)),
        (NARROW, (7, 9, 20)),
        (NARROW, (4, 6, 8)),
        (NARROW.model_copy(update={"block": "bottleneck"}), (4, 7, 11)),
        (NARROW.model_copy(update={"stem": "imagenet"}), (4, 9, 8)),
    ],
)
def test_it_computes_what_the_narrower_one_does(network, widths):
    torch.manual_seed(0)
    old, new = used(network), build(network.model_copy(update={"widths": widths}), 5, 1)
    fill_wider(old.state_dict(), old, new, seed=3, noise=0)
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(new.eval()(images), old(images), rtol=1e-4, atol=1e-4)


def test_copies_are_set_apart_and_layers_of_the_same_shape_are_not():
    old, new = used(NARROW), build(NARROW.model_copy(update={"widths": (4, 12, 8)}), 5, 1)
    fill_wider(old.state_dict(), old, new, seed=3)
    filters = new.state_dict()["layer2.0.conv1.weight"].flatten(1)
    assert torch.cdist(filters, filters)[~torch.eye(12, dtype=torch.bool)].min() > 0
    before, after = old.state_dict(), new.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith(("conv1", "layer1", "fc")))


def test_the_same_seed_gives_the_same_network():
    wide = NARROW.model_copy(update={"widths": (4, 12, 16)})
    old, one, two = used(NARROW), build(wide, 5, 1), build(wide, 5, 2)
    for new in (one, two):
        fill_wider(old.state_dict(), old, new, seed=3)
    assert all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (4, 5, 8)}, "6 channels do not fit into 5"),
        ({"depths": (1, 1, 1)}, "networks differ in layer2.1"),
        ({"embedding": 0}, "networks differ in bn_embed"),
    ],
)
def test_a_network_that_is_no_wider_one_is_refused(changes, message):
    old = used(NARROW)
    with pytest.raises(ValueError, match=message):
        fill_wider(old.state_dict(), old, build(NARROW.model_copy(update=changes), 5, 1), seed=3)


def test_an_embedding_that_grows_with_the_last_stage_is_refused():
    plain = NARROW.model_copy(update={"embedding": 0})
    old, new = used(plain), build(plain.model_copy(update={"widths": (4, 6, 9)}), 5, 1)
    with pytest.raises(ValueError, match=r"the embedding grew from 8 to 9: wanted network.embedding > 0"):
        fill_wider(old.state_dict(), old, new, seed=3)


WIDE = bundles.NETWORK.model_copy(update={"widths": (4, 11)})


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """(parts of a bundle with wider experts, its folder)"""
    root = tmp_path_factory.mktemp("wide")
    parts = bundles.random_parts(root, 1, expert_network=WIDE)
    return parts, bundles.bundle_at(root / "bundle", parts, branch_at=1, precision="float32", widths=WIDE.widths)


def test_a_bundle_answers_by_its_wider_experts(wide):
    parts, folder = wide
    bundle, pictures = Bundle(folder), bundles.images(9)
    network = build(WIDE, bundles.TAGS, 0)
    network.load_state_dict(load_weights(parts.experts["e001"].path)[0])
    wanted_ND = features_of(network, ImagesInMemory(pictures), "float32").numpy()
    found_ND = bundle.expert_features("e001", ImagesInMemory(pictures)).numpy()
    assert found_ND == pytest.approx(wanted_ND, abs=1e-5)
    probabilities_NV, experts = predict(bundle, pictures)
    rows = [row for row, expert in enumerate(experts) if expert == "e001"]
    wanted_NV = bundle.probabilities(bundle.logits(torch.from_numpy(wanted_ND[rows])))
    assert rows
    assert np.abs(probabilities_NV[rows].numpy() - wanted_NV.detach().numpy()).max() < 1e-5


def test_onnx_files_of_wider_experts_answer_as_they_do(wide, tmp_path):
    pytest.importorskip("onnx", reason="pip install 'hardmoe[onnx]'")
    bundle = Bundle(wide[1])
    done = []
    export_onnx(bundle, tmp_path / "out", report=done.append)  # compares the answers
    assert done == [1, 2, 3, 4]


def test_images_that_pass_a_network_together_are_bounded_by_the_widest_stage(tmp_path, monkeypatch):
    """Two stages of an expert of 8x8 pixels: the second has a quarter of them, and ten times the channels."""
    network = bundles.NETWORK.model_copy(update={"widths": (4, 40)})
    parts = bundles.random_parts(tmp_path, 1, expert_network=network)
    folder = bundles.bundle_at(tmp_path / "b", parts, branch_at=1, precision="float32", widths=network.widths)
    pictures = bundles.images(20, seed=1)
    wanted_NV, _ = predict(Bundle(folder), pictures)
    passed, rest = [], ResNet.forward_rest
    monkeypatch.setattr(ResNet, "forward_rest", lambda self, x, at: passed.append(len(x)) or rest(self, x, at))
    monkeypatch.setattr("moe_core.serving.routed.ACTIVATION_BYTES", 3 * 4 * 4 * 40 * 4 * 4)
    found_NV, _ = predict(Bundle(folder), pictures)
    assert max(passed) == 3
    assert torch.allclose(found_NV, wanted_NV, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"widths": (5, 11)}, r"branch_at 1: experts share stages \(4,\), and have \(5,\)"),
        ({"widths": (4, 12)}, "is not as the manifest's network"),
        ({"embedding": 7}, "experts give 7 features, the decoder reads 6"),
        ({"depths": (1, 900)}, "the manifest's network has 901 blocks"),
        ({"widths": (4,)}, "must have the same length"),
    ],
)
def test_a_manifest_with_other_experts_is_refused(wide, tmp_path, shape, message):
    folder = bundles.bundle_at(tmp_path / "b", wide[0], branch_at=1, widths=WIDE.widths)
    manifest = without_checksum((folder / "manifest.json").read_bytes())
    manifest["expert_network"] |= shape
    (folder / "manifest.json").write_text(json.dumps(with_checksum(manifest)))
    with pytest.raises(CorruptArtifact, match=message):
        Bundle(folder)
