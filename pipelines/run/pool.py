"""The processes in which `hardmoe run` makes its runs, seen from the command: started, asked, ended.

What runs inside them is pipelines.run.worker. Torch and Dagster are loaded once, in a fork server.
"""

import multiprocessing
import multiprocessing.forkserver
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from moe_core.heartbeat import Pulse
from moe_core.settings import Study

END_SECONDS = 5.0  # for a worker whose pipe is closed to be gone
SETTINGS = "study.toml changed"
RUNS_A_WORKER = 50  # then a fresh process: what libraries keep between runs does not add up
CAUSES = {
    9: " (out of memory?)",
    11: " (a crash in native code)",
    7: " (a file was cut short while it was mapped into memory, or its disk is full or gone)",
}  # of signals


@dataclass(frozen=True)
class Task:
    """What one run materializes."""

    stage: str
    key: str | None
    force: bool = False

    @property
    def name(self) -> str:
        return self.stage if self.key is None else f"{self.stage}:{self.key}"


@dataclass(frozen=True)
class Answer:
    """How a run ended."""

    error: str  # "" when it went well
    reused: bool = False  # what it was to make was there
    died: bool = False  # its process ended instead of answering
    overtaken: str = ""  # what came before it began, so that it was not begun


class Worker:
    """A process that makes one run after the other, on one GPU, or on all there are where `gpu` is None."""

    def __init__(self, gpu: str | None) -> None:
        self.gpu = gpu
        self.pipe, theirs = multiprocessing.Pipe()
        self.beats, their_beats = multiprocessing.Pipe(duplex=False)
        self.process = _forks().Process(target=_work, args=(theirs, their_beats, gpu), daemon=True)
        self.process.start()
        theirs.close()
        their_beats.close()
        assert self.process.pid is not None
        self.pulse = Pulse(self.process.pid, self.beats.fileno())
        self.runs = 0

    @property
    def is_worn(self) -> bool:
        """Another is to be started in its place: it died, or has made enough runs."""
        return self.runs >= RUNS_A_WORKER or not self.process.is_alive()

    def ask(self, task: Task, run_id: str, log: Path, study: Study) -> None:
        self.runs += 1
        with suppress(BrokenPipeError):  # it died meanwhile: `answer` says how
            self.pipe.send((task, run_id, log, study))

    def has_ended(self) -> bool:
        """It answered, died, or stands still: `answer` says which."""
        return self.pipe.poll() or self.pulse.stands_still()

    def answer(self) -> Answer:
        """How the run ended, once it has; a process that stands still is ended."""
        if not self.pipe.poll():
            self.process.kill()
            self.process.join()
            return Answer(f"its process {self.pulse.why}", died=True)
        with suppress(EOFError, ConnectionResetError):
            answer: Answer = self.pipe.recv()
            return answer
        self.process.join(END_SECONDS)
        code = self.process.exitcode
        if code is None:
            return Answer("its process closed its pipe and does not end", died=True)
        how = f"killed by signal {-code}{CAUSES.get(-code, '')}" if code < 0 else f"exit code {code}"
        return Answer(f"its process ended: {how}", died=True)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()
        self.beats.close()


def load_ahead() -> None:
    """Starts the fork server, which loads what workers need while the caller goes on. HARDMOE_STUDY must be set.

    It does not hear Ctrl-C or SIGTERM, nor do the workers: whoever started them ends them.
    """
    _forks()
    if threading.current_thread() is not threading.main_thread():
        multiprocessing.forkserver.ensure_running()
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        for number, its in before.items():
            signal.signal(number, its)


def _forks() -> "multiprocessing.context.ForkServerContext":
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["pipelines.run.worker"])
    return forks


def _work(asked: Connection, beats: Connection, gpu: str | None) -> None:
    from pipelines.run.worker import work  # loaded already, in the fork server

    work(asked, beats, gpu)
