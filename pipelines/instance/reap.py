"""Ending runs whose processes are gone."""

import json
import socket
from contextlib import suppress
from pathlib import Path

import dagster as dg
from dagster._core.storage.dagster_run import ACTIVE_RUN_STATUSES, NOT_FINISHED_STATUSES

from assets.runs import HOST, end_run, process_of
from moe_core.processes import is_dead, pid_of
from pipelines.aliases import socket_prefix

GRPC_INFO = ".dagster/grpc_info"  # Dagster's tag: the code server that starts the run
BEGUN = (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED)


def reap(instance: dg.DagsterInstance) -> list[str]:
    """Ends the runs that dead processes of this machine left, and frees their pool slots. Returns the runs' ids.

    A run that waits in the queue is left to the next daemon.
    """
    runs = instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES))
    dead = [(run, why) for run in runs if (why := _why_dead(run))]
    for run, why in dead:
        end_run(instance, run, why, failed=run.status in BEGUN)
    return [run.run_id for run, _ in dead]


def _why_dead(run: dg.DagsterRun) -> str:
    """Which process of a run is gone; "" where none is, or it is another machine's."""
    if name := process_of(run):
        if run.tags.get(HOST) == socket.gethostname() and is_dead(name):
            return f"process {pid_of(name)} is gone: killed, or its machine went down"
        return ""
    if run.parent_run_id:  # has the tags of the run that it repeats, until its own are written
        return ""
    if run.status in ACTIVE_RUN_STATUSES:
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
