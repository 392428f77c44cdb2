"""Threads follow from the work in a batch and sleep soon while they wait, in every process, unless the user says
otherwise."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch

from helpers.growing import QUICK, add_shard, growing_study, make, opened
from helpers.processes import until
from helpers.ui import free_port, launch, started_ui
from helpers.with_controls import small_study
from moe_core import threads
from moe_core.engine.nodes import ThisMachine
from moe_core.models.cost import multiply_adds
from moe_core.models.resnet import build as build_network
from moe_core.settings import Cluster, Decoder, Network, TrunkSetup
from moe_core.stages.experts.joint import JOB, Helpers
from moe_core.stages.training import fit
from moe_core.stages.training.device import device_and_threads
from moe_core.study_file import load_study
from moe_core.threads import (
    SHARE,
    SHORT,
    VARIABLES,
    WORK_A_THREAD,
    chosen_threads,
    threads_for,
    threads_of,
    workers_for,
)
from moe_core.workspace import open_study
from pipelines.run.pools.choice import worker_count


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch):
    """Whatever the tests were started with; what they change is put back."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    yield
    threads.begin()
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("work", "share", "wanted"),
    [
        (0, 8, 1),
        (2 * WORK_A_THREAD - 1, 8, 1),
        (2 * WORK_A_THREAD, 8, 2),
        (2 * WORK_A_THREAD, 1, 1),
        (7 * WORK_A_THREAD, 8, 7),
        (99 * WORK_A_THREAD, 8, 8),
    ],
)
def test_threads_follow_from_the_work_up_to_the_share(work, share, wanted):
    assert threads_of(work, share) == wanted


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, None),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"OMP_NUM_THREADS": " 4 "}, 4),
        ({"OMP_NUM_THREADS": "many"}, None),  # OpenMP warns and goes on without
        ({"OMP_NUM_THREADS": "0"}, None),
        ({"OMP_NUM_THREADS": "3", "HARDMOE_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "3", "OMP_THREAD_LIMIT": "2"}, 2),
    ],
)
def test_what_the_user_said_of_threads_comes_first(environment, wanted, monkeypatch):
    assert chosen_threads(environment) == wanted
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert threads_of(0, 8) == (wanted or 1)


def test_a_limit_of_openmp_holds(monkeypatch):
    monkeypatch.setenv("OMP_THREAD_LIMIT", "2")
    assert (threads_of(0, 8), threads_of(9 * WORK_A_THREAD, 8)) == (1, 2)


@pytest.mark.parametrize("said", ["0", "-1", "two", "1.5"])
def test_a_number_of_threads_that_is_none_is_refused(said):
    with pytest.raises(ValueError, match=rf"HARDMOE_THREADS is '{said}': wanted a whole number of at least 1"):
        chosen_threads({"HARDMOE_THREADS": said})


def test_workers_that_the_command_was_told_divide_the_cores_and_leave_the_work_to_decide(monkeypatch):
    monkeypatch.setattr("moe_core.threads.cores", lambda: 16)
    assert (threads_for(True, 4), threads_for(False, 4), workers_for(4)) == (4, 16, 4)
    monkeypatch.setenv(SHARE, "8")
    assert (threads_for(True, 4), workers_for(4)) == (8, 2)
    assert threads_of(0, 8) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    assert workers_for(4) == 1, "each worker computes with all the cores"


