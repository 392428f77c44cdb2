"""The pool of warm workers on this machine: results, reuse, a worker that dies or hangs, and its end."""

import concurrent.futures
import json
import multiprocessing.forkserver
import os
import signal
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from assets.runs import process_of
from assets.study import project_keys
from helpers.command import write
from helpers.with_controls import QUICK, small_study
from moe_core.engine.build import build_all
from moe_core.processes import pid_of
from moe_core.study_file import load_study
from moe_core.workspace import open_study
from pipelines.instance.home import prepare_home
from pipelines.instance.opening import opened
from pipelines.run.pools.local import LocalPool, Worker
from pipelines.run.task import Task, TaskResult

VOCABULARY, TRUNK = Task("vocabulary", None), Task("trunk", None)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A study whose trunk trains until it is killed; all it needs is there."""
    file = write(tmp_path_factory.mktemp("pool"), small_study(trunk=QUICK.model_copy(update={"epochs": 20000.0})))
    context = open_study(load_study(file), file.parent)
    build_all(context, ("posts", "splits", "vocabulary"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARDMOE_STUDY", str(file))
        patch.setenv("HARDMOE_STALL_SECONDS", "2")
        patch.delenv("DAGSTER_HOME", raising=False)
        multiprocessing.forkserver._forkserver._stop()  # of another test: it loaded other modules, for another study
        prepare_home(file.parent, 2)
        with opened() as instance:
            project_keys(instance, context.study.name, [shard.key for shard in context.shards], [])
        yield context
    multiprocessing.forkserver._forkserver._stop()  # it knows this study only


@pytest.fixture
def pool(prepared):
    with closing(LocalPool(2)) as pool:
        yield pool


@pytest.fixture
def submit(prepared):
    from dagster._core.utils import make_new_run_id

    (prepared.root / ".progress" / "trunk.json").unlink(missing_ok=True)  # a killed worker's

    def submit(pool, task, study=prepared.study):
        return pool.submit(task, make_new_run_id(), prepared.root / "logs" / f"{task.asset}.log", study)

    return submit


def worker_of(context, future):
    """Id of the process that trains the trunk, once it does."""
    progress = context.root / ".progress" / "trunk.json"
    deadline = time.monotonic() + 60
    while not (progress.exists() and "step" in (report := json.loads(progress.read_text()))):
        assert not future.done(), future.result()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return report["pid"]


def is_gone(pid):
    return not Path(f"/proc/{pid}").exists()


def workers():
    """Ids of the processes that ran tasks, the last one first."""
    with opened() as instance:
        return [pid_of(process_of(run)) for run in instance.get_runs()]


def test_a_result_says_what_was_found_and_the_next_task_takes_the_same_worker(prepared, pool, submit):
    assert submit(pool, VOCABULARY).result(60) == TaskResult(reused=True)
    error = submit(pool, Task("posts", "none")).result(60).error
    assert error == "Dagster could not record the run: Could not find a partition with key `none`."
    assert submit(pool, Task("posts", prepared.shards[0].key)).result(60) == TaskResult(reused=True)
    last, first = workers()
    assert last == first, "a task that failed does not wear its worker"


def test_a_worker_that_died_idle_is_replaced(pool, submit):
    submit(pool, VOCABULARY).result(60)
    first = workers()[0]
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while not is_gone(first):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert submit(pool, VOCABULARY).result(60) == TaskResult(reused=True)
    assert workers()[0] != first


def test_a_task_planned_from_other_settings_is_not_begun(pool, submit, prepared):
    other = prepared.study.model_copy(update={"name": "other"})
    result = submit(pool, VOCABULARY, other).result(60)
    assert (result.inputs_changed, result.died) == (True, False)
    assert result.error == "study.toml changed while the run was started"


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (signal.SIGKILL, "its process ended: killed by signal 9 (out of memory?)"),
        (signal.SIGSTOP, "its process made no progress for 2 s (stopped or hung); killed"),
    ],
)
def test_a_worker_that_dies_or_hangs_is_a_result_and_what_waited_runs_next(prepared, submit, number, why):
    with closing(LocalPool(1)) as pool:
        trunk, waits = submit(pool, TRUNK), submit(pool, VOCABULARY)
        pid = worker_of(prepared, trunk)
        for heard_by_the_command_alone in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, heard_by_the_command_alone)
        time.sleep(0.2)
        assert (trunk.done(), waits.done(), waits.running()) == (False, False, False)
        os.kill(pid, number)
        assert trunk.result(30) == TaskResult(why, died=True)
        assert is_gone(pid)
        assert waits.result(60) == TaskResult(reused=True)


def test_a_closed_pool_leaves_no_process_and_no_open_future(prepared, submit):
    pool = LocalPool(1)
    trunk, waits = submit(pool, TRUNK), submit(pool, VOCABULARY)
    pid = worker_of(prepared, trunk)
    pool.close()
    assert is_gone(pid)
    assert trunk.result(0) == TaskResult("killed: its pool was closed", died=True)
    with pytest.raises(concurrent.futures.CancelledError):
        waits.result(0)
    with pytest.raises(RuntimeError):
        submit(pool, VOCABULARY)
    pool.close()


def test_tasks_run_beside_each_other_up_to_the_capacity(prepared, pool, submit):
    trunk = submit(pool, TRUNK)
    worker_of(prepared, trunk)
    assert submit(pool, VOCABULARY).result(60) == TaskResult(reused=True)
    assert not trunk.done()


def test_a_worker_that_takes_no_other_task_is_replaced(pool, submit, monkeypatch):
    """As one whose GPU failed: its answer counts."""
    answer = Worker.answer
    monkeypatch.setattr(Worker, "answer", lambda worker: replace(answer(worker), last=True))
    assert submit(pool, VOCABULARY).result(60) == TaskResult(reused=True)
    assert submit(pool, VOCABULARY).result(60) == TaskResult(reused=True)
    last, first = workers()[:2]
    assert last != first
