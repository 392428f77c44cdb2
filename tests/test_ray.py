"""The Ray pool without a cluster: what it asks of nodes, what it passes on, and what is refused in one line."""

import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest

from helpers.command import hardmoe, write
from helpers.processes import until
from helpers.with_controls import small_study
from moe_core.errors import BadSetting, MissingLibrary
from moe_core.settings import Cluster
from moe_core.store.layout import Layout
from moe_core.store.locks import is_held
from pipelines.run.pools import ray, ray_cluster
from pipelines.run.pools.ray import RayPool, why_lost
from pipelines.run.pools.ray_cluster import (
    Slots,
    Takes,
    actor_options,
    checked_slots,
    connect,
    plain_environment,
    secret_environment,
    slots_of,
)
from pipelines.run.pools.ray_node import about, code_hash
from pipelines.run.task import Task

THREADS = small_study(cluster=Cluster(threads=4))


def node(alive=True, **resources):
    return {"Alive": alive, "Resources": resources}


@pytest.mark.parametrize(
    ("nodes", "slots"),
    [
        ([], Slots(0, 0)),
        ([node(memory=1e9)], Slots(0, 0)),  # a head that runs nothing
        ([node(CPU=3.0)], Slots(0, 0)),
        ([node(CPU=9.0), node(CPU=4.0), node(alive=False, CPU=64.0)], Slots(0, 3)),
        ([node(CPU=16.0, GPU=8.0)], Slots(8, 2)),  # a core for each GPU, four for each other
        ([node(CPU=2.0, GPU=8.0), node(CPU=5.0)], Slots(2, 1)),
    ],
)
def test_room_is_counted_node_by_node(nodes, slots):
    assert slots_of(nodes, THREADS) == slots


