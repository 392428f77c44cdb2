"""Which process carries out a Dagster run, by its tags and its lease; and the end of a run whose process is gone.

The lease is a lock in the study's folder. Machines that share the folder see it, and it ends with the process: the
kernel frees it, or the file system where the machine is lost. Of a study in a bucket there is one in the bucket, too,
for machines that share no folder: it has beats, and is free once they stop.
"""

import atexit
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import dagster as dg

from assets.study import STUDY, root, study
from moe_core.engine.planner import Name
from moe_core.processes import this_process
from moe_core.store import leases
from moe_core.store.layout import NAMES, Layout
from moe_core.store.locks import exclusive
from moe_core.store.protocols import open_store

PROCESS, HOST = "hardmoe/process", "hardmoe/host"

_leased: set[str] = set()  # runs of this process
_last = ExitStack()  # holds the lease of the last run that was claimed here, until another is, or the process ends
atexit.register(_last.close)  # before this module's names are gone


def identity(run_id: str) -> dict[str, str]:
    """Tags of this process as the one that carries out the run.

    The run is named too: who runs something again gives the new run all tags of the old one.
    """
    return {PROCESS: f"{run_id[:8]}.{this_process()}", HOST: socket.gethostname()}


def process_of(run: dg.DagsterRun) -> str | None:
    """Name of the process that carries out a run; None where none has said so yet."""
    of, _, name = run.tags.get(PROCESS, "").partition(".")
    return name if name and of == run.run_id[:8] else None


@contextmanager
def leased(run_id: str) -> Iterator[None]:
    """Holds the lease of a run. Tags that name this process come after it, and the end of the run before its end."""
    lease, place = Layout(root()).lease(run_id), open_store(study(), root()).place
    with exclusive(lease), ExitStack() as held:
        if place:
            held.enter_context(leases.exclusive(place, str(NAMES.lease(run_id))))
        _leased.add(run_id)
        try:
            yield
        finally:
            _leased.discard(run_id)
    lease.unlink(missing_ok=True)
    if place:
        place.remove(str(NAMES.lease(run_id)))


def claim(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Takes the run's lease and says in its tags that this process carries it out, and for which study."""
    if run.run_id not in _leased:  # of the UI or the daemon: a process carries out one run, and ends
        _last.close()
        _last.enter_context(leased(run.run_id))
    instance.add_run_tags(run.run_id, {STUDY: study().name, **identity(run.run_id)})


def runs_by_task(
    instance: dg.DagsterInstance, study: str, filters: dg.RunsFilter | None = None, limit: int | None = None
) -> Iterator[tuple[Name, dg.DagsterRun]]:
    """((stage, key), run) of each asset in a study's runs, the newest first; the instance may have other studies'."""
    for run in instance.get_runs(filters, limit=limit):
        if run.tags.get(STUDY, study) == study:
            for asset in run.asset_selection or ():
                yield (asset.path[-1], run.tags.get("dagster/partition")), run


def end_run(instance: dg.DagsterInstance, run: dg.DagsterRun, why: str, failed: bool) -> None:
    """Ends a run in Dagster's record, as failed or as canceled, and frees its pool slots."""
    (instance.report_run_failed if failed else instance.report_run_canceled)(run, message=why)
    instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
