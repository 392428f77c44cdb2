"""Ending runs whose processes are gone."""

import json
import socket
from contextlib import suppress
from pathlib import Path

import dagster as dg
from dagster._core.storage.dagster_run import ACTIVE_RUN_STATUSES, NOT_FINISHED_STATUSES

from assets.runs import HOST, end_run, process_of
from assets.study import STUDY
from moe_core.processes import is_dead, is_ours, pid_of
from moe_core.store.layout import Layout
from moe_core.store.locks import is_held
from pipelines.aliases import socket_prefix

GRPC_INFO = ".dagster/grpc_info"  # Dagster's tag: the code server that starts the run
BEGUN = (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED)


def reap(instance: dg.DagsterInstance, root: Path, study: str) -> list[str]:
    """Ends the runs that dead processes left, and frees their pool slots. Returns the runs' ids.

    Those of this machine, and of the study in the folder `root` also those of other machines, which are dead once their
    leases are free. A run that waits in the queue is left to the next daemon.
    """
    layout = Layout(root)
    runs = instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES))
    dead = {run.run_id: why for run in runs if (why := _why_dead(run, layout, study))}
    ended = []
    for run_id, why in dead.items():
        run = instance.get_run_by_id(run_id)
        if run and not run.is_finished:  # else it ended, and then its process, while we looked
            end_run(instance, run, why, failed=run.status in BEGUN)
            ended.append(run_id)
    for lease in layout.leases.glob("*"):
        run = instance.get_run_by_id(lease.name)
        if (run is None or run.is_finished) and is_held(lease) is False:
            lease.unlink(missing_ok=True)
    return ended


def _why_dead(run: dg.DagsterRun, layout: Layout, study: str) -> str:
    """Which process of a run is gone; "" where none is, or nobody can tell."""
    if name := process_of(run):
        if is_dead(name):
            return f"process {pid_of(name)} is gone: killed, or its machine went down"
        if not is_ours(name) and run.tags.get(STUDY) == study and is_held(layout.lease(run.run_id)) is False:
            return f"process {pid_of(name)} of {run.tags.get(HOST)} is gone: killed, or its machine was lost"
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
