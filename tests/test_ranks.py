"""The trunk in several processes: through its stage, with gloo on the CPU."""

import os
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.processes import runs, until
from helpers.ranks import TRUNK, context_of
from moe_core.engine.build import build, build_all
from moe_core.models.resnet import build as build_network
from moe_core.weights import load_weights


def upstream(context):
    build_all(context, ("posts", "splits", "vocabulary"))


def trained(context):
    upstream(context)
    return build(context, "trunk").artifact


def weights(artifact):
    return load_weights(artifact.file("weights.safetensors"))[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    context = context_of(tmp_path_factory.mktemp("ranks#1?of=2"), ranks=2)
    return context, trained(context)


def test_two_ranks_are_one_process_that_adds_up_two_batches(whole, tmp_path):
    context, artifact = whole
    # ranks normalize over their own halves of a step, as accumulated batches do; crops and flips are the same too, as
    # long as the posts of a pass are no fewer for one: a pass of 32 x 2 leaves a remainder that a pass of 32 may not
    posts = artifact.metadata["training_posts"]
    assert posts % 64 < 32, posts
    alone = trained(context_of(tmp_path, TRUNK.model_copy(update={"accumulate": 2})))
    assert artifact.metadata["steps"] == alone.metadata["steps"] == 8 * (posts // 64)
    assert artifact.metadata["training_images"] == alone.metadata["training_images"] == 64 * alone.metadata["steps"]
    assert abs(artifact.metadata["loss"] - alone.metadata["loss"]) < 1e-3
    one, two = weights(artifact), weights(alone)
    start = build_network(context.study.network, len(one["fc.bias"]), TRUNK.seed).state_dict()
    apart, moved = ([(one[n] - other[n]).norm() for n in one if n.endswith("weight")] for other in (two, start))
    assert sum(apart) < 0.02 * sum(moved)  # rounding grows from step to step; unlike batches would be a half apart


class Killed(Exception):
    pass


def test_a_run_killed_in_the_middle_ends_in_the_same_bits(whole, tmp_path):
    _, artifact = whole
    context = context_of(tmp_path, ranks=2)
    upstream(context)

    checkpoint = context.store.work_folder(context.spec("trunk")) / "checkpoint.safetensors"

    def report(said):
        while not checkpoint.exists():
            time.sleep(0.05)
        raise Killed

    context = replace(context, report=report)  # what is left is what a kill of all would leave
    with pytest.raises(Killed):
        build(context, "trunk")
    assert int(load_weights(checkpoint)[1]["step"]) in (10, 20)
    again = context_of(tmp_path, ranks=2)
    one, two = weights(artifact), weights(trained(again))
    assert all(torch.equal(one[name], two[name]) for name in one)


def ranks_of(context):
    """Process ids of the ranks that this test's process started."""
    done = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    rows = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    return [int(pid) for pid, parent, args in rows if int(parent) == os.getpid() and "moe_core.trunk_rank" in args]


def test_a_rank_that_is_killed_ends_the_others_and_is_named(tmp_path):
    context = context_of(tmp_path, TRUNK.model_copy(update={"epochs": 5000.0}), ranks=2)
    upstream(context)
    log = context.store.work_folder(context.spec("trunk")) / "log.jsonl"

    def kill():
        while not (log.exists() and log.stat().st_size):
            time.sleep(0.05)
        os.kill(max(ranks_of(context)), signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(ValueError, match="rank 1 of the trunk was killed by signal 9"):
        build(context, "trunk")
    assert ranks_of(context) == []
    assert not list((tmp_path / "trunk").glob("[0-9a-f]*"))


def test_what_a_rank_raises_is_said(tmp_path):
    context = context_of(tmp_path, TRUNK.model_copy(update={"lr": 1e30}), ranks=2)
    upstream(context)
    with pytest.raises(ValueError, match=r"rank 0 of the trunk failed: loss is nan between steps"):
        build(context, "trunk")


ORPHAN = """
import sys
sys.path.insert(0, "tests")
from pathlib import Path
from helpers.ranks import TRUNK, context_of
from moe_core.engine.build import build, build_all
from moe_core.stages.graph import GRAPH
build(context_of(Path(sys.argv[1]), TRUNK.model_copy(update={"epochs": 5000.0}), ranks=2), "trunk")
"""


def test_ranks_end_with_the_process_that_started_them(tmp_path):
    context = context_of(tmp_path, TRUNK.model_copy(update={"epochs": 5000.0}), ranks=2)
    upstream(context)
    log = context.store.work_folder(context.spec("trunk")) / "log.jsonl"
    parent = subprocess.Popen([os.sys.executable, "-c", ORPHAN, str(tmp_path)], cwd=Path(__file__).parent.parent)
    while not (log.exists() and log.stat().st_size):
        assert parent.poll() is None
        time.sleep(0.05)
    children = [int(p) for p in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
    assert len(children) == 2
    parent.kill()
    parent.wait()
    until(lambda: not any(map(runs, children)), seconds=30)  # no orphan trains on


def test_the_trunk_starts_from_the_file_that_is_named_and_its_bytes_count(tmp_path):
    start = str(tmp_path / "w.pth")
    context = context_of(tmp_path, TRUNK.model_copy(update={"lr": 1e-30}), start=start)
    upstream(context)
    with pytest.raises(ValueError, match=r"trunk_setup.start: no file .*w\.pth"):
        build(context, "trunk")
    file = build_network(context.study.network, 7, seed=5)
    torch.save(file.state_dict(), start)
    made = build(context, "trunk").artifact
    assert torch.equal(weights(made)["conv1.weight"], file.conv1.weight)
    torch.save(build_network(context.study.network, 7, seed=6).state_dict(), start)
    assert context_of(tmp_path, context.study.trunk, start=start).version("trunk") != made.version
