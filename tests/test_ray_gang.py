"""Ranks and helpers on the nodes of a Ray cluster of two nodes, of one core each."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from helpers.command import write
from helpers.joint_work import finish, joint
from helpers.processes import runs, until
from helpers.ranks import context_of
from helpers.ray_nodes import cluster, lose, node_of, parent_of
from helpers.with_controls import QUICK, small_study
from moe_core.engine.build import build, build_all
from moe_core.engine.context import silent
from moe_core.engine.nodes import lines_of_first
from moe_core.errors import BadSetting, TrainingFailed
from moe_core.recipes import demo
from moe_core.settings import Cluster, Decoder, Partition, Source, TrunkSetup
from moe_core.study_file import load_study
from moe_core.weights import load_weights
from moe_core.workspace import open_study
from pipelines.run.pools.ray_cluster import Slots
from pipelines.run.pools.ray_gang import RayNodes
from pipelines.run.pools.ray_node import about

pytestmark = pytest.mark.filterwarnings("ignore:lance is not fork-safe")  # a cluster starts its processes by forks

wait_until = partial(until, seconds=300)


@pytest.fixture(scope="module")
def two():
    """(the cluster, its nodes as a stage sees them)"""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # for the ranks of helpers
        patch.setenv("HARDMOE_THREADS", "1")
        with cluster() as made:
            yield made, RayNodes(demo().changed(cluster=Cluster(threads=1, engine="ray", address=made.address)))
            ray.shutdown()


def of(nodes, folder, do, ranks=2, report=silent):
    return nodes.gang("helpers.gang_rank", ranks, {"do": do}, folder, report)


def printed(member):
    """What a rank prints first."""
    return json.loads(wait_until(lambda: (member.exit_code(), member.lines())[1])[0])


def test_more_ranks_than_places_are_refused(two, tmp_path, monkeypatch):
    _, nodes = two
    monkeypatch.setattr("pipelines.run.pools.ray_gang.REPLACED_SECONDS", 1)
    with (
        pytest.raises(BadSetting, match=r"ranks = 3, but the Ray cluster has 2 times 1 CPUs"),
        of(nodes, tmp_path, {}, 3),
    ):
        pass


@pytest.mark.parametrize(
    ("variables", "slots", "why"),
    [
        ({"HARDMOE_RANKS_ON_GPUS": "1"}, Slots(gpus=0, cpus=8), "0 GPUs"),  # all are lost: cores are not to do it
        ({}, Slots(), "0 times 1 CPUs"),
    ],
)
def test_nodes_that_were_lost_are_waited_for(two, tmp_path, monkeypatch, variables, slots, why):
    _, nodes = two
    asked = []
    monkeypatch.setattr("pipelines.run.pools.ray_gang.REPLACED_SECONDS", 1)
    monkeypatch.setattr("pipelines.run.pools.ray_cluster.cluster_slots", lambda study: asked.append(study) or slots)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadSetting, match=f"ranks = 2, but the Ray cluster has {why}"), of(nodes, tmp_path, {}):
        pass
    assert len(asked) > 1


def test_a_gang_waits_until_there_is_room_for_all_of_it(two, tmp_path):
    import ray

    _, nodes = two

    class Taken:
        def free(self):
            pass

    assert nodes.places(nodes.study) == ["", ""]  # connects
    taken = ray.remote(Taken).options(num_cpus=1).remote()
    ray.get(taken.free.remote())
    reports = []

    def report(what):
        reports.append(dict(what))
        assert not list(tmp_path.glob("rank-*")), "a rank was started"
        if what:
            threading.Timer(2, ray.kill, [taken]).start()

    with of(nodes, tmp_path, {}, report=report) as members:
        one, other = (printed(member) for member in members)
        assert list(lines_of_first(members, "it", tmp_path)) == []
    assert reports == [{"waits": "2 times 1 CPUs of the Ray cluster"}, {}]
    assert (one["rank"], other["rank"]) == (0, 1)
    assert one["raylet"] != other["raylet"]
    assert one["meeting"]["host"] == other["meeting"]["host"] == "127.0.0.1"
    assert list(tmp_path.glob(".nodes-*")) == []


def test_a_rank_that_fails_ends_the_others(two, tmp_path):
    _, nodes = two
    with of(nodes, tmp_path, {"0": "work", "1": "fail"}) as members:
        first = printed(members[0])
        with pytest.raises(TrainingFailed, match="rank 1 of it failed: the reason"):
            list(lines_of_first(members, "it", tmp_path))
        assert runs(first["pid"])
    assert not runs(first["pid"])


def test_a_rank_whose_keeper_is_stopped_ends_the_others(two, tmp_path, monkeypatch):
    _, nodes = two
    monkeypatch.setenv("HARDMOE_STALL_SECONDS", "4")
    with of(nodes, tmp_path, {"0": "work", "1": "work"}) as members:
        pids = [printed(member)["pid"] for member in members]
        keeper = parent_of(pids[1])
        os.kill(keeper, signal.SIGSTOP)
        with pytest.raises(TrainingFailed, match=r"rank 1 of it made no progress for 4 s"):
            list(lines_of_first(members, "it", tmp_path))
    wait_until(lambda: not any(map(runs, [*pids, keeper])))


def test_a_node_with_other_packages_is_refused(two, tmp_path, monkeypatch):
    _, nodes = two
    ours = about([])
    ours = replace(ours, versions={**ours.versions, "torch": "1.0"})
    monkeypatch.setattr("pipelines.run.pools.ray_gang.about", lambda locks: ours)
    why = r"node \S+ of the Ray cluster has torch 2.*, this command 1\.0: install"
    helper = nodes.helper("", "helpers.joint_helper", tmp_path)
    with closing(helper), pytest.raises(BadSetting, match=why):
        wait_until(helper.exit_code)


def test_helpers_on_two_nodes_give_what_one_process_gives(two, tmp_path):
    _, nodes = two
    alone, together = tmp_path / "alone", tmp_path / "together"
    together.mkdir()
    study = nodes.study.changed(partition={"experts": 5})
    assert nodes.places(study) == ["", ""]
    helpers = [nodes.helper(place, "helpers.joint_helper", together) for place in nodes.places(study)]
    wait_until(lambda: all(helper.exit_code() == 0 for helper in helpers))
    for helper in helpers:
        helper.close()
    one, two_ = finish(joint(alone)), finish(joint(together))
    assert all(torch.equal(one[key][name], two_[key][name]) for key in one for name in one[key])


def process_that_writes(log):
    """The process whose errors go to a file; None while there is none."""
    for errors in Path("/proc").glob("[0-9]*/fd/2"):
        with suppress(OSError):
            if errors.readlink() == log:
                return int(errors.parts[2])
    return None


def weights(artifact):
    return load_weights(artifact.file("weights.safetensors"))[0]


def test_a_trunk_of_ranks_on_two_nodes_resumes_and_ends_in_the_bits_of_one_machine(two, tmp_path):
    _, nodes = two
    here = context_of(tmp_path / "here", ranks=2)
    build_all(here, ("posts", "splits", "vocabulary"))
    shutil.copytree(here.root, tmp_path / "there")
    there = context_of(tmp_path / "there", ranks=2)
    build_all(here, ("trunk",))
    work = there.store.work_folder(there.spec("trunk"))
    there = replace(there, nodes=nodes)

    def kill():
        wait_until((work / "checkpoint.safetensors").exists)
        os.kill(process_that_writes(work / "rank-1.log"), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(TrainingFailed, match=r"rank 1 of the trunk was killed by signal 9.* on node "):
        build(there, "trunk")
    assert int(load_weights(work / "checkpoint.safetensors")[1]["step"]) > 0
    one, other = weights(here.need("trunk")), weights(build(there, "trunk").artifact)
    assert all(torch.equal(one[name], other[name]) for name in one)


ALONE = """
import sys, time
from pathlib import Path
from moe_core.recipes import demo
from moe_core.settings import Cluster
from pipelines.run.pools.ray_gang import RayNodes
nodes = RayNodes(demo().changed(cluster=Cluster(threads=1, engine="ray", address=sys.argv[1])))
with nodes.gang("helpers.gang_rank", 2, {"do": {"0": "work", "1": "work"}}, Path(sys.argv[2]), print):
    time.sleep(1000)
