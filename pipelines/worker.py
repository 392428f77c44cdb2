"""One Dagster run of one asset partition, in a process of its own that dies with the one that started it.

Imported by the fork server before it forks, so that a run does not wait for torch and dagster to load.
"""

import ctypes
import os
import select
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

# What every run needs is imported here, once, in the fork server: forked runs have it at no cost. Not lance or polars:
# they start threads when they are imported, which a fork does not survive.
import dagster as dg
import dagster._core.storage.event_log
import dagster._core.storage.runs
import dagster._core.storage.schedules
import torch  # noqa: F401

from pipelines.definitions import defs
from pipelines.instance import HOST, PID

PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Task:
    """What one run materialises."""

    stage: str
    key: str | None
    force: bool = False

    @property
    def name(self) -> str:
        return self.stage if self.key is None else f"{self.stage}:{self.key}"


def work(task: Task, run_id: str, log: Path, gpu: int | None, answer: Connection) -> None:
    """Materialises and sends the error, or an empty string. Output and Dagster's log go to the file `log`."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # with the fork server
    threading.Thread(target=_die_with_reader, args=(answer.fileno(),), daemon=True).start()  # with who wants the answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        answer.send(materialise(task, run_id))
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)  # nothing is left to do, and lance's and torch's threads need not be waited for


def _die_with_reader(pipe: int) -> None:
    """Kills this process when nobody is left to read from the pipe: the command was killed, so must its runs be."""
    watch = select.poll()
    watch.register(pipe, select.POLLERR)
    watch.poll()
    os.kill(os.getpid(), signal.SIGKILL)


def materialise(task: Task, run_id: str) -> str:
    """Runs the asset in this process under DAGSTER_HOME's instance; returns the error in a line, or ""."""
    config = {"ops": {task.stage: {"config": {"force": task.force}}}}
    with dg.DagsterInstance.get() as instance:
        result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
            run_config=config,
            instance=instance,
            partition_key=task.key,
            asset_selection=[dg.AssetKey(task.stage)],
            raise_on_error=False,
            run_id=run_id,
            tags={PID: str(os.getpid()), HOST: socket.gethostname()},
        )
        return "" if result.success else _why(result)


def _why(result: dg.ExecuteInProcessResult) -> str:
    for check in result.get_asset_check_evaluations():
        if not check.passed and check.blocking and check.severity == dg.AssetCheckSeverity.ERROR:
            return f"check {check.check_name} failed: {check.description or 'see its metadata'}"
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data and data.user_failure_data.description:
                return data.user_failure_data.description
            error = data.error
            while error and error.cause:
                error = error.cause
            return " ".join(str(error.message).split()) if error else "failed"
    return "failed before the step started"
