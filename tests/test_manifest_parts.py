"""Parts of bundles from elsewhere: which are there, where they lie, and the tensors in them."""

import os
import shutil

import pytest
import torch

from helpers.bundles import TAGS, images
from helpers.sealed import changed, entry_of, manifest_of, refused, rewritten, seal
from moe_core.serving.bundle import Bundle
from moe_core.serving.routed import predict

PARTS = ["router", "gate", "decoder"]


def test_more_or_other_experts_than_the_gate_s_are_refused(bundle_folder):
    said = manifest_of(bundle_folder)
    changed(bundle_folder, "experts", to={"e000": said["experts"]["e000"]})
    assert "the gate knows 2 experts, here are 1" in refused(bundle_folder)


@pytest.mark.parametrize("name", ["router", "gate", "decoder", "vocabulary", "e000"])
@pytest.mark.parametrize("how", ["../", "absolute", "inside and out", "link", "link to a folder", "fifo", "folder"])
def test_a_part_outside_the_bundle_or_no_file_is_refused(bundle_folder, name, how):
    said = manifest_of(bundle_folder)
    entry = entry_of(said, name)
    path = bundle_folder / entry["file"]
    outside = bundle_folder.parent / path.name
    shutil.copyfile(path, outside)
    if how == "../":
        entry["file"] = f"../{path.name}"
    elif how == "absolute":
        entry["file"] = str(outside)
    elif how == "inside and out":
        entry["file"] = f"experts/../../{path.name}"
    elif how == "link":
        path.unlink()
        path.symlink_to(outside)
    elif how == "link to a folder":
        (bundle_folder / "linked").symlink_to(bundle_folder.parent)
        entry["file"] = f"linked/{path.name}"
    elif how == "fifo":
        path.unlink()
        os.mkfifo(path)
    else:
        path.unlink()
        path.mkdir()
    seal(bundle_folder, said)
    text = refused(bundle_folder)
    assert any(why in text for why in ("lies outside the bundle", "is a link", "is no regular file")), text


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "", "\x1b]0;title\x07", "a" * 300, "é" * 150, "none.safetensors"])
def test_a_part_of_a_strange_name_is_refused(bundle_folder, name):
    changed(bundle_folder, "router", "file", to=name)
    assert "router" in refused(bundle_folder) or "missing from the bundle" in refused(bundle_folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("part", "tensor"),
    [
        ("router", "layer2.0.conv1.weight"),
        ("router", "fc.bias"),
        ("decoder", "weight"),
        ("gate", "centroids"),
        ("gate", "mean"),
        ("gate", "projection"),
        ("e000", "bn_embed.running_var"),
    ],
)
def test_a_number_that_is_not_finite_is_refused_under_a_right_checksum(bundle_folder, part, tensor, value):
    rewritten(bundle_folder, part, lambda state: state[tensor].view(-1)[-1:].fill_(value))
    assert f"{tensor} holds a number that is not finite" in refused(bundle_folder)


def test_the_same_tensors_written_again_are_taken(bundle_folder, whole_bundle):
    for name in (*PARTS, "e000"):
        rewritten(bundle_folder, name, lambda state: None)
    assert torch.equal(predict(Bundle(bundle_folder), images(5))[0], predict(Bundle(whole_bundle), images(5))[0])


@pytest.mark.parametrize(
    ("part", "change", "why"),
    [
        ("gate", lambda s: s.update(expert=torch.tensor([0, 10**15])), "wanted experts 0 to K - 1"),
        ("gate", lambda s: s.update(expert=torch.tensor([-1, 0])), "wanted experts 0 to K - 1"),
        ("gate", lambda s: s.update(expert=torch.tensor([0, 0])), "the gate knows 1 experts, here are 2"),
        ("gate", lambda s: s.update(expert=torch.zeros(2)), "expert is not as the manifest's network has it: F32"),
        ("gate", lambda s: s.update(expert=torch.zeros(2, 1)), "is not a gate: 0 centroids"),
        ("gate", lambda s: s.pop("expert"), "is not a gate: 0 centroids"),
        ("gate", lambda s: s.pop("projection"), "is not a gate: 2 centroids of 0 dimensions"),
        ("gate", lambda s: s.update(projection=torch.zeros(6, 5)), "centroids is not as the manifest's network has it"),
        ("gate", lambda s: s.update(mean=torch.zeros(7)), "mean is not as the manifest's network has it"),
        ("decoder", lambda s: s.update(weight=torch.zeros(4, 6)), "weight is not as the manifest's network has it"),
        ("decoder", lambda s: s.update(weight=torch.zeros(TAGS, 7)), "weight is not as the manifest's network has it"),
        ("decoder", lambda s: s.pop("weight"), "weight is not as the manifest's network has it: nothing"),
        ("decoder", lambda s: s.pop("bias"), "bias is not as the manifest's network has it: nothing"),
        ("decoder", lambda s: s.update({"x\n": torch.zeros(1)}), r"x\n is not as the manifest's network has it"),
        ("router", lambda s: s.update({"fc.bias": s["fc.bias"].double()}), "fc.bias is not as the manifest's"),
        ("router", lambda s: s.pop("conv1.weight"), "conv1.weight is not as the manifest's network has it: nothing"),
        ("e000", lambda s: s.update({"more": torch.zeros(9)}), "more is not as the manifest's network has it"),
    ],
)
def test_tensors_that_do_not_fit_are_named(bundle_folder, part, change, why):
    rewritten(bundle_folder, part, change)
    assert why in refused(bundle_folder)
