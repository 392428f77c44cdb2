"""Tags of a Dagster run that say which process carries it out: what a dead process left is found by them."""

import socket

import dagster as dg

from assets.study import STUDY, study
from moe_core.processes import this_process

PROCESS, HOST = "hardmoe/process", "hardmoe/host"


def identity(run_id: str) -> dict[str, str]:
    """Of this process as the one that carries out the run.

    The run is named too: who runs something again gives the new run all tags of the old one.
    """
    return {PROCESS: f"{run_id[:8]}.{this_process()}", HOST: socket.gethostname()}


def process_of(run: dg.DagsterRun) -> str | None:
    """Name of the process that carries out a run; None where none has said so yet."""
    of, _, name = run.tags.get(PROCESS, "").partition(".")
    return name if name and of == run.run_id[:8] else None


def claim(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Says in the run's tags that this process carries it out, and for which study."""
    instance.add_run_tags(run.run_id, {STUDY: study().name, **identity(run.run_id)})
