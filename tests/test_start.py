"""Weights of other programs as the start."""

import pytest
import torch

from moe_core.models.resnet import build
from moe_core.models.start import load_start
from moe_core.settings import Network
from moe_core.weights import save_weights

NETWORK = Network(block="bottleneck", stem="imagenet", widths=(4, 8), depths=(1, 2), embedding=0)


def pretrained(tags=1000, **more):
    return build(NETWORK.model_copy(update=more), tags, seed=7).state_dict()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {f"module.{k}": v for k, v in s.items()}])
def test_all_layers_but_the_last_are_taken(tmp_path, name, wrap):
    state = wrap(pretrained())
    if name.endswith("pth"):
        torch.save({"state_dict": state, "epoch": 3}, tmp_path / name)
    else:
        save_weights(tmp_path / name, state, {})
    model, fresh = build(NETWORK, 5, seed=0), build(NETWORK, 5, seed=0).state_dict()
    load_start(model, tmp_path / name)
    taken = model.state_dict()
    assert all(torch.equal(taken[k], v) for k, v in pretrained().items() if not k.startswith("fc."))
    assert torch.equal(taken["fc.weight"], fresh["fc.weight"])


def test_our_wider_embedding_keeps_its_own_weights(tmp_path):
    torch.save(pretrained(), tmp_path / "w.pth")
    network = NETWORK.model_copy(update={"embedding": 6})
    model, fresh = build(network, 5, seed=0), build(network, 5, seed=0).state_dict()
    load_start(model, tmp_path / "w.pth")
    assert torch.equal(model.conv_embed.weight, fresh["conv_embed.weight"])
    assert torch.equal(model.conv1.weight, pretrained()["conv1.weight"])


def test_files_without_counters_of_batches_load(tmp_path):
    state = {k: v for k, v in pretrained().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pth")
    load_start(build(NETWORK, 5, seed=0), tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (pretrained(depths=(1, 1)), r"lacks layer2.1.conv1.weight and \d+ more: set network.block"),
        (pretrained(depths=(1, 3)), r"holds layer2.2.conv1.weight besides: set network.block"),
        (
            pretrained(widths=(4, 16)),
            r"layer2.0.conv1.weight has shape \(16, 16, 1, 1\), the network wants \(8, 16, 1, 1\)",
        ),
        (pretrained(stem="small"), r"conv1.weight has shape \(4, 3, 3, 3\)"),
        (pretrained() | {"bn1.bias": torch.full((64,), float("nan"))}, "bn1.bias holds a number that is not finite"),
        ({"epoch": 3}, "holds no state_dict"),
        ([1, 2], "holds no state_dict"),
        ({3: torch.zeros(2)}, "holds no state_dict"),
        (pretrained() | {"conv1.weight": torch.zeros(4, 3, 7, 7).to_sparse()}, "sparse_coo: wanted dense floats"),
        (pretrained() | {"conv1.weight": torch.zeros(4, 3, 7, 7, dtype=torch.int64)}, "conv1.weight is a torch.int64"),
        (pretrained() | {"conv1.weight": torch.zeros(4, 3, 7, 7, dtype=torch.complex64)}, "is a torch.complex64"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, state, why):
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=why):
        load_start(build(NETWORK, 5, seed=0), tmp_path / "w.pth")


PREFIXES = ("_orig_mod.", "model.", "backbone.", "module._orig_mod.", "encoder.", "module.encoder_q.", "1.", "a.b.c.")


def prefixed(prefix, **more):
    return {f"{prefix}{name}": tensor for name, tensor in pretrained(**more).items()}


WRAPPED = {
    **{prefix: prefixed(prefix) for prefix in PREFIXES},
    "nested twice": {"state_dict": {"model": prefixed("module.")}, "epoch": 3},
    "ema": {"ema": pretrained(), "optimizer": {"state": {0: torch.zeros(1)}, "param_groups": [{"lr": 0.1}]}},
    "model and its ema": {"model": pretrained(), "model_ema": prefixed("module.", tags=7), "lr": 0.1},
    "under another name": {"net": prefixed("module."), "step": 9},
    "averaged": prefixed("module.") | {"n_averaged": torch.tensor(5)},
    "a head and a projector beside": prefixed("backbone.")
    | {"head.weight": torch.zeros(3, 2), "neck.0.conv1.bias": torch.zeros(1)},
}


@pytest.mark.parametrize("how", WRAPPED)
def test_what_wrappers_put_before_the_names_is_taken_off(tmp_path, how):
    torch.save(WRAPPED[how], tmp_path / "w.pth")
    model = build(NETWORK, 5, seed=0)
    load_start(model, tmp_path / "w.pth")
    taken = model.state_dict()
    assert all(torch.equal(taken[k], v) for k, v in pretrained().items() if not k.startswith("fc."))


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (
            prefixed("module.student.") | prefixed("module.teacher."),
            r"holds 2 networks \(module.student.conv1.weight, module.teacher.conv1.weight\): wanted one",
        ),
        (
            {"student": pretrained(), "teacher": pretrained()},
            r"holds 2 networks \(student.conv1.weight, teacher.conv1.weight\): wanted one",
        ),
        (prefixed("model.", depths=(1, 1)), r"lacks layer2.1.conv1.weight and \d+ more: set network.block"),
        (prefixed("model.", depths=(1, 3)), r"holds layer2.2.conv1.weight besides: set network.block"),
        (pretrained() | prefixed("copy."), "holds copy.conv1.weight besides"),
        ({"vit.x.weight": torch.zeros(2), "vit.y\n.weight": torch.zeros(2)}, "lacks conv1.weight and"),
        ({"model": {"model": {}}}, "holds no state_dict"),
    ],
)
def test_of_several_networks_none_is_guessed(tmp_path, state, why):
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=why):
        load_start(build(NETWORK, 5, seed=0), tmp_path / "w.pth")


def test_what_holds_itself_ends(tmp_path):
    found = {"b": pretrained()}
    found["model"] = found
    torch.save(found, tmp_path / "w.pth")
    model = build(NETWORK, 5, seed=0)
    load_start(model, tmp_path / "w.pth")
    assert torch.equal(model.conv1.weight, pretrained()["conv1.weight"])


class Harm:
    def __reduce__(self):
        return print, ("executed",)


def test_a_pickle_that_executes_code_is_refused(tmp_path, capsys):
    torch.save({"conv1.weight": Harm()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="holds more than tensors"):
        load_start(build(NETWORK, 5, seed=0), tmp_path / "w.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("data", [b"", b"not weights", b"PK\x03\x04cut"])
def test_what_is_no_file_of_weights_is_refused(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=r"is no whole file of weights|is no file of torch's") as said:
        load_start(build(NETWORK, 5, seed=0), tmp_path / name)
    assert "delete" not in str(said.value), "it may be the only copy"


def test_the_suffix_may_be_in_capitals(tmp_path):
    save_weights(tmp_path / "W.SAFETENSORS", pretrained(), {})
    load_start(build(NETWORK, 5, seed=0), tmp_path / "W.SAFETENSORS")
