"""`hardmoe doctor`: what there is, and what is wrong with it."""

import json
import os
import subprocess
import sys

import pytest
import torch

from moe_core import threads
from moe_core.clustering import faiss_build

NAMES = ["hardmoe", "torch", "driver", "GPUs", "precision", "k-means", "FAISS", "cores", "workers", "variables"]


def doctor(*arguments, code="", **environment):
    """(exit code, output, errors) of the command in a process of its own; `code` runs before it."""
    program = f"{code}\nfrom pipelines.cli.main import main\nmain()"
    command = [sys.executable, "-c", program, "doctor", *arguments]
    inherited = {name: value for name, value in os.environ.items() if name not in threads.VARIABLES}
    done = subprocess.run(command, capture_output=True, text=True, env=inherited | environment)
    return done.returncode, done.stdout, done.stderr


def machine(output):
    """What was printed, by name."""
    lines = dict(line.split(None, 1) for line in output.splitlines())
    assert list(lines) == NAMES
    return lines


def test_ten_lines_say_what_there_is():
    code, output, errors = doctor("--experts", "3", OMP_NUM_THREADS="2")
    assert (code, errors) == (0, "")
    lines = machine(output)
    assert lines["torch"].startswith(torch.__version__)
    assert lines["FAISS"] == faiss_build.describe()
    assert lines["cores"] == f"{threads.cores()}; up to 2 threads for the training of an expert"
    assert lines["variables"] == "OMP_NUM_THREADS=2", "those that hardmoe sets are not the user's"


def test_as_json_the_names_are_the_same():
    code, output, _ = doctor("--json")
    assert (code, list(json.loads(output))) == (0, ["machine", "problems"])
    assert list(json.loads(output)["machine"]) == NAMES
    assert json.loads(output)["problems"] == []


def test_how_threads_wait_may_be_the_users():
    code, output, errors = doctor(OMP_WAIT_POLICY="PASSIVE")
    assert (code, errors) == (0, "")
    assert machine(output)["variables"] == "OMP_WAIT_POLICY=PASSIVE"


def test_a_gpu_that_torch_is_not_built_for_is_a_problem():
    if torch.cuda.is_available():
        pytest.skip("this torch sees a GPU")
    code, output, _ = doctor("--json", CUDA_VISIBLE_DEVICES="0")
    (problem,) = json.loads(output)["problems"]
    assert code == 1
    assert problem.startswith(f"CUDA_VISIBLE_DEVICES names 1 GPU, and torch ({torch.__version__}")


OLD_DRIVER = """
import warnings
import torch
import moe_core.devices

def too_old(*_):
    raise RuntimeError("The NVIDIA driver on your system is too old (found version 12040). Please update it.")

def none():
    warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old")
    return False

torch.version.cuda = "13.0"
torch.cuda.is_available = none
torch.cuda.device_count = lambda: 1  # by NVML, which an old driver has
torch.cuda.init = torch.cuda.mem_get_info = torch.cuda.get_device_name = too_old
moe_core.devices.driver_gpus = lambda: 1
moe_core.devices.driver_version = lambda: "NVIDIA 550.54.14, CUDA up to 12.4"
"""


def test_a_driver_too_old_for_torch_is_named_with_both_versions(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    code, output, errors = doctor(code=OLD_DRIVER)
    assert code == 1
    lines = machine(output)
    assert (lines["driver"], lines["GPUs"]) == ("NVIDIA 550.54.14, CUDA up to 12.4", "none")
    assert lines["torch"].endswith("for CUDA 13.0")
    (problem,) = errors.splitlines()
    assert problem.startswith("Error: the driver lists 1 GPU, and torch (")
    assert "sees none: The NVIDIA driver on your system is too old (found version 12040)" in problem
    assert "Driver: NVIDIA 550.54.14, CUDA up to 12.4." in problem
    assert "https://pytorch.org/get-started/locally" in problem


FULL = """
import torch

def full(*_, **__):
    raise torch.AcceleratorError("CUDA error: out of memory\\nCompile with TORCH_USE_CUDA_DSA")

torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
torch.ones = torch.cuda.mem_get_info = torch.cuda.get_device_name = torch.cuda.is_bf16_supported = full
"""


def test_a_gpu_that_is_full_or_in_exclusive_use_is_named():
    code, output, errors = doctor(code=FULL, CUDA_VISIBLE_DEVICES="0")
    assert code == 1
    lines = machine(output)
    assert lines["GPUs"] == "0 cannot be used: CUDA error: out of memory"
    assert lines["precision"] == '"auto" cannot be told on cuda'
    expected = "Error: GPU 0 cannot be used: CUDA error: out of memory: is it in use? `nvidia-smi` lists by what\n"
    assert errors == expected


def test_a_gpu_that_is_named_and_not_there_is_a_problem():
    code, output, _ = doctor("--json", code=FULL, CUDA_VISIBLE_DEVICES="0,7")
    problems = json.loads(output)["problems"]
    assert code == 1
    assert "CUDA_VISIBLE_DEVICES names 2 GPUs, and torch" in problems[0]
    assert "sees 1" in problems[0]