def test_threads_that_the_study_records_are_those_of_every_machine(monkeypatch):
    for machine in (2, 64):
        monkeypatch.setattr("moe_core.threads.cores", lambda machine=machine: machine)
        threads.begin(3)
        assert (threads_of(0, 8), threads_for(True, 4), threads_for(False, 4)) == (3, 3, 3)
        assert workers_for(4) == max(1, machine // 3)
    threads.begin()
    assert threads_of(0, 8) == 1
    study = small_study(cluster=Cluster(threads=2))
    device_and_threads(study, parallel=True)  # of a process that builds only a part
    assert (torch.get_num_threads(), chosen_threads()) == (2, 2)
    monkeypatch.setenv("HARDMOE_THREADS", "2")
    assert worker_count(None, study) == 32
    monkeypatch.setenv("HARDMOE_THREADS", "4")
    with pytest.raises(ValueError, match=r"HARDMOE_THREADS is 4, but the study has cluster.threads = 2, and results"):
        worker_count(None, study)


NETWORKS = {
    "tiny, small pictures": (Network(), 16, 64, 1),
    "tiny": (Network(), 32, 128, 2),
    "wide": (Network(widths=(32, 64, 128)), 32, 128, 32),
    "wide, batch of 16": (Network(widths=(32, 64, 128)), 32, 16, 4),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_trains_with_as_many_threads_as_its_batch_is_worth(name, monkeypatch, tmp_path):
    network, side, batch, wanted = NETWORKS[name]
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    threads.use(0, 64)
    model = build_network(network, 500, seed=0)
    fit.training_threads(model, side, QUICK.model_copy(update={"batch_size": batch}), posts=1000)
    assert chosen == [1, wanted]
    assert wanted == max(1, 3 * batch * multiply_adds(model, side) // WORK_A_THREAD)
    assert threads.share() == 64, "decoding does not follow from the network"


def test_few_posts_make_a_small_batch_and_ranks_divide_the_share(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    model, training = (
        build_network(Network(widths=(32, 64, 128)), 500, seed=0),
        QUICK.model_copy(update={"batch_size": 128}),
    )
    for posts, ranks in ((16, 1), (256, 2)):
        threads.begin()
        threads.use(0, 16)
        fit.training_threads(model, 32, training, posts, ranks)
    assert chosen == [1, 4, 1, 8]


@pytest.mark.parametrize("said", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}, {"KMP_BLOCKTIME": "1"}])
def test_waiting_is_short_unless_something_is_said_of_it(said):
    code = "import json, os, sys, moe_core.threads as t; print(json.dumps([dict(os.environ), t.waiting()]))"
    environment = {name: value for name, value in os.environ.items() if name not in threads.WAITING} | said
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    found, waiting = json.loads(done.stdout)
    wanted = said or SHORT
    assert {name: value for name, value in found.items() if name in threads.WAITING} == wanted
    assert waiting == " ".join(f"{name}={value}" for name, value in wanted.items())


def test_where_torch_is_there_already_nothing_is_set_and_that_is_said():
    code = "import torch, os, moe_core.threads as t; print(os.environ.get('GOMP_SPINCOUNT'), t.waiting())"
    environment = {name: value for name, value in os.environ.items() if name not in threads.WAITING}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "None as torch was loaded\n"


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(not HUGE_PAGES.exists(), reason="this kernel has no huge pages to ask for")
@pytest.mark.parametrize(("said", "asked"), [(None, True), ("0", False)])
def test_large_tensors_ask_for_huge_pages_unless_the_user_says_no(said, asked):
    code = (
        "import moe_core, torch; from pathlib import Path; there = torch.ones(32 << 20); "
        "print(any('hg' in line.split() for line in Path('/proc/self/smaps').read_text().splitlines()"
        " if line.startswith('VmFlags')))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    environment |= {"NUMPY_MADVISE_HUGEPAGE": "0"} | ({"THP_MEM_ALLOC_ENABLE": said} if said else {})
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{asked}\n"


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is in torch's Linux builds")
@pytest.mark.parametrize("said", [None, "77"])
@pytest.mark.parametrize("module", ["pipelines.run.worker", "pipelines.definitions, torch", "moe_core.serving.routed"])
def test_openmp_itself_reads_it(module, said, tmp_path):
    """Of the fork server, Dagster's processes and an answer: what the runtime says of itself as it is loaded."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment |= {"OMP_DISPLAY_ENV": "verbose", "HARDMOE_STUDY": str(_study(tmp_path))}
    environment |= {"GOMP_SPINCOUNT": said} if said else {}
    done = subprocess.run([sys.executable, "-c", f"import {module}"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    assert set(found) == {said or SHORT["GOMP_SPINCOUNT"]}, done.stderr


def _study(folder, **more):
    add_shard(folder / "source", 0, posts=500)
    study = growing_study(folder / "source", experts=2, **more)
    return opened(study, folder / "study").root / "study.toml"


LOOK = """
import json, os, sys

class Look:
    # Notes with what environment a process begins to load torch.
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            said = {"argv": sys.orig_argv, "environment": dict(os.environ)}
            with open(os.environ["LOOKED"] + f"/{os.getpid()}-{os.getppid()}.json", "w") as file:
                json.dump(said, file)

sys.meta_path.insert(0, Look())
"""


@pytest.fixture
def watched(tmp_path):
    """(environment for a command, what each of its processes that loaded torch was started as and had set then)"""
    (tmp_path / "hook").mkdir()
    (tmp_path / "looked").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(LOOK)
    environment = {name: value for name, value in os.environ.items() if name not in (*VARIABLES, "DAGSTER_HOME")}
    path = os.pathsep.join([str(tmp_path / "hook"), os.getcwd()])
    environment |= {"PYTHONPATH": path, "LOOKED": str(tmp_path / "looked"), "HARDMOE_WORKERS": "1"}

    def looked():
        found = [json.loads(file.read_text()) for file in (tmp_path / "looked").iterdir()]
        kinds = (
            "moe_core.trunk_rank",
            "moe_core.joint_helper",
            "forkserver",
            "predict",
            "launch",
            "dagster",
        )
        return {
            next((kind for kind in kinds if kind in " ".join(one["argv"])), str(one["argv"])): {
                name: one["environment"].get(name) for name in threads.WAITING if name in one["environment"]
            }
            for one in found
        }

    return environment, looked


def command(environment, *arguments, module="pipelines.cli.main"):
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("said", [{}, {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "2"}])
def test_every_process_of_a_run_and_an_answer(tmp_path, watched, said, monkeypatch):
    environment, looked = watched
    environment |= said
    file = _study(tmp_path, trunk_setup=TrunkSetup(ranks=2), decoder=Decoder(mode="joint", rounds=2))
    command(environment, "run", "--study", file, "--until", "published", "--workers", "2")
    picture = tmp_path / "a.png"
    picture.write_bytes(_png())
    command(environment, "predict", "--bundle", file.parent, picture)
    context = opened(load_study(file), file.parent)
    helper(context, environment, monkeypatch)
    wanted = {name: value for name, value in said.items() if name in threads.WAITING} or SHORT
    found = looked()
    assert {"moe_core.trunk_rank", "moe_core.joint_helper", "forkserver", "predict"} <= set(found)
    assert all(each == wanted for each in found.values()), found
    waiting = " ".join(f"{name}={value}" for name, value in wanted.items())
    for name in ("trunk", "joint_experts", "mixture"):  # nothing was published to compare with
        metadata = context.need(name).metadata
        assert (metadata["threads"], metadata["waiting"]) == (int(said.get("OMP_NUM_THREADS", 1)), waiting), name
    assert context.need("expert", "e001").metadata["waiting"] == waiting


def helper(context, environment, monkeypatch):
    """One that helps with the generation, as its maker starts it; it makes all of it, as its maker has ended."""
    work = context.store.work_folder(context.spec("joint_experts"))
    work.mkdir(parents=True)
    job = {"root": str(context.root), "name": "joint_experts"}
    job |= {"study": context.study.model_dump(mode="json"), "version": context.version("joint_experts")}
    (work / JOB).write_text(json.dumps(job))
    monkeypatch.setattr(os, "environ", environment)
    with closing(Helpers(work, ThisMachine(), [""])) as helpers:
        helpers.start(0)
        assert helpers.members[0].process.wait() == 0


def _png():
    from io import BytesIO

    from PIL import Image

    data = BytesIO()
    Image.linear_gradient("L").convert("RGB").save(data, "PNG")
    return data.getvalue()


@pytest.mark.slow
def test_runs_that_dagster_starts_by_itself(tmp_path, watched):
    environment, looked = watched
    file = _study(tmp_path)
    command(environment, "run", "--study", file, "--until", "vocabulary")
    home = {"HARDMOE_STUDY": str(file), "DAGSTER_HOME": str(file.parent / "dagster")}
    command(environment | home, "launch", "--assets", "trunk", module="dagster_dg_cli.cli")
    found = looked()
    assert any(kind in found for kind in ("launch", "dagster")), found
    assert all(each == SHORT for each in found.values()), found


@pytest.mark.slow
def test_runs_that_the_daemon_starts(tmp_path, watched, monkeypatch):
    environment, looked = watched
    file, port = _study(tmp_path), free_port()
    command(environment, "run", "--study", file, "--until", "partition")
    for seen in (tmp_path / "looked").iterdir():
        seen.unlink()
    for name in (*VARIABLES, "DAGSTER_HOME"):
        environment.pop(name, None)
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", environment)
        process = started_ui(file, port)
    store = open_study(load_study(file), file.parent).store
    try:
        launch(f"http://127.0.0.1:{port}", "experts", "expert", "e001")
        until(lambda: store.versions("expert", "e001"), seconds=300)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
    found = looked()
    assert found
    assert all(each == SHORT for each in found.values()), found
    (expert,) = open_study(load_study(file), file.parent).store.versions("expert", "e001")
    assert expert.metadata["waiting"] == " ".join(f"{name}={value}" for name, value in SHORT.items())


def test_all_that_a_network_computes_says_its_threads(tmp_path):
    add_shard(tmp_path / "source", 0, posts=300)
    study = growing_study(tmp_path / "source", experts=2, controls=True)
    make(study, tmp_path / "study", until="evaluation")
    context = opened(study, tmp_path / "study")
    key = context.shards[0].key
    names = ("trunk", "mixture", "evaluation", "trunk_same_budget", "dense_same_cost", "shared_decoder")
    found = [context.need(name) for name in names]
    found += [
        context.need("expert", "e001"),
        context.need("random_expert", "e000"),
        context.need("trunk_features", key),
    ]
    assert {(one.metadata["threads"], one.metadata["waiting"]) for one in found} == {(1, threads.waiting())}
    assert "threads" not in context.need("vocabulary").metadata


def test_a_stage_that_is_told_computes_with_as_many_threads(monkeypatch):
    study = growing_study("unused")
    monkeypatch.setenv("HARDMOE_THREADS", "3")
    device_and_threads(study, parallel=True)
    assert torch.get_num_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("HARDMOE_THREADS")
    device_and_threads(study, parallel=True)
    assert torch.get_num_threads() == 2
