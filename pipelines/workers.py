"""The processes in which `hardmoe run` makes its runs, seen from the command: started, asked, ended.

What runs inside them is pipelines.worker. Torch and Dagster are loaded once, in a fork server.
"""

import multiprocessing
import multiprocessing.forkserver
import os
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

END_SECONDS = 5.0  # for a worker whose pipe is closed to be gone
RUNS_A_WORKER = 50  # then a fresh process: what libraries keep between runs does not add up


@dataclass(frozen=True)
class Task:
    """What one run materialises."""

    stage: str
    key: str | None
    force: bool = False

    @property
    def name(self) -> str:
        return self.stage if self.key is None else f"{self.stage}:{self.key}"


class Worker:
    """A process that makes one run after the other, on the GPU of its slot, or on all of them, where there are any."""

    def __init__(self, slot: int, all_gpus: bool = False) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        gpu = slot % gpus() if gpus() and not all_gpus else None
        self.process = _forks().Process(target=_work, args=(theirs, gpu), daemon=True)
        self.process.start()
        theirs.close()
        self.runs = RUNS_A_WORKER - 1 if all_gpus else 0  # the next run may be meant for one GPU

    @property
    def is_worn(self) -> bool:
        """Another is to be started in its place: it died, or has made enough runs. Ends it."""
        worn = self.runs >= RUNS_A_WORKER or not self.process.is_alive()
        if worn:
            self.stop()
        return worn

    def ask(self, task: Task, run_id: str, log: Path) -> None:
        self.runs += 1
        with suppress(BrokenPipeError):  # it died meanwhile: `answer` says how
            self.pipe.send((task, run_id, log))

    def answer(self) -> tuple[str, bool]:
        """The error of the run, or "", once the pipe is ready; and whether the process died instead of answering."""
        with suppress(EOFError, ConnectionResetError):
            error: str = self.pipe.recv()
            return error, False
        self.process.join(END_SECONDS)
        code = self.process.exitcode
        if code is None:
            return "its process closed its pipe and does not end", True
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return f"its process ended: {how}{' (out of memory?)' if code == -9 else ''}", True

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def load_ahead() -> None:
    """Starts the fork server, which loads what workers need while the caller goes on. HARDMOE_STUDY must be set."""
    _forks()
    multiprocessing.forkserver.ensure_running()


def gpus() -> int:
    """NVIDIA devices, without loading torch."""
    if (said := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([part for part in said.split(",") if part.strip()])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def _forks() -> "multiprocessing.context.ForkServerContext":
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["pipelines.worker"])
    return forks


def _work(asked: Connection, gpu: int | None) -> None:
    from pipelines.worker import work  # loaded already, in the fork server

    work(asked, gpu)
