"""A process that is gone is known to be gone, also when another has its id by now; what it left is ended."""

import json
import os
import signal
import socket
import subprocess
import sys

import dagster as dg
import pytest
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

from assets.runs import HOST, PROCESS, identity
from helpers.command import hardmoe, write
from helpers.processes import until
from helpers.ui import free_port, launch, processes, started_ui
from helpers.with_controls import QUICK, small_study
from moe_core import processes as names
from moe_core.store.files import dead_files, dead_parts
from moe_core.store.layout import Layout
from moe_core.study_file import load_study
from moe_core.workspace import open_study
from pipelines.aliases import socket_prefix
from pipelines.instance.reap import GRPC_INFO, reap
from pipelines.run.status import states_of


@pytest.fixture
def living():
    """A process that has nothing to do with us."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.communicate(b"\n")


def reused(process):
    """The name of a process that had the id of this one before it."""
    pid, began, boot, machine = names.process_name(process.pid).split("_")
    return f"{pid}_{int(began) - 1}_{boot}_{machine}"


def elsewhere(process):
    """The name of a process of another machine that has the id, the start and the boot of this one."""
    return process.rpartition("_")[0] + "_0123abcd"


def test_a_process_is_known_by_its_name_until_it_ends(living):
    name = names.process_name(living.pid)
    assert names.pid_of(name) == living.pid
    assert (names.alive(name), names.is_dead(name)) == (True, False)
    living.kill()
    os.waitid(os.P_PID, living.pid, os.WEXITED | os.WNOWAIT)  # it ended, and was not collected
    assert names.is_dead(name)
    living.wait()
    assert names.is_dead(name)
    with pytest.raises(ProcessLookupError):
        names.process_name(living.pid)


def test_an_id_that_another_process_has_by_now_is_dead(living):
    pid, began, boot, machine = names.process_name(living.pid).split("_")
    assert names.is_dead(reused(living))
    assert names.is_dead(f"{pid}_{began}_{'0' * len(boot)}_{machine}"), "of before the machine was started again"


def test_a_process_of_another_machine_is_neither_alive_nor_dead(living):
    for name in (elsewhere(names.process_name(living.pid)), elsewhere(reused(living)), "4711_1_1a"):
        assert (names.is_name(name), names.is_ours(name)) == (True, False)
        assert (names.alive(name), names.is_dead(name)) == (False, False)


@pytest.mark.parametrize("name", ["", "x", "-1", "1", "1_2", "1_2_3_4", "1_x_1", "../1", "1.5", "1\n", "9" * 40 + "x"])
def test_what_is_no_name_of_a_process_is_neither_alive_nor_dead(name):
    assert not names.is_dead(name)


@pytest.mark.parametrize("name", ["0_1_", "99999999999_1_1", "4194305_1_1"])
def test_ids_that_no_process_has_are_dead(name):
    assert names.is_dead(f"{name}_{names.machine()}")


ELSEWHERE = """
import subprocess, sys
import psutil
sys.platform = "darwin"
from moe_core import processes
child = subprocess.Popen(["sleep", "60"])
name = processes.process_name(child.pid)
assert name != processes.this_process()
assert processes.alive(name) and processes.processor_seconds(child.pid) >= 0
child.kill()
while processes.alive(name):
    pass
