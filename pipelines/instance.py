"""Dagster's instance of a study: DAGSTER_HOME where the user has one, else the folder `dagster` in the study's root."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from moe_core.store import alive, exclusive, write_text

if TYPE_CHECKING:
    import dagster as dg

SETTINGS = """# Written by hardmoe; yours to change.
telemetry:
  enabled: false
nux:
  enabled: false  # no invitation to a newsletter
concurrency:
  runs:
    max_concurrent_runs: 8
  pools:
    granularity: run
    default_limit: {workers}
run_monitoring:
  enabled: true
  start_timeout_seconds: 300
  free_slots_after_run_end_seconds: 300
"""
PID, HOST = "hardmoe/pid", "hardmoe/host"


def home(root: Path, workers: int) -> Path:
    """The folder of the instance, made where it is missing, and named in DAGSTER_HOME from here on."""
    folder = Path(os.environ.get("DAGSTER_HOME") or root / "dagster").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "dagster.yaml").exists():
        write_text(folder / "dagster.yaml", SETTINGS.format(workers=workers))
    os.environ["DAGSTER_HOME"] = str(folder)
    return folder


@contextmanager
def opened() -> "Iterator[dg.DagsterInstance]":
    """The instance that DAGSTER_HOME names. Its data bases are made by one process at a time.

    Dagster does not see to that: two that make them at once leave tables that nobody can open any more.
    """
    import dagster as dg

    with exclusive(Path(os.environ["DAGSTER_HOME"]) / ".opening.lock"):
        instance = dg.DagsterInstance.get()
    with instance:
        yield instance


def project_keys(instance: "dg.DagsterInstance", study: str, shards: list[str], experts: list[str]) -> None:
    """Makes the instance's partition keys those of the study: the store is the truth, the keys only show it."""
    for name, keys in ((f"{study}_shards", shards), (f"{study}_experts", experts)):
        there = instance.get_dynamic_partitions(name)
        new = [key for key in keys if key not in there]
        if new:
            instance.add_dynamic_partitions(name, new)
        for gone in set(there) - set(keys):
            instance.delete_dynamic_partition(name, gone)


def reap(instance: "dg.DagsterInstance") -> list[str]:
    """Ends what dead processes left: marks their runs failed and frees their pool slots. Returns the runs' ids."""
    import dagster as dg

    open_states = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.CANCELING]
    ended = []
    for run in instance.get_runs(dg.RunsFilter(statuses=open_states)):
        pid = run.tags.get(PID, "")
        if run.tags.get(HOST) != socket.gethostname() or not pid.isdigit() or alive(int(pid)):
            continue
        instance.report_run_failed(run, message=f"process {pid} is gone: killed, or its machine went down")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        ended.append(run.run_id)
    return ended
