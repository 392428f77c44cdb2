"""Whose GPU is whose: among steps of one process, among processes, and when one of them is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from assets.gpu import Gpus
from helpers.with_controls import small_study
from moe_core import devices, threads
from moe_core.devices import gpu_names
from moe_core.engine.build import build
from moe_core.engine.gpus import all_gpus, free_gpu, one_gpu
from moe_core.engine.stage import Graph, Stage
from moe_core.recipes import demo
from moe_core.settings import TrunkSetup
from moe_core.stages.graph import GRAPH
from moe_core.stages.training.device import device_and_threads
from moe_core.store.artifact import StageOutput
from moe_core.workspace import open_study

NAMES = ["3", "MIG-a/1"]


class Busy(Exception):
    """What was wanted is not free."""


def refuse(what):
    raise Busy(what)


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("3,1", ["3", "1"]),
        ("", []),
        ("-1", []),
        ("2,-1,0", ["2"]),
        ("GPU-8932f937-d72c, MIG-GPU-8932f937-d72c/3/0", ["GPU-8932f937-d72c", "MIG-GPU-8932f937-d72c/3/0"]),
        ("NoDevFiles", []),
    ],
)
def test_gpus_are_those_that_may_be_seen_by_their_names(monkeypatch, visible, names):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_names() == names


def taken(held, sharers=1, first=0):
    return held.enter_context(one_gpu(NAMES, sharers, first, refuse))


def test_a_gpu_has_one_training_and_one_that_needs_all_waits():
    with ExitStack() as one, ExitStack() as two:
        assert (taken(one, first=1), taken(two, first=1)) == (1, 0)
        with pytest.raises(Busy, match=r"^a GPU: 3, MIG-a/1 in use$"):
            taken(two)
        one.close()
        with pytest.raises(Busy, match=r"^all GPUs: 3 in use$"):
            two.enter_context(all_gpus(NAMES, refuse))
        two.close()
        one.enter_context(all_gpus(NAMES, refuse))
        with pytest.raises(Busy):
            taken(two)
        with pytest.raises(Busy):
            two.enter_context(all_gpus(NAMES[1:], refuse))
        one.close()
        assert taken(two) == 0


def test_with_more_workers_than_gpus_as_many_share_one_as_have_to():
    with ExitStack() as held:
        assert [taken(held, sharers=2) for _ in range(4)] == [0, 1, 0, 1]
        with pytest.raises(Busy):
            taken(held, sharers=2)


def test_who_shares_nothing_and_who_needs_all_respect_those_who_share():
    with ExitStack() as held:
        taken(held, sharers=2)
        second = ExitStack()
        with second:
            held.enter_context(one_gpu(NAMES[:1], 2, 0, refuse))
            assert taken(second, sharers=1) == 1
        with pytest.raises(Busy):
            held.enter_context(all_gpus(NAMES[:1], refuse))


def test_a_step_that_trains_nothing_goes_where_nobody_trains_and_holds_nothing():
    with ExitStack() as held:
        assert (free_gpu(NAMES, 5), free_gpu(NAMES, 5)) == (1, 1)
        taken(held, first=1)
        assert free_gpu(NAMES, 5) == 0
        taken(held)
        assert free_gpu(NAMES, 5) == 1


HOLDER = """
import sys
from assets.gpu import Gpus
with Gpus().lease(trains=True, every=sys.argv[1] == "all", report=lambda said: print(said, flush=True)):
    print("holds", flush=True)
    sys.stdin.readline()
print("released", flush=True)
"""


@pytest.fixture
def holder(monkeypatch):
    """Starts processes that lease one of two GPUs, or all, until they are told to release it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    processes = []

    def start(what):
        command = [sys.executable, "-c", HOLDER, what]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def line(process):
    return process.stdout.readline().strip()


def test_processes_wait_for_each_other_and_a_killed_one_frees_its_gpu(holder):
    one, two = holder("one"), holder("one")
    assert (line(one), line(two)) == ("holds", "holds")
    third = holder("one")
    assert line(third) == "{'waits': 'a GPU: 0, 1 in use'}"
    one.send_signal(signal.SIGKILL)
    assert (line(third), line(third)) == ("{}", "holds")
    everything = holder("all")
    assert line(everything) == "{'waits': 'all GPUs: 0 in use'}"
    third.communicate("\n")
    two.communicate("\n")
    assert (line(everything), line(everything)) == ("{}", "holds")


