"""What tests kill: `hardmoe run` in a process forked from one that has torch and dagster loaded, as are its workers."""

import multiprocessing
import os
import sys
from multiprocessing import forkserver
from pathlib import Path

import pipelines.cli.progress
import pipelines.run.pools.local
import pipelines.run.scheduler
import pipelines.run.worker
from moe_core import failpoints
from pipelines.cli.main import main

ARMED = "KILLS_FAULT_FILE"  # names a file with a HARDMOE_FAULT; the first worker that sees it takes it
_work = pipelines.run.worker.work


def _armed_work(*arguments):
    taken = Path(f"{os.environ[ARMED]}.{os.getpid()}")
    try:
        Path(os.environ[ARMED]).rename(taken)
    except FileNotFoundError:
        pass
    else:
        failpoints.armed = failpoints.parse(taken.read_text())
    _work(*arguments)


pipelines.run.worker.work = _armed_work


def run(address, workers, log):
    """`hardmoe run`, whose workers the fork server at `address` forks, too."""
    here = forkserver._forkserver
    here._forkserver_address = address
    here.ensure_running = forkserver.ensure_running = lambda: None
    multiprocessing.current_process()._config["daemon"] = False
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["hardmoe"]
    main(["run", "--study", os.environ["HARDMOE_STUDY"], "--workers", str(workers)])
