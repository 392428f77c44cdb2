"""A bundle as ONNX files answers as the bundle does, by the program that the docs show."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.bundles import bundle_at, images, random_parts
from moe_core.errors import BadSetting, HardmoeError, MissingLibrary
from moe_core.serving import onnx_files
from moe_core.serving.bundle import Bundle
from moe_core.serving.onnx_files import export_onnx
from moe_core.serving.routed import predict
from moe_core.store.hashing import file_hash, without_checksum

onnx = pytest.importorskip("onnx", reason="pip install 'hardmoe[onnx]'")
ROOT = Path(__file__).parents[1]
PROGRAM = re.findall(r"```python\n(.*?)```", (ROOT / "docs/how-to/bundles.md").read_text("utf-8"), re.DOTALL)[0]


@pytest.fixture(scope="module", params=[0, 1], ids=["whole networks", "shared stages"])
def exported(request, tmp_path_factory):
    """(bundle, its ONNX files)"""
    root = tmp_path_factory.mktemp("onnx")
    parts = random_parts(root, request.param)
    answer = "mixture_top1_router" if request.param else "mixture_top1"
    folder = bundle_at(root / "bundle", parts, answer, branch_at=request.param, precision="float32")
    bundle, done = Bundle(folder), []
    export_onnx(bundle, root / "out", report=done.append)
    assert done == [1, 2, 3, 4]
    return bundle, root / "out"


def test_the_program_of_the_docs_answers_as_the_bundle_does(exported):
    bundle, folder = exported
    program = {}
    exec(PROGRAM, program)
    for count in (1, 64):
        probabilities_BV, experts = program["answers"](folder, images(count, seed=4))
        wanted_BV, wanted_experts = predict(bundle, images(count, seed=4))
        assert experts == wanted_experts
        assert np.abs(probabilities_BV - wanted_BV.numpy()).max() < 1e-5
    assert set(experts) == {"e000", "e001", "e002", "e003"}  # the last is not published


def test_a_decoder_by_sigmoids_is_combined_alike(exported, tmp_path):
    bundle, folder = exported
    program, how = {}, json.loads((folder / "mixture.json").read_text("utf-8"))
    exec(PROGRAM, program)
    for name in ("trunk.onnx", "decoder.onnx", "gate.npz", "experts"):
        os.symlink(folder / name, tmp_path / name)
    (tmp_path / "mixture.json").write_text(json.dumps(how | {"loss": "sigmoid"}))
    found_BV, _ = program["answers"](tmp_path, images(9, seed=4))
    sigmoid = Bundle(bundle.folder)
    sigmoid.loss = "sigmoid"
    assert np.abs(found_BV - predict(sigmoid, images(9, seed=4))[0].numpy()).max() < 1e-5


def test_the_document_names_each_file_by_hash_and_what_it_was_made_from(exported):
    bundle, folder = exported
    how = without_checksum((folder / "mixture.json").read_bytes())
    entries = [how["trunk"], how["decoder"], how["gate"], how["vocabulary"], *how["experts"].values()]
    assert [file_hash(folder / entry["file"]) for entry in entries] == [entry["sha256"] for entry in entries]
    assert {key: entry["published"] for key, entry in how["experts"].items()} == bundle.published
    assert how["made_from"] == bundle.parts
    assert json.loads((folder / "hashtags.json").read_text("utf-8")) == bundle.hashtags


def test_files_are_valid_and_name_nothing_of_this_machine(exported):
    _, folder = exported
    files = [folder / "trunk.onnx", folder / "decoder.onnx", *(folder / "experts").iterdir()]
    assert len(files) == 6
    for file in files:
        onnx.checker.check_model(file, full_check=True)
        assert str(ROOT).encode() not in file.read_bytes()
        assert b"site-packages" not in file.read_bytes()


def test_outputs_that_differ_are_refused_and_nothing_is_left(whole_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_files, "TOLERANCE", -1)
    with pytest.raises(HardmoeError, match=r"trunk.onnx: onnxruntime differs from torch by .* not exported"):
        export_onnx(Bundle(whole_bundle), tmp_path / "out")
    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_exists_is_left_alone(whole_bundle, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(BadSetting, match="out exists: name a folder that does not"):
        export_onnx(Bundle(whole_bundle), tmp_path / "out")
    with pytest.raises(BadSetting, match="none is no folder"):
        export_onnx(Bundle(whole_bundle), tmp_path / "none" / "out")
    assert [*(tmp_path / "out").iterdir()] == []


def test_without_onnx_the_extra_is_named(whole_bundle, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingLibrary, match=r"need onnxscript: pip install 'hardmoe\[onnx\]'"):
        export_onnx(Bundle(whole_bundle), tmp_path / "out")


KILLED = """
import os, signal, sys
from pathlib import Path
from moe_core.serving.bundle import Bundle
from moe_core.serving.onnx_files import export_onnx
export_onnx(Bundle(Path(sys.argv[1])), Path(sys.argv[2]), report=lambda done: os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.slow
@pytest.mark.parametrize("exported", [0], indirect=True)
def test_a_killed_export_leaves_nothing_visible_and_the_next_one_writes_the_same_files_as_ever(exported, tmp_path):
    bundle, folder = exported
    done = subprocess.run([sys.executable, "-c", KILLED, str(bundle.folder), str(tmp_path / "out")], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".part-")
    assert (left / "trunk.onnx").exists()
    export_onnx(bundle, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert len(names) == 9
    assert [file_hash(tmp_path / "out" / name) for name in names] == [file_hash(folder / name) for name in names]
