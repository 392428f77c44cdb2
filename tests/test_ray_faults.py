"""A study on a Ray cluster of two nodes: what it builds, and a process, a node and the head that are lost meanwhile."""

import json
import os
import re
import signal

import dagster as dg
import pytest

from helpers.command import write
from helpers.plain import make_plainly
from helpers.processes import until
from helpers.ray_nodes import cluster, lose, node_of
from helpers.with_controls import QUICK, small_study
from moe_core.processes import alive
from moe_core.settings import Cluster, Evaluation, Source
from moe_core.store.layout import Layout
from moe_core.study_file import load_study
from moe_core.workspace import open_study

pytestmark = pytest.mark.filterwarnings("ignore:lance is not fork-safe")  # a cluster starts its processes by forks

STATES = dg.DagsterRunStatus


def study_at(folder, **more):
    """A whole graph without controls, whose networks train for some seconds."""
    training = QUICK.model_copy(update={"epochs": 240, "checkpoint_seconds": 0.1})
    values = {
        "cluster": Cluster(threads=1),
        "source": Source(format="synthetic", posts=500, shards=2),
        "trunk": training,
        "expert_training": training,
        "evaluation": Evaluation(controls=False, bootstrap=20),
    }
    return write(folder, small_study(**values | more))


def hashes(file):
    tasks = open_study(load_study(file), file.parent).planner.tasks()
    return {task.name: task.artifact and task.artifact.content_hash for task in tasks}


def training(file, name, process):
    """The report of a network that trains, once it has a checkpoint."""

    def report():
        try:
            found = json.loads(Layout(file.parent).progress(*name).read_text())
        except (OSError, ValueError):
            return None
        return found if alive(found["process"]) and found.get("step", 0) > 20 else None

    return until(report, process, 300)


def runs_of(file):
    """(asset, status) of each run in Dagster, the first one first."""
    with dg.DagsterInstance.from_config(str(Layout(file.parent).dagster_home)) as instance:
        runs = instance.get_runs()
        return [(next(iter(run.asset_selection)).path[-1], run.status) for run in reversed(runs)]


def run_on(started, nodes, file):
    return started("run", "--study", file, "--engine", "ray", "--address", nodes.address, HARDMOE_STALL_SECONDS="3")


@pytest.fixture(scope="module")
def two_nodes():
    with cluster() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Hashes of all that a plain script makes of the study."""
    file = study_at(tmp_path_factory.mktemp("undisturbed"))
    make_plainly(file)
    return hashes(file)


@pytest.mark.slow
def test_a_command_that_is_interrupted_stopped_and_loses_a_node_makes_the_same_by_runs_of_their_own(
    tmp_path, started, two_nodes, undisturbed
):
    file = study_at(tmp_path / "study")
    process = run_on(started, two_nodes, file)
    begun = training(file, ("trunk", None), process)["pid"]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert "trunk stopped at the last checkpoint. Run the same command to resume." in errors
    assert not os.path.exists(f"/proc/{begun}")

    process = run_on(started, two_nodes, file)
    stopped = training(file, ("trunk", None), process)["pid"]
    os.kill(stopped, signal.SIGSTOP)
    until(lambda: not os.path.exists(f"/proc/{stopped}"), process)
    lose(node_of(two_nodes, training(file, ("expert", "e000"), process)["pid"]))
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, out + errors
    assert re.search(r"trunk: its process on .* made no progress for 3 s .*; started again, try 2 of 3", errors), errors
    assert re.search(r"expert:e000: its process ended: The actor .*; started again, try 2 of 3", errors), errors

    runs = runs_of(file)
    assert [asset for asset, status in runs if status == STATES.CANCELED] == ["trunk"], (runs, errors)
    assert [asset for asset, status in runs if status == STATES.FAILURE] == ["trunk", "expert"], runs
    assert sum(status == STATES.SUCCESS for _, status in runs) == len(runs) - 3 == len(undisturbed)
    assert hashes(file) == undisturbed


@pytest.mark.soak
def test_the_head_is_lost_and_the_same_command_on_another_cluster_goes_on(tmp_path, started, undisturbed):
    file = study_at(tmp_path / "study")
    with cluster() as nodes:
        process = run_on(started, nodes, file)
        training(file, ("trunk", None), process)
        lose(nodes.head_node)
        print(*process.communicate(timeout=300))
        assert process.returncode not in (0, None)
    with cluster() as nodes:
        process = run_on(started, nodes, file)
        out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, out + errors
    runs = runs_of(file)
    assert {status for _, status in runs} == {STATES.SUCCESS, STATES.FAILURE}, "none is left started"
    assert sum(status == STATES.FAILURE for _, status in runs) in (1, 2), "those that were under way"
    assert hashes(file) == undisturbed