assert processes.is_dead(name), "it ended, and was not collected"
child.wait()
assert processes.is_dead(name) and processes.processor_seconds(child.pid) is None
assert processes.is_dead(f"{processes.os.getpid()}_1__{processes.machine()}"), "another process has its id"
"""


def test_processes_are_known_by_psutil_where_the_system_is_not_linux():
    pytest.importorskip("psutil")
    subprocess.run([sys.executable, "-c", ELSEWHERE], check=True)


def test_what_the_former_owner_of_an_id_left_is_found(tmp_path, living):
    us, here = names.this_process(), names.machine()
    dead = [f".part-gpu-01-{reused(living)}-1a", f".part-gpu-01-99999999999_1_1a_{here}-1a"]
    stays = [
        f".part-gpu-01-{us}-1a",
        f".part-gpu-01-{names.process_name(living.pid)}-1a",
        f".part-gpu-01-{elsewhere(reused(living))}-1a",
        ".part-gpu-01-99999999999_1_1a-1a",  # of an older hardmoe, which did not name the machine
        ".part-gpu-01-notes-1a",
    ]
    for name in (*dead, *stays):
        (tmp_path / name).mkdir()
    assert sorted(path.name for path in dead_parts(tmp_path)) == sorted(dead)
    dead = [f".a.b.{reused(living)}.part", f".a.99999999999_1_1a_{here}.part"]
    stays = [us, names.process_name(living.pid), elsewhere(reused(living)), "mine"]
    for name in (*dead, *(f".a.{name}.part" for name in stays), ".part"):
        (tmp_path / name).touch()
    assert sorted(path.name for path in dead_files(tmp_path)) == sorted(dead)


@pytest.mark.parametrize(("named", "state"), [(reused, "missing"), (lambda p: names.process_name(p.pid), "running")])
def test_only_a_living_builder_makes_an_asset_running(tmp_path, living, monkeypatch, named, state):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    file = write(tmp_path, small_study())
    progress = Layout(file.parent).progress("trunk", None)
    progress.parent.mkdir()
    progress.write_text(json.dumps({"process": named(living), "run": "r", "time": 0}))
    (found,) = states_of(open_study(load_study(file), file.parent), only="trunk")
    assert found.state == state


STATES = dg.DagsterRunStatus
RUN = "12345678-0000-0000-0000-000000000000"


ORIGIN = RemoteJobOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("hardmoe"), "__repository__"), "job")


def run_of(status, tags):
    return dg.DagsterRun("__ASSET_JOB", RUN, status=status, tags=tags, remote_job_origin=ORIGIN)


def served(path):
    return {GRPC_INFO: json.dumps({"host": "localhost", "socket": str(path)})}


@pytest.fixture
def sockets(tmp_path):
    """Folder of a code server of this machine; one answers at `lives`, one died and left `died`."""
    folder = tmp_path / f"{socket_prefix()}x"
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as lives, socket.socket(socket.AF_UNIX) as died:
        lives.bind(str(folder / "lives"))
        lives.listen()
        died.bind(str(folder / "died"))
        yield folder


HERE = {HOST: socket.gethostname()}


@pytest.mark.parametrize("status", [STATES.STARTED, STATES.STARTING, STATES.CANCELING])
def test_the_run_of_a_dead_process_ends_and_its_slot_is_free(tmp_path, living, status):
    with dg.instance_for_test() as dagster:
        dagster.add_run(run_of(status, {PROCESS: f"12345678.{reused(living)}", **HERE}))
        dagster.event_log_storage.set_concurrency_slots("trainer", 1)
        assert dagster.event_log_storage.claim_concurrency_slot("trainer", RUN, "expert").is_claimed
        assert reap(dagster, tmp_path, "tiny") == [RUN]
        ended = STATES.CANCELED if status == STATES.CANCELING else STATES.FAILURE
        assert dagster.get_run_by_id(RUN).status == ended
        assert dagster.event_log_storage.get_concurrency_info("trainer").active_slot_count == 0
        assert reap(dagster, tmp_path, "tiny") == []


def left_alone(living, sockets):
    gone = reused(living)
    return {
        "a living process": (STATES.STARTED, identity(RUN)),
        "a process of another machine": (STATES.STARTED, {PROCESS: f"12345678.{elsewhere(gone)}", HOST: "other"}),
        "a run that repeats another's, with its tags": (STATES.STARTING, {PROCESS: f"87654321.{gone}", **HERE}),
        "a process that has not begun": (STATES.STARTING, served(sockets / "lives")),
        "a code server of another machine": (STATES.STARTING, served("/tmp/hardmoe-0-x/code")),
        "a code server that is not ours": (STATES.STARTING, served("/tmp/nowhere")),
        "no code server": (STATES.STARTED, {}),
        "nonsense": (STATES.STARTING, {GRPC_INFO: "[", PROCESS: "x"}),
        "the queue of the next daemon": (STATES.QUEUED, {}),
        "a run that is over": (STATES.SUCCESS, {PROCESS: f"12345678.{gone}", **HERE}),
    }


def test_runs_that_may_be_at_work_are_left_alone(tmp_path, living, sockets):
    for why, (status, tags) in left_alone(living, sockets).items():
        with dg.instance_for_test() as dagster:
            dagster.add_run(run_of(status, tags))
            assert (why, reap(dagster, tmp_path, "tiny")) == (why, [])


def test_runs_that_nobody_will_start_end(tmp_path, living, sockets):
    killed = {PROCESS: f"12345678.{reused(living)}", **HERE}
    for status, tags, end in (
        (STATES.STARTING, served(sockets / "died"), STATES.FAILURE),
        (STATES.STARTED, served(sockets / "never"), STATES.FAILURE),
        (STATES.QUEUED, killed, STATES.CANCELED),
        (STATES.NOT_STARTED, killed, STATES.CANCELED),
        (STATES.STARTING, killed, STATES.FAILURE),
    ):
        with dg.instance_for_test() as dagster:
            dagster.add_run(run_of(status, tags))
            assert reap(dagster, tmp_path, "tiny") == [RUN]
            assert dagster.get_run_by_id(RUN).status == end


@pytest.mark.slow
def test_all_of_the_ui_killed_at_once_leaves_no_run_that_seems_to_be_at_work(tmp_path):
    training = QUICK.model_copy(update={"epochs": 20000})  # until it is killed
    file, port = write(tmp_path / "cats", small_study(expert_training=training)), free_port()
    hardmoe("run", "--study", file, "--until", "partition")
    ui = started_ui(file, port)
    run_id = launch(f"http://127.0.0.1:{port}", "experts", "expert", "e000")
    until(Layout(file.parent).progress("expert", "e000").exists, seconds=180)
    for pid in processes(file.parent):
        os.kill(pid, signal.SIGKILL)
    ui.wait()
    assert run_id in hardmoe("reap", "--study", file).stdout
    with dg.DagsterInstance.from_config(str(file.parent / "dagster")) as dagster:
        assert [run.run_id for run in dagster.get_runs() if not run.is_finished] == []