def test_short_trainings_do_not_starve_one_that_needs_every_gpu(holder):
    """They overlap on each GPU, so that without gates there would hardly ever be a moment when both are free."""
    stop, trained = threading.Event(), []

    def train():
        while not stop.is_set():
            with one_gpu(["0", "1"], 1, len(trained), lambda what: None):
                time.sleep(0.25)
            trained.append(time.monotonic())

    threads = [threading.Thread(target=train) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        while len(trained) < 5:
            time.sleep(0.05)
        everything = holder("all")
        if (first := line(everything)) != "holds":
            assert "waits" in first
            assert (line(everything), line(everything)) == ("{}", "holds")
        time.sleep(0.3)
        before = len(trained)
        time.sleep(1)
        assert len(trained) == before, "nobody trains beside it"
        everything.communicate("\n")
        deadline = time.monotonic() + 20
        while len(trained) < before + 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def a_stage(seen):
    def make(context, spec, folder):
        seen.append(sorted(path.name for path in Path(os.environ["TMPDIR"]).glob("hardmoe-gpus-*/*")))
        (folder / "a").write_text("a")
        return StageOutput({})

    return Stage("expert", "1", (), lambda study: {}, lambda planner, key: {}, make, trains=True)


def test_nothing_is_leased_for_what_exists_nor_where_there_are_no_gpus(tmp_path, monkeypatch):
    seen = []
    stage = a_stage(seen)
    graph, around = Graph([*GRAPH.values(), stage], GRAPH.aliases), Gpus().around(stage)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    build(open_study(small_study(), tmp_path / "one", graph=graph), "expert", around=around)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    build(open_study(small_study(), tmp_path / "two", graph=graph), "expert", around=around)
    assert seen == [[], ["0.0", "0.gate"]]
    with all_gpus(["0"], refuse):
        assert build(open_study(small_study(), tmp_path / "two", graph=graph), "expert", around=around).reused


def test_a_trunk_in_ranks_and_a_generation_want_every_gpu():
    assert GRAPH["joint_experts"].all_gpus(demo())
    assert not GRAPH["trunk"].all_gpus(demo())
    assert GRAPH["trunk"].all_gpus(demo().model_copy(update={"trunk_setup": TrunkSetup(ranks=2)}))


@pytest.mark.parametrize(("answers", "count"), [((0, 0), 2), ((1, 0), 0), ((0, 1), 0)])
def test_where_the_driver_lists_no_gpus_it_is_asked(monkeypatch, answers, count):
    """As under WSL2 and gVisor."""

    def count_into(place):
        place._obj.value = 2
        return answers[1]

    nvml = SimpleNamespace(nvmlInit_v2=lambda: answers[0], nvmlDeviceGetCount_v2=count_into, nvmlShutdown=lambda: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("ctypes.CDLL", lambda name: nvml)
    devices.driver_gpus.cache_clear()
    try:
        assert len(gpu_names()) == count
    finally:
        devices.driver_gpus.cache_clear()


@pytest.mark.parametrize(
    ("answers", "text"),
    [((0, 0, 0), "NVIDIA 550.54.14, CUDA up to 12.4"), ((9, 0, 0), ""), ((0, 1, 0), ""), ((0, 0, 1), "")],
)
def test_the_driver_says_its_version_and_its_cuda(monkeypatch, answers, text):
    def version_into(place, size):
        place.value = b"550.54.14"
        return answers[1]

    def cuda_into(place):
        place._obj.value = 12040
        return answers[2]

    nvml = SimpleNamespace(
        nvmlInit_v2=lambda: answers[0],
        nvmlSystemGetDriverVersion=version_into,
        nvmlSystemGetCudaDriverVersion_v2=cuda_into,
        nvmlShutdown=lambda: None,
    )
    monkeypatch.setattr("ctypes.CDLL", lambda name: nvml)
    assert devices.driver_version() == text


def test_decoding_has_the_cores_that_trainings_at_once_leave(monkeypatch):
    monkeypatch.setattr("moe_core.threads.cores", lambda: 16)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert threads.threads_for(parallel=True, experts=16) == 16
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert threads.threads_for(parallel=True, experts=16) == 4
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert threads.threads_for(parallel=True, experts=16) == 1


def test_a_stage_names_its_gpu_by_number_since_threads_have_another_current_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert device_and_threads(small_study(), parallel=False) == "cuda:3"
