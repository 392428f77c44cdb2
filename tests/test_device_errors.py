"""An error of a GPU reaches the user as itself, and ends the process that it broke, not the run."""

import json
import os
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

from helpers.command import write
from helpers.joint_work import random_posts
from helpers.with_controls import small_study
from moe_core.errors import DeviceFailed, device_error
from moe_core.models.resnet import build
from moe_core.settings import Network, Training
from moe_core.training.loop import train
from pipelines.cli.main import main

ILLEGAL = "CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA\n"


def test_only_an_error_of_a_device_is_one():
    assert str(device_error(torch.AcceleratorError(ILLEGAL))) == "CUDA error: an illegal memory access was encountered"
    assert isinstance(device_error(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")), DeviceFailed)
    assert device_error(RuntimeError("shape mismatch")) is None


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "NCCL error in: ProcessGroupNCCL.cpp:94, unhandled system error",
    ],
)
def test_errors_of_its_libraries_are_plain_ones_and_are_known_by_how_they_begin(text):
    assert str(device_error(RuntimeError(f"{text}\nmore"))) == text


def test_where_memory_does_not_suffice_the_batch_is_named(monkeypatch):
    def full(_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("moe_core.training.loop.normalize", full)
    model = build(Network(widths=(4, 8), depths=(1, 1), embedding=8), 4, seed=0)
    with pytest.raises(DeviceFailed, match=r"cpu has no memory for a batch of 8 images: .* Lower batch_size"):
        list(train(model, random_posts(40), Training(epochs=1, batch_size=8, accumulate=2)))


def test_a_command_says_it_in_one_line(monkeypatch, tmp_path):
    def broken(*_, **__):
        raise torch.AcceleratorError(ILLEGAL)

    monkeypatch.setattr("pipelines.cli.inspect.study_at", broken)
    done = CliRunner().invoke(main, ["status", "--study", str(write(tmp_path, small_study()))])
    assert (done.exit_code, done.output) == (1, "Error: CUDA error: an illegal memory access was encountered\n")


WORKER = """
import json, multiprocessing, os, sys
from pathlib import Path
import torch
from assets.study import study
from pipelines.run import worker
from pipelines.run.task import Task, TaskResult

def broken():
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

torch.cuda.is_initialized, torch.cuda.synchronize = lambda: True, broken
worker.materialize = lambda *_: TaskResult("CUDA error: an illegal memory access was encountered")
worker.end = worker.open_instance = lambda: None
ours, theirs = multiprocessing.Pipe()
for _ in range(2):
    ours.send((Task("trunk", None), "run", Path(sys.argv[1]) / "log", study()))
worker.answer_all(theirs, 1)
answer = ours.recv()
repeats = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
(Path(sys.argv[1]) / "answer").write_text(json.dumps([answer.error, answer.last, answer.died, ours.poll(), repeats]))
"""


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_worker_that_its_gpu_failed_answers_with_the_reason_and_takes_no_other_task(tmp_path, deterministic):
    file = write(tmp_path, small_study().changed(expert_training={"deterministic": deterministic}))
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "CUBLAS_WORKSPACE_CONFIG"}
    subprocess.run(command, check=True, env=environment | {"HARDMOE_STUDY": str(file)})
    said = json.loads((tmp_path / "answer").read_text())
    repeats = ":4096:8" if deterministic else None  # set before the first task, since cuBLAS looks at it only once
    assert said == ["CUDA error: an illegal memory access was encountered", True, False, False, repeats]
