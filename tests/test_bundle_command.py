"""`hardmoe bundle check` and `hardmoe export`."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from helpers import bundles
from helpers.bundles import bundle_at, images, random_parts
from helpers.sealed import changed, rewritten
from moe_core.serving.bundle import Bundle
from moe_core.serving.routed import predict
from pipelines.cli.main import main


def hardmoe(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """A bundle of four experts, of which one is not published."""
    root = tmp_path_factory.mktemp("four")
    return bundle_at(root / "bundle", random_parts(root, 1), branch_at=1)


def test_check_lists_parts_with_versions_and_sizes(four):
    done = hardmoe("bundle", "check", four)
    assert (done.exit_code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    parts = [line.split()[2:] for line in lines[:8]]
    assert parts[0] == ["router", "1", "router.safetensors"]
    assert parts[-1] == ["e003", "1", "experts/e003.safetensors"]
    assert "4 experts, 1 of them replaced by the trunk; 5 hashtags; pictures of 8 pixels; mixture_top1" in lines[8]
    assert re.fullmatch(r"Whole: every expert answers; a drawn picture: \S+ 0\.\d+ by e00\d; \d+\.\d s", lines[9])


def test_check_is_one_json_document(four, tmp_path):
    shutil.copytree(four, tmp_path / "b")
    (tmp_path / "b" / "notes.txt").write_text("mine")
    done = hardmoe("bundle", "check", tmp_path / "b", "--json")
    document = json.loads(done.stdout)
    assert [part["name"] for part in document["parts"]] == [
        *("router", "gate", "decoder", "vocabulary", "e000", "e001", "e002", "e003")
    ]
    sizes = {str(p.relative_to(four)): p.stat().st_size for p in four.rglob("*.*") if p.name != "manifest.json"}
    assert {part["file"]: part["bytes"] for part in document["parts"]} == sizes
    assert document["bytes"] == sum(sizes.values())
    assert (document["unpublished"], document["unnamed"]) == (["e003"], ["notes.txt"])
    assert document["drawn"]["expert"] in Bundle(four).published


@pytest.mark.parametrize("part", ["router.safetensors", "experts/e001.safetensors", "hashtags.json", "manifest.json"])
def test_a_part_that_is_missing_is_named(bundle_folder, part):
    (bundle_folder / part).unlink()
    done = hardmoe("bundle", "check", bundle_folder)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "no bundle at" in done.stderr if part == "manifest.json" else f"{part} is missing" in done.stderr


def test_a_changed_part_is_named(bundle_folder):
    with open(bundle_folder / "experts/e001.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    done = hardmoe("bundle", "check", bundle_folder)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "e001.safetensors is not the file the manifest names (SHA-256 differs)" in done.stderr


@pytest.mark.parametrize("key", ["e000", "e001"])
def test_an_expert_that_gives_no_finite_answer_is_found_whether_or_not_it_is_asked(bundle_folder, key):
    """Its weights are finite, and so are its checksums; the sums are not."""
    rewritten(bundle_folder, key, lambda state: [tensor.fill_(3e38) for tensor in state.values() if tensor.ndim == 4])
    done = hardmoe("bundle", "check", bundle_folder)
    assert done.exit_code == 1
    assert "hold a number that is not finite" in done.stderr


def test_what_a_bundle_says_is_shown_on_one_line(bundle_folder):
    changed(bundle_folder, "router_weight", to="\x1b]0;title\x07")
    done = hardmoe("bundle", "check", bundle_folder)
    assert done.exit_code == 1
    assert "\x1b" not in done.stderr


def test_an_exported_bundle_answers_alike(four, tmp_path):
    done = hardmoe("export", "--bundle", four, tmp_path / "out", "--json")
    document = json.loads(done.stdout)
    assert (document["what"], document["experts"]) == ("bundle", 4)
    assert torch.equal(predict(Bundle(tmp_path / "out"), images(9))[0], predict(Bundle(four), images(9))[0])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_card_of_a_bundle_travels_with_it_and_other_files_do_not(bundle_folder, tmp_path):
    (bundle_folder / "MODEL_CARD.md").write_text("# Cats\n")
    (bundle_folder / "secret.txt").write_text("mine")
    assert hardmoe("export", "--bundle", bundle_folder, tmp_path / "out").exit_code == 0
    assert (tmp_path / "out/MODEL_CARD.md").read_text() == "# Cats\n"
    assert not (tmp_path / "out/secret.txt").exists()


def test_a_damaged_bundle_is_not_exported(bundle_folder, tmp_path):
    (bundle_folder / "experts/e001.safetensors").unlink()
    done = hardmoe("export", "--bundle", bundle_folder, tmp_path / "out")
    assert (done.exit_code, "e001.safetensors is missing" in done.stderr) == (1, True)
    assert not (tmp_path / "out").exists()


def test_onnx_files_are_written_by_the_command_also_of_networks_whose_biases_are_all_zero(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript", reason="pip install 'hardmoe[onnx]'")
    monkeypatch.setattr(bundles, "used", lambda model: model)
    bundle = bundle_at(tmp_path / "bundle", random_parts(tmp_path, 0, count=2))
    done = hardmoe("export", "--onnx", tmp_path / "out", "--bundle", bundle)
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    assert re.fullmatch(r".*out: ONNX files of 2 experts, 0\.\d MiB\n", done.stdout)
    assert np.load(tmp_path / "out/gate.npz")["centroids"].shape == (2, 6)


def test_what_exists_is_not_replaced(four, tmp_path):
    for more in ([], ["--onnx"]):
        done = hardmoe("export", "--bundle", four, *more, tmp_path)
        assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
        assert "exists: name a folder that does not" in done.stderr
    assert [*tmp_path.iterdir()] == []
