"""`hardmoe doctor`: what there is, and what is wrong with it; and the two builds of FAISS."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch

from moe_core import threads
from moe_core.clustering import faiss_build


def doctor(*arguments, code="", **environment):
    """(exit code, output, errors) of the command in a process of its own; `code` runs before it."""
    program = f"{code}\nfrom pipelines.cli.main import main\nmain()"
    command = [sys.executable, "-c", program, "doctor", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    return done.returncode, done.stdout, done.stderr


def test_ten_lines_say_what_there_is():
    code, output, errors = doctor("--experts", "3", OMP_NUM_THREADS="2")
    assert (code, errors) == (0, "")
    assert len(output.splitlines()) <= 10
    lines = dict(line.split(None, 1) for line in output.splitlines())
    assert lines["torch"].startswith(torch.__version__)
    assert lines["FAISS"].startswith(f"faiss-cpu {version('faiss-cpu')}")
    assert lines["cores"].startswith(str(threads.cores()))
    assert "OMP_NUM_THREADS=2" in lines["set"]
    assert "KMP_BLOCKTIME" not in lines["set"]  # ours


def test_a_driver_without_a_torch_that_sees_it_is_a_problem():
    if torch.cuda.is_available():
        pytest.skip("this torch sees a GPU")
    code, output, _ = doctor("--json", CUDA_VISIBLE_DEVICES="0")
    (problem,) = json.loads(output)["problems"]
    assert code == 1
    assert problem.startswith("the driver lists 1 GPU, and torch")


def test_both_builds_of_faiss_at_once_are_named_with_the_mend(tmp_path):
    there = tmp_path / "faiss_gpu-1.15.1.dist-info"
    there.mkdir()
    (there / "METADATA").write_text("Metadata-Version: 2.1\nName: faiss-gpu\nVersion: 1.15.1\n")
    code, _, errors = doctor(PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert code == 1
    assert "faiss-gpu 1.15.1 are both installed" in errors
    assert "pip uninstall -y faiss-cpu faiss-gpu && pip install 'hardmoe[cpu]'" in errors


@pytest.mark.parametrize("broken", ["None", "types.ModuleType('faiss')"])
def test_a_faiss_that_is_missing_or_hollow_is_named_with_the_mend(broken):
    code, output, errors = doctor(code=f"import sys, types; sys.modules['faiss'] = {broken}")
    assert code == 1
    assert "FAISS is wanted, and faiss-cpu" in errors
    assert "pip install 'hardmoe[cpu]'" in errors
    assert "torch" in output


def test_one_build_is_no_problem():
    assert faiss_build.conflict() == ""
    assert len(faiss_build.installed()) == 1
