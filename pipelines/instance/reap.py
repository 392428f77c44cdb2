"""Ending runs whose processes are gone."""

import json
import socket
from contextlib import suppress
from pathlib import Path

import dagster as dg

from assets.runs import HOST, process_of
from moe_core.processes import is_dead, pid_of
from pipelines.aliases import socket_prefix

GRPC_INFO = ".dagster/grpc_info"  # Dagster's tag: the code server that starts the run


def reap(instance: dg.DagsterInstance) -> list[str]:
    """Ends the runs that dead processes of this machine left, and frees their pool slots. Returns the runs' ids.

    A run that waits in the queue is left to the next daemon.
    """
    status = dg.DagsterRunStatus
    states = [status.QUEUED, status.NOT_STARTED, status.STARTING, status.STARTED, status.CANCELING]
    runs = instance.get_runs(dg.RunsFilter(statuses=states))
    return [run.run_id for run in runs if _end_if_dead(instance, run)]


def _end_if_dead(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    if not (why := _why_dead(run)):
        return False
    if run.status in (
        dg.DagsterRunStatus.QUEUED,
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.CANCELING,
    ):
        instance.report_run_canceled(run, message=why)
    else:
        instance.report_run_failed(run, message=why)
    instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return True


def _why_dead(run: dg.DagsterRun) -> str:
    """Which process of a run is gone; "" where none is, or it is another machine's."""
    if name := process_of(run):
        if run.tags.get(HOST) == socket.gethostname() and is_dead(name):
            return f"process {pid_of(name)} is gone: killed, or its machine went down"
        return ""
    if run.parent_run_id:  # has the tags of the run that it repeats, until its own are written
        return ""
    if run.status in (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING):
        code_server = _code_server_socket(run)
        if Path(code_server).parent.name.startswith(socket_prefix()) and not _answers(code_server):
            return "the code server that was to start it is gone"
    return ""


def _code_server_socket(run: dg.DagsterRun) -> str:
    """The socket of the code server that was asked to start a run; "" where it has a port, or none was asked."""
    with suppress(ValueError, AttributeError):
        return str(json.loads(run.tags.get(GRPC_INFO, "{}")).get("socket") or "")
    return ""


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
