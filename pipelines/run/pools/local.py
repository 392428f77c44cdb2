"""Warm worker processes of this machine, seen from the command that starts them.

What runs inside a worker is pipelines.run.worker. Torch and Dagster are loaded once, in a fork server.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import threading
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from pkgutil import resolve_name

from moe_core.devices import gpu_names
from moe_core.processes import CHECK_SECONDS, Heartbeat, exit_reason, own_modules_first
from moe_core.settings import Study
from pipelines.run.interrupts import handled
from pipelines.run.task import Task, TaskResult

WORKER = "pipelines.run.worker"  # it loads torch and Dagster, which the fork server does
EXIT_SECONDS = 5.0  # for a worker whose pipe is closed to be gone
RUNS_A_WORKER = 50  # then a fresh process: what libraries keep between runs does not add up
CLOSED = TaskResult("killed: its pool was closed", died=True)
_PROCESSES = threading.Lock()  # multiprocessing reads the exit status of all its processes whenever it starts one


class LocalPool:
    """Runs tasks in warm workers: an idle one takes the next task, one that is worn or dead is replaced."""

    tries = 1

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._threads = ThreadPoolExecutor(capacity, thread_name_prefix="worker")  # each waits for a busy worker
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()
        self._closed = False
        self._fresh = False  # workers no longer come from the fork server, which knows an older study.toml

    def has_room(self, task: Task, running: Collection[Task]) -> bool:
        return len(running) < self.capacity

    def load_ahead(self) -> None:
        load_ahead()

    def submit(self, task: Task, run_id: str, log: Path, study: Study) -> Future[TaskResult]:
        load_ahead()
        return self._threads.submit(self._run, task, run_id, log, study)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for worker in self._busy:  # the thread of each sees its pipe close
                worker.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._idle:
            worker.stop()
        self._idle.clear()

    def _run(self, task: Task, run_id: str, log: Path, study: Study) -> TaskResult:
        result = self._ask(task, run_id, log, study)
        if result.inputs_changed and not self._fresh:  # the fork server read study.toml before it changed
            self._fresh = True
            result = self._ask(task, run_id, log, study)
        return result

    def _ask(self, task: Task, run_id: str, log: Path, study: Study) -> TaskResult:
        worker = self._begin()
        if worker is None:
            return CLOSED
        worker.ask(task, run_id, log, study)
        while not worker.has_ended():
            wait([worker.pipe], CHECK_SECONDS / 2)
        result = worker.answer()
        with self._lock:
            self._busy.remove(worker)
            closed = self._closed
            if not (worn := worker.is_worn or closed or result.inputs_changed or result.last):
                self._idle.append(worker)
        if worn:
            worker.stop()
        return CLOSED if closed and result.died else result

    def _begin(self) -> "Worker | None":
        """A worker for one task, noted as busy; None where the pool is closed."""
        with self._lock:
            if self._closed:
                return None
            while self._idle:
                worker = self._idle.pop()
                if not worker.is_worn and worker.fresh == self._fresh:
                    break
                worker.stop()
            else:
                worker = Worker(sharers(self.capacity), fresh=self._fresh)
            self._busy.add(worker)
            return worker


class Worker:
    """A process that runs one task after the other, with up to `sharers` trainings on one GPU."""

    def __init__(self, sharers: int, fresh: bool = False) -> None:
        """`fresh`: from an interpreter of its own, that reads the study as it is now."""
        self.fresh = fresh
        self.pipe, theirs = multiprocessing.Pipe()
        self.heard, their_heartbeat = multiprocessing.Pipe(duplex=False)
        with _PROCESSES:
            start = multiprocessing.get_context("spawn") if fresh else _forks()
            self.process = start.Process(target=_work, args=(theirs, their_heartbeat, sharers), daemon=True)
            self.process.start()
        theirs.close()
        their_heartbeat.close()
        assert self.process.pid is not None
        self.heartbeat = Heartbeat(self.process.pid, self.heard.fileno())
        self.runs = 0

    @property
    def is_worn(self) -> bool:
        """Another is to be started in its place: it died, or has run enough tasks."""
        with _PROCESSES:
            return self.runs >= RUNS_A_WORKER or self.pipe.poll() or not self.process.is_alive()

    def ask(self, task: Task, run_id: str, log: Path, study: Study) -> None:
        self.runs += 1
        with suppress(BrokenPipeError):  # it died meanwhile: `answer` says how
            self.pipe.send((task, run_id, log, study))

    def has_ended(self) -> bool:
        """It answered, died, or hangs: `answer` says which."""
        return self.pipe.poll() or self.heartbeat.is_stalled()

    def answer(self) -> TaskResult:
        """How the task ended, once it has; a process that hangs is killed."""
        if not self.pipe.poll():
            self.kill()
            self._join()
            return TaskResult(f"its process made {self.heartbeat.reason}", died=True)
        with suppress(EOFError, ConnectionResetError):
            result: TaskResult = self.pipe.recv()
            return result
        code = self._join(EXIT_SECONDS)
        if code is None:
            return TaskResult("its process closed its pipe and does not end", died=True)
        return TaskResult(f"its process ended: {exit_reason(code)}", died=True)

    def kill(self) -> None:
        with _PROCESSES:
            self.process.kill()

    def stop(self) -> None:
        """Kills the process and returns when it is gone."""
        self.kill()
        self._join()
        self.pipe.close()
        self.heard.close()

    def _join(self, seconds: float | None = None) -> int | None:
        wait([self.process.sentinel], seconds)
        with _PROCESSES:
            self.process.join(0)
            return self.process.exitcode


def sharers(workers: int) -> int:
    """Trainings at once on one GPU: where there are more workers than GPUs, as few share one as have to."""
    gpus = len(gpu_names())
    return -(-workers // gpus) if gpus else 1


def load_ahead() -> None:
    """Starts the fork server, which loads what workers need while the caller continues. HARDMOE_STUDY must be set.

    It ignores Ctrl-C and SIGTERM, as do the workers: the process that started them ends them.
    """
    _forks()
    before = {name: os.environ.get(name) for name in own_modules_first()}
    os.environ.update(own_modules_first())
    try:
        with handled(signal.SIG_IGN):
            multiprocessing.forkserver.ensure_running()
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def _forks() -> "multiprocessing.context.ForkServerContext":
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload([WORKER])
    return forks


def _work(tasks: Connection, heartbeat: Connection, sharers: int) -> None:
    resolve_name(f"{WORKER}:work")(tasks, heartbeat, sharers)
