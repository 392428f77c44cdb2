"""Dagster runs of one asset partition each, one after the other, in a process that dies with the one that started it.

Imported by the fork server before it forks, so that a worker does not wait for torch and dagster to load; what cannot
be loaded there it loads at its first run.
"""

import gc
import os
import select
import signal
import sys
import threading
import traceback
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# What every run needs is imported here, once, in the fork server: forked runs have it at no cost. Not lance or polars:
# they start threads when they are imported, which a fork does not survive.
import dagster as dg
import dagster._core.storage.event_log
import dagster._core.storage.runs
import dagster._core.storage.schedules
import torch
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from dagster._core.storage.noop_compute_log_manager import NoOpComputeLogManager

from assets.gpu import KEY
from assets.runs import identity, leased
from assets.study import STUDY, key_of, study
from moe_core.errors import RankLost
from moe_core.failpoints import failpoint
from moe_core.processes import die_with_parent, leave_signals_to_parent, send_heartbeat
from moe_core.settings import Study
from moe_core.stages.graph import GRAPH
from moe_core.training.loop import let_products_repeat
from pipelines.definitions import defs
from pipelines.jobs import REPOSITORY, job_of
from pipelines.run.status import step_error
from pipelines.run.task import SETTINGS, Task, TaskResult
from pipelines.ui.commands import LOCATION

gc.freeze()  # what is loaded stays: no collection in a worker need look at it


def work(tasks: Connection, heartbeat: Connection, sharers: int) -> None:
    """Materializes what is asked for, one (task, run id, log) after the other, and answers each.

    Output and Dagster's log of a run go to the file `log`. Ends when the other end of the pipe is closed: the command
    is done, or was killed. The runs are in a thread: in the main thread Dagster would set handlers of its own, by which
    a Ctrl-C meant for the command made failed runs of them.
    """
    send_heartbeat(heartbeat.fileno())
    die_with_parent()  # the fork server
    leave_signals_to_parent()
    threading.Thread(target=answer_all, args=(tasks, sharers), daemon=True).start()
    watch = select.poll()
    watch.register(tasks.fileno(), 0)  # hang-ups are always told
    watch.poll()
    end()


def answer_all(tasks: Connection, sharers: int) -> None:
    runner = Runner(sharers)
    try:
        while True:
            answer = runner.run(*tasks.recv())
            tasks.send(answer)
            if answer.last:
                return
    finally:
        end()  # nobody else would answer


class Runner:
    """Runs tasks in this process, one after the other."""

    def __init__(self, sharers: int = 1) -> None:
        """`sharers` is how many trainings may share a GPU."""
        self.sharers = sharers
        self.threads = torch.get_num_threads()
        self.instance: dg.DagsterInstance | None = None

    def run(self, task: Task, run_id: str, log: Path, planned: Study) -> TaskResult:
        """Runs a task that was planned for a study. From then on all output of this process goes to the file `log`."""
        if planned != study():  # changed between the command's look and this process's
            return TaskResult(f"{SETTINGS} while the run was started", inputs_changed=True)
        if planned.trunk.deterministic or planned.expert_training.deterministic:
            let_products_repeat()
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            torch.set_num_threads(self.threads)  # as in a process where nothing has run
            try:
                self.instance = self.instance or open_instance()
                answer = materialize(task, run_id, self.instance, self.sharers)
            except Exception as failure:  # Dagster's own: its data base is locked, or its disk full
                traceback.print_exc()
                answer = TaskResult(f"Dagster could not record the run: {str(failure).splitlines()[0]}")
            sys.stdout.flush()
            sys.stderr.flush()
        return answer if _gpu_is_released() else replace(answer, last=True)


def _gpu_is_released() -> bool:
    """Gives back memory that another worker may need more; False after an error that a process has for good."""
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            gc.collect()  # the tensors of a failed step may be in a circle with its traceback
            torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def open_instance() -> dg.DagsterInstance:
    """Dagster's instance, which leaves what a step prints in the log of its run.

    Its own manager copies that to a file in its storage and, by two processes a step, back to the log; a kill between
    the two leaves one for good.
    """
    instance = dg.DagsterInstance.get()
    if isinstance(instance.compute_log_manager, LocalComputeLogManager):
        instance._compute_log_manager = NoOpComputeLogManager()
    return instance


def end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def materialize(task: Task, run_id: str, instance: dg.DagsterInstance, sharers: int = 1) -> TaskResult:
    """Runs the asset in this process, as a run of Dagster's; `sharers` is how many trainings may share a GPU."""
    key = key_of(task.asset)
    config: dict[str, Any] = {"ops": {key.to_python_identifier(): {"config": {"force": task.force}}}}
    if GRAPH[task.asset].uses_gpu:
        config["resources"] = {KEY: {"config": {"sharers": sharers}}}
    with leased(run_id):
        result = defs.resolve_job_def(job_of(task.asset)).execute_in_process(
            run_config=config,
            instance=instance,
            partition_key=task.key,
            asset_selection=[key],
            raise_on_error=False,
            run_id=run_id,
            tags={STUDY: study().name, REPOSITORY: f"__repository__@{LOCATION}", **identity(run_id)},
        )
    failpoint("event.recorded", task.name)
    if not result.success:
        return TaskResult(_why(result), died=_is_lost(result))
    (made,) = result.asset_materializations_for_node(key.to_python_identifier())
    return TaskResult(reused=bool(made.metadata["reused"].value), version=str(made.metadata["version"].value))


def _is_lost(result: dg.ExecuteInProcessResult) -> bool:
    """Whether a process that trained for the step was lost, though not this one."""
    for event in result.all_events:
        error = event.step_failure_data.error if event.is_step_failure else None
        while error:
            if error.cls_name == RankLost.__name__:
                return True
            error = error.cause
    return False


def _why(result: dg.ExecuteInProcessResult) -> str:
    """What went wrong, in a line."""
    for check in result.get_asset_check_evaluations():
        if not check.passed and check.blocking and check.severity == dg.AssetCheckSeverity.ERROR:
            return f"check {check.check_name} failed: {check.description or 'see its metadata'}"
    for event in result.all_events:
        if event.is_step_failure:
            return step_error(event)
    return "failed before the step started"