def test_a_process_has_one_gpu_or_sees_none(monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", "/nowhere")
    with_gpu, without = (actor_options(THREADS, takes) for takes in (Takes.GPU, Takes.CORES))
    assert (with_gpu["num_gpus"], without["num_gpus"], without["num_cpus"]) == (1, 0, 4)
    assert "CUDA_VISIBLE_DEVICES" not in with_gpu["runtime_env"]["env_vars"], "Ray's matter"
    assert without["runtime_env"]["env_vars"]["CUDA_VISIBLE_DEVICES"] == ""
    for on_gpus in (True, False):
        starts_ranks = actor_options(THREADS, Takes.NOTHING, on_gpus)
        assert (starts_ranks["num_gpus"], starts_ranks["num_cpus"]) == (0, 0)
        assert ("HARDMOE_RANKS_ON_GPUS" in starts_ranks["runtime_env"]["env_vars"]) == on_gpus
    assert without["max_restarts"] == without["max_task_retries"] == 0, "each try is a run of its own"


def test_passwords_and_keys_are_not_where_the_dashboard_shows_them(tmp_path, monkeypatch):
    (tmp_path / "dagster.yaml").write_text("storage: {postgres: {postgres_db: {password: {env: HARDMOE_PG}}}}\n")
    secrets = {"HARDMOE_PG": "1234", "AWS_SECRET_ACCESS_KEY": "5678", "HARDMOE_TOKEN": "90"}
    variables = secrets | {"DAGSTER_HOME": str(tmp_path), "HARDMOE_STUDY": "/cats", "HARDMOE_SHARE": "3"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    plain, secret = plain_environment(), secret_environment()
    assert (plain["HARDMOE_STUDY"], plain["DAGSTER_HOME"]) == ("/cats", str(tmp_path))
    assert {*secrets, "PATH", "HARDMOE_SHARE"}.isdisjoint(plain)
    assert secrets.items() <= secret.items()
    assert {"HARDMOE_STUDY", "HARDMOE_SHARE"}.isdisjoint(secret)


def test_what_is_no_cluster_is_refused_soon_and_in_one_line(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="pip install 'hardmoe[ray]'")
    monkeypatch.setattr(ray_cluster, "CONNECT_SECONDS", 0.5)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(BadSetting, match=r"no Ray cluster answers at 127.0.0.1:1 \(for 0.5 s\): does its head run"):
        connect(Cluster(engine="ray", address="127.0.0.1:1"))
    with pytest.raises(BadSetting, match=r"'auto', and no Ray cluster runs on this machine: name one with --address"):
        connect(Cluster(engine="ray"))
    for address, why in (
        ("ray://a:10001", "lost with its connection"),
        ("http://a:8265", "wanted 'auto' or HOST:PORT"),
    ):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(BadSetting, match=f"RAY_ADDRESS is '{address}': .*{why}"):
            connect(Cluster(engine="ray"))


def test_without_the_extra_the_engine_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingLibrary, match=r"pip install 'hardmoe\[ray\]'"):
        connect(Cluster(engine="ray"))


def test_a_cluster_without_room_and_a_study_without_threads_are_refused(monkeypatch):
    monkeypatch.setattr(ray_cluster, "connect", lambda cluster: "gpu01:6379")
    monkeypatch.setattr(ray_cluster, "cluster_slots", lambda study: Slots())
    with pytest.raises(BadSetting, match=r"gpu01:6379 has no room: wanted a GPU, or 4 CPUs on one node"):
        checked_slots(Cluster(engine="ray"), THREADS)
    with pytest.raises(BadSetting, match=r"wants the number of threads .*: --set cluster.threads=N"):
        checked_slots(Cluster(engine="ray"), small_study())


@pytest.fixture
def pool_of(tmp_path, monkeypatch):
    """Starts a pool on a cluster that has the slots in a list, and no nodes to check."""
    pytest.importorskip("ray", reason="pip install 'hardmoe[ray]'")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.setattr(ray, "NODES_SECONDS", 0.01)
    monkeypatch.setattr(ray, "check_nodes", lambda study, locks, warn: None)
    with ExitStack() as ends:

        def start(slots):
            monkeypatch.setattr(ray, "checked_slots", lambda cluster, study: slots[0])
            monkeypatch.setattr(ray, "cluster_slots", lambda study: slots[0])
            instance = ends.enter_context(dg.DagsterInstance.local_temp(str(tmp_path / "home")))
            pool = RayPool(Cluster(), THREADS, root=tmp_path / "cats", instance=instance)
            ends.callback(pool.close)
            return pool

        yield start


def locks_in(folder):
    return [path for path in folder.rglob("*nodes-*") if is_held(path)]


def test_a_pool_holds_locks_for_its_nodes_and_leaves_none_where_it_ends_or_a_node_is_refused(
    tmp_path, pool_of, monkeypatch
):
    pool = pool_of([Slots(0, 1)])
    assert {path.parent for path in locks_in(tmp_path)} == {Layout(tmp_path / "cats").leases, tmp_path / "home"}
    pool.close()
    assert locks_in(tmp_path) == list(tmp_path.rglob("*nodes-*")) == []

    def refuse(study, locks, warn):
        assert sorted(locks) == sorted(locks_in(tmp_path))
        raise BadSetting("node gpu01 has torch 1.0")

    monkeypatch.setattr(ray, "check_nodes", refuse)
    with pytest.raises(BadSetting, match="gpu01") as refused:  # keeps the frames of the error
        pool_of([Slots(0, 1)])
    assert list(tmp_path.rglob("*nodes-*")) == [], refused.value


def test_trainings_wait_where_all_gpus_are_lost_and_do_not_go_on_without(pool_of):
    slots = [Slots(gpus=1, cpus=2)]
    pool = pool_of(slots)
    assert pool.has_room(Task("trunk", None), [])
    assert not pool.has_room(Task("expert", "e000"), [Task("trunk", None)])
    slots[0] = Slots(gpus=0, cpus=2)
    until(lambda: pool.capacity == 2)
    assert not pool.has_room(Task("trunk", None), [])
    assert pool.has_room(Task("vocabulary", None), [])
    slots[0] = Slots(gpus=1, cpus=2)
    until(lambda: pool.capacity == 3)
    assert pool.has_room(Task("trunk", None), [])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--address", "gpu01:6379"], "--address names a Ray cluster: it goes with --engine ray"),
        (
            ["--engine", "ray", "--address", "ray://gpu01:10001"],
            "--address ray://gpu01:10001: the work of a Ray client",
        ),
        (["--engine", "ray", "--address", "gpu01"], "--address gpu01: wanted 'auto' or HOST:PORT"),
    ],
)
def test_an_address_that_is_none_is_one_line(tmp_path, options, why):
    file = write(tmp_path, small_study())
    done = hardmoe("run", "--study", file, *options, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {why}")
    assert done.stderr.count("\n") == 1


LOCK = Path("/lustre/cats/.runs/nodes-1")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"versions": {"torch": "2.12.0"}}, "has torch 2.12.0, this command {torch}: install the same on all nodes"),
        ({"versions": {"code of hardmoe": "abc"}}, "has code of hardmoe abc, this command {code of hardmoe}: install"),
        ({"locks": (None,)}, "does not see /lustre/cats/.runs: share the folder of the study with all nodes"),
        ({"locks": (False,)}, "does not see locks in /lustre/cats/.runs: see the file systems in docs/"),
        ({"dagster": "another"}, "has no or another /home/dagster.yaml: put the same file there"),
    ],
)
def test_a_node_that_is_not_as_this_machine_is_told(monkeypatch, change, why):
    monkeypatch.setenv("DAGSTER_HOME", "/home")
    ours = about([])
    change = change | {"versions": {**ours.versions, **change.get("versions", {})}}
    found = replace(ours, **{"locks": (True,)} | change).problem(ours, [LOCK])
    assert found.startswith(why.format(**ours.versions))
    assert bool(found) == bool(why)


def test_the_code_is_told_by_every_module_of_ours(tmp_path, monkeypatch):
    for name in ("moe_core/__init__.py", "assets/a.py", "pipelines/run/b.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("1\n")
    monkeypatch.setattr("moe_core.__file__", str(tmp_path / "moe_core/__init__.py"))
    code_hash.cache_clear()
    first = code_hash()
    (tmp_path / "pipelines/run/b.py").write_text("2\n")
    code_hash.cache_clear()
    assert code_hash() != first
    code_hash.cache_clear()


DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: Worker
\tpid: 4711
The actor died because its node has died. Node Id: 79aa
\tthe actor's node was terminated unexpectedly
"""
FAILED = "The actor died because of an error raised in its creation task, ray::Worker\n  File a\nOSError: full\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (DIED, "its process ended: The actor died because its node has died. Node Id: 79aa"),
        (FAILED, "its process failed: OSError: full"),
        ("gone", "its process ended: gone"),
    ],
)
def test_why_a_process_was_lost_is_one_line(text, why):
    assert why_lost(RuntimeError(text)) == why


def test_an_error_within_a_process_is_its_last_line():
    error = type("RayTaskError(OSError)", (Exception,), {})  # as Ray names its own
    assert (
        why_lost(error("ray::Worker.about()\n  File a\n    about()\nOSError: full"))
        == "its process failed: OSError: full"
    )


def test_without_the_engine_ray_is_never_imported():
    modules = (
        "pipelines.cli.run, pipelines.cli.repartition, pipelines.run.scheduler, pipelines.run.worker, assets.graph"
    )
    code = f"import sys, {modules}; print(sorted({{'ray', 'dagster_ray', 'obstore'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