"""


@pytest.mark.soak
def test_ranks_on_nodes_end_with_the_process_that_started_them(two, tmp_path):
    made, _ = two
    logs = [tmp_path / f"rank-{rank}.log" for rank in range(2)]
    with subprocess.Popen([sys.executable, "-c", ALONE, made.address, tmp_path]) as process:
        pids = [wait_until(lambda log=log: process_that_writes(log)) for log in logs]
        process.kill()
    wait_until(lambda: not any(map(runs, pids)))


@pytest.mark.soak
def test_a_command_whose_gang_loses_a_node_resumes_and_makes_what_one_machine_makes(two, tmp_path, started):
    made, _ = two
    study = small_study(
        source=Source(format="synthetic", posts=900, shards=1),
        cluster=Cluster(threads=1),
        trunk=QUICK.model_copy(update={"epochs": 40}),
        trunk_setup=TrunkSetup(ranks=2),
        partition=Partition(experts=3, pca=8),
        decoder=Decoder(mode="joint", rounds=3),
    )
    files = [write(tmp_path / name, study) for name in ("here", "there")]

    def run(file, *more):
        return started("run", "--study", file, "--until", "joint_experts", *more)

    here = run(files[0])
    assert here.communicate()
    assert here.returncode == 0
    on_ray = ("--engine", "ray", "--address", made.address)
    there = run(files[1], *on_ray)
    context = open_study(load_study(files[1]), files[1].parent)
    logs = context.store.layout.root / "trunk"
    wait_until(lambda: list(logs.glob(".work-*/checkpoint.safetensors")))
    (log,) = logs.glob(".work-*/rank-1.log")
    lose(node_of(made, parent_of(process_that_writes(log))))
    made.add_node(num_cpus=1)
    out, errors = there.communicate(timeout=600)
    assert there.returncode == 0, out + errors
    assert re.search(r"trunk: rank 1 of the trunk was lost: .*; started again, try 2 of 3", errors), errors
    one, other = (open_study(load_study(file), file.parent) for file in files)
    for name in ("trunk", "joint_experts"):
        assert one.need(name).content_hash == other.need(name).content_hash
    assert other.need("joint_experts").metadata["processes"] == 2
