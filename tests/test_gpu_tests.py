"""tests/gpu on a machine that has little: what must be installed there, and what is skipped without a GPU."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """What pytest reports of each test of tests/gpu, where only torch and a few others can be imported."""
    report = tmp_path_factory.mktemp("gpu") / "report.xml"
    variables = os.environ | {
        "PYTHONPATH": str(ROOT / "tests" / "helpers"),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    options = ["-q", "-p", "only_torch", "-p", "no:cacheprovider", "-m", "", f"--junitxml={report}"]
    command = [sys.executable, "-m", "pytest", *options, "tests/gpu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return list(ElementTree.parse(report).iter("testcase"))


def test_twins_on_the_cpu_pass_with_torch_and_little_else(cases):
    twins = [case for case in cases if "[cpu" in case.attrib["name"]]
    assert len(twins) > 30
    assert [case.attrib["name"] for case in twins if len(case)] == []


def test_without_a_gpu_its_cases_are_skipped_and_say_why(cases):
    on_gpu = [case for case in cases if "[cpu" not in case.attrib["name"]]
    reasons = [case.find("skipped").attrib["message"] for case in on_gpu]
    assert len(reasons) > 30
    assert all(reason.startswith("needs ") for reason in reasons), reasons


def test_nothing_else_can_be_imported_there():
    code = "import only_torch, torch\ntry:\n    import lance\nexcept ModuleNotFoundError as error:\n    print(error)"
    variables = os.environ | {"PYTHONPATH": str(ROOT / "tests" / "helpers")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=variables)
    assert done.stdout == "No module named 'lance'\n"
