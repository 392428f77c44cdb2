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
from moe_core.store.blobs import Blobs
from moe_core.store.layout import NAMES, Layout
from moe_core.store.leases import PACE, Pace, holder, silent
from moe_core.store.locks import is_held
from pipelines.aliases import socket_prefix

GRPC_INFO = ".dagster/grpc_info"  # Dagster's tag: the code server that starts the run
BEGUN = (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED)


def reap(
    instance: dg.DagsterInstance,
    root: Path,
    study: str,
    place: Blobs | None = None,
    wait: bool = False,
    pace: Pace = PACE,
) -> list[str]:
    """Ends the runs that dead processes left, and frees their pool slots. Returns the runs' ids.

    Those of this machine, and of the study in the folder `root`, or in the bucket `place`, also those of other
    machines, which are dead once their leases are free. A bucket's are known to be after a minute of silence, for which
    only `wait` takes the time. A run that waits in the queue is left to the next daemon.
    """
    layout = Layout(root)
    runs = instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES))
    dead = {run.run_id: why for run in runs if (why := _why_dead(run))}
    others = {run.run_id: run for run in runs if run.run_id not in dead and _is_elsewhere(run, study)}
    if place:
        names = {str(NAMES.lease(run_id)): run_id for run_id in others}
        names = {name: run_id for name, run_id in names.items() if [*place.names(name)]}  # else nobody can tell
        free = silent(place, names, pace) if wait else {name for name in names if not holder(place, name, pace)}
        lost = [names[name] for name in free]
    else:
        lost = [run_id for run_id in others if is_held(layout.lease(run_id)) is False]
    for run_id in lost:
        name = pid_of(str(process_of(others[run_id])))
        dead[run_id] = f"process {name} of {others[run_id].tags.get(HOST)} is gone: killed, or its machine was lost"
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
    if place:
        for run_id in lost:
            place.remove(str(NAMES.lease(run_id)))
    return ended


def _is_elsewhere(run: dg.DagsterRun, study: str) -> bool:
    """Whether a process of another machine carries out this run of the study."""
    name = process_of(run)
    return bool(name) and not is_ours(str(name)) and run.tags.get(STUDY) == study


def _why_dead(run: dg.DagsterRun) -> str:
    """Which process of this machine is gone that carried out a run, or was to start it; "" where none is."""
    if name := process_of(run):
        return f"process {pid_of(name)} is gone: killed, or its machine went down" if is_dead(name) else ""
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
