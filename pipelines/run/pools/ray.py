"""Warm processes on the nodes of a Ray cluster, seen from the command that starts them.

Ray places them and tells when one, or its node, is lost. It does not see that a process stands still, and what it would
repeat by itself would be no Dagster run of its own: beats and tries are ours. Nothing large goes through Ray: tasks are
names, results are in the store.
"""

import os
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import dagster as dg

from moe_core.processes import CHECK_SECONDS, stall_seconds
from moe_core.settings import Cluster, Study
from moe_core.stages.graph import GRAPH
from moe_core.store.layout import Layout
from moe_core.store.locks import is_held
from pipelines.run.pools.local import CLOSED, RUNS_A_WORKER
from pipelines.run.pools.ray_cluster import (
    Takes,
    actor_options,
    check_nodes,
    checked_slots,
    cluster_slots,
    secret_environment,
    shared_locks,
)
from pipelines.run.pools.ray_node import About, Worker, about, end_if_idle
from pipelines.run.task import Task, TaskResult

MOST = 4096  # tasks at once, a thread of this process each
BEAT_SECONDS = 2.0  # between two questions whether a process lives
NODES_SECONDS = 5.0  # between two looks at the cluster: nodes come and go
IDLE_SECONDS = 10.0  # then an idle process leaves its GPU or cores to others
END_SECONDS = 30.0  # for the lease of a run whose process was killed to be free
TRIES = 3
FAILED = "error raised in its creation task"  # in what Ray says of a process that failed to start


class RayPool:
    """Runs tasks in warm processes of the cluster: an idle one takes the next task, one that is worn is replaced."""

    tries = TRIES

    def __init__(
        self,
        cluster: Cluster,
        study: Study,
        root: Path,
        instance: dg.DagsterInstance,
        limit: int | None = None,
        warn: Callable[[str], None] = lambda why: None,
    ) -> None:
        """Connects and checks the nodes. `limit`: no more tasks at once. Raises BadSetting, or MissingLibrary."""
        self._study, self._layout, self._limit, self._warn = study, Layout(root), limit, warn
        self._slots = checked_slots(cluster, study)
        self._has_gpus = self._slots.gpus > 0  # a training does not go on without, should they all be lost
        with ExitStack() as until:
            self._locks = until.enter_context(shared_locks(root, instance))
            check_nodes(study, self._locks, warn)
            self._held = until.pop_all()  # until the pool is closed
        self._threads = ThreadPoolExecutor(MOST, thread_name_prefix="ray")  # each waits for a busy process
        self._changed = threading.Condition()
        self._processes: list[Process] = []
        self._closed = False
        self._tender = threading.Thread(target=self._tend, daemon=True)
        self._tender.start()

    @property
    def capacity(self) -> int:
        return self._slots.total if self._limit is None else min(self._slots.total, self._limit)

    def has_room(self, task: Task, running: Collection[Task]) -> bool:
        takes = self._takes(task)
        alike = sum(self._takes(other) is takes for other in running)
        return len(running) < self.capacity and alike < self._slots.of(takes)

    def load_ahead(self) -> None:
        """Nothing: processes start with their first tasks."""

    def submit(self, task: Task, run_id: str, log: Path, study: Study) -> Future[TaskResult]:
        return self._threads.submit(self._run, task, run_id, log, study)

    def close(self) -> None:
        import ray

        with self._changed:
            self._closed = True
            for process in self._processes:
                process.kill()
            self._changed.notify_all()
        self._threads.shutdown(cancel_futures=True)
        self._tender.join(END_SECONDS)
        self._held.close()
        ray.shutdown()

    def _takes(self, task: Task) -> Takes:
        stage = GRAPH[task.asset]
        if stage.ranks(self._study) > 1:
            return Takes.NOTHING
        return Takes.GPU if self._has_gpus and stage.uses_gpu else Takes.CORES

    def _run(self, task: Task, run_id: str, log: Path, study: Study) -> TaskResult:
        result = self._ask(task, run_id, log, study)
        if result.inputs_changed:  # its process read study.toml before that changed
            result = self._ask(task, run_id, log, study)
        return result

    def _ask(self, task: Task, run_id: str, log: Path, study: Study) -> TaskResult:
        process = self._begin(self._takes(task))
        if process is None:
            return CLOSED
        result = process.run(task, run_id, log, study)
        with self._changed:
            process.idle_since = time.monotonic()
            if result.died or result.last or process.runs >= RUNS_A_WORKER:
                self._drop(process)
            if result.inputs_changed:  # those that are idle read the same study.toml
                self._drop(*(process for process in self._processes if process.idle_since))
            self._changed.notify_all()
        if result.died:
            self._wait_for_end(run_id)
        return CLOSED if self._closed and result.died else result

    def _begin(self, takes: Takes) -> "Process | None":
        """A process for one task, which is busy from now on; None where the pool is closed."""
        tries = TRIES
        while process := self._take(takes):
            if process.about:
                if process.answers():
                    return process
            elif problem := process.start(self._locks, lambda: self._closed):
                self._warn(f"node {process.host} of the Ray cluster {problem}; it gets no tasks")
                continue  # and its room stays taken
            elif not process.lost:
                return process
            else:  # its node was lost before it ran, which is no try of the task
                tries -= 1
                if process.failed or not tries:
                    return process
            with self._changed:
                self._drop(process)
        return None

    def _take(self, takes: Takes) -> "Process | None":
        """An idle process, or another one as soon as there is room; None once the pool is closed."""
        with self._changed:
            while not self._closed:
                alike = [process for process in self._processes if process.takes is takes]
                for process in alike:
                    if process.idle_since:
                        process.idle_since = None
                        return process
                if len(alike) < self._slots.of(takes):
                    self._processes.append(process := Process(self._study, takes, self._has_gpus))
                    return process
                self._changed.wait(BEAT_SECONDS)
            return None

    def _drop(self, *processes: "Process") -> None:
        for process in processes:
            process.kill()
            self._processes.remove(process)

    def _wait_for_end(self, run_id: str) -> None:
        """Returns when the process of a run holds its lease no longer: it writes no more."""
        deadline = time.monotonic() + END_SECONDS
        while is_held(self._layout.lease(run_id)) and time.monotonic() < deadline:
            time.sleep(0.1)

    def _tend(self) -> None:
        """Notes what nodes came and went, and ends what is idle."""
        slots = self._slots
        while not self._closed:
            with suppress(RuntimeError, ConnectionError):  # the head does not answer: with it the command ends
                slots = cluster_slots(self._study)
            with self._changed:
                self._slots = slots
                now = time.monotonic()
                self._drop(*(p for p in self._processes if p.idle_since and now - p.idle_since > IDLE_SECONDS))
                self._changed.notify_all()
                self._changed.wait(NODES_SECONDS)


class Process:
    """A process of the cluster, or one that waits until there is room for it."""

    def __init__(self, study: Study, takes: Takes, on_gpus: bool) -> None:
        """`on_gpus`: of a run that had GPUs when it began."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        options = actor_options(study, takes, on_gpus)
        options["max_concurrency"] = 2  # one thread runs, another answers `beat`
        if takes is Takes.NOTHING:  # beside this command, where all is as it should be
            options["scheduling_strategy"] = On(ray.get_runtime_context().get_node_id(), soft=True)
        actor: Any = ray.remote(Worker).options(**options)
        threads_of_ray = "OMP_NUM_THREADS" not in os.environ
        self.actor = actor.remote(secret_environment(), threads_of_ray, hide_gpus=takes is Takes.NOTHING)
        self.takes = takes
        self.about: About | None = None  # once it runs
        self.node = ""
        self.runs = 0
        self.idle_since: float | None = None  # None: it is busy, or not to be used
        self.lost = ""  # why it never came to run
        self.failed = False  # since its own start failed

    @property
    def host(self) -> str:
        return self.about.host if self.about else "?"

    def start(self, locks: list[Path], closed: Callable[[], bool]) -> str:
        """Waits until it runs. Returns what is wrong with its node; "" where nothing is, or it was `lost`."""
        import ray

        answer = self.actor.about.remote(locks)
        try:
            while not ray.wait([answer], timeout=BEAT_SECONDS)[0]:
                if closed():
                    self.kill()
            self.about, self.node = ray.get(answer)
            return self.about.problem(about([]), locks)
        except ray.exceptions.RayError as error:
            self.failed = isinstance(error, ray.exceptions.RayTaskError) or FAILED in str(error)
            self.lost = why_lost(error)
            return ""

    def answers(self) -> bool:
        """Whether it lives: its node may be lost since its last task."""
        import ray

        with suppress(ray.exceptions.RayError):  # also where it is late
            ray.get(self.actor.beat.remote(), timeout=BEAT_SECONDS)
            return True
        return False

    def run(self, task: Task, run_id: str, log: Path, study: Study) -> TaskResult:
        """Runs a task in it; `died` where it, or its node, is lost meanwhile, or it stalls, and then is killed."""
        import ray

        if self.lost:
            return TaskResult(self.lost, died=True)
        self.runs += 1
        answer, beat = self.actor.run.remote(task, run_id, log, study), self.actor.beat.remote()
        limit, silence, checked = stall_seconds(), 0.0, time.monotonic()
        try:
            while not ray.wait([answer], timeout=min(BEAT_SECONDS, limit / 4))[0]:
                now = time.monotonic()
                silence += min(now - checked, CHECK_SECONDS)  # this process may have been stopped itself
                checked = now
                if ray.wait([beat], timeout=0)[0]:
                    beat, silence = self.actor.beat.remote(), 0.0
                elif silence >= limit:
                    if self._is_ended():
                        why = f"its process on {self.host} made no progress for {limit:g} s (stopped or hung); killed"
                        return TaskResult(why, died=True)
                    silence = 0.0  # a long computation holds up its other thread
            result: TaskResult = ray.get(answer)
            return result
        except ray.exceptions.RayError as error:
            return TaskResult(f"{why_lost(error)} (on {self.host})", died=True)

    def _is_ended(self) -> bool:
        """Asks its node to kill it, unless it computes. A node that does not answer is lost."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        assert self.about
        there: Any = ray.remote(end_if_idle).options(
            num_cpus=0, max_retries=0, scheduling_strategy=On(self.node, soft=False)
        )
        with suppress(ray.exceptions.RayError):  # also where it is late
            return bool(ray.get(there.remote(self.about.process), timeout=END_SECONDS))
        return True

    def kill(self) -> None:
        import ray

        with suppress(ray.exceptions.RayError, ValueError):
            ray.kill(self.actor)


def why_lost(error: Exception) -> str:
    """Why a process of the cluster is gone, from the lines of an error of Ray's."""
    lines = [line for line in str(error).strip().splitlines() if not line.startswith("\t")]
    if FAILED in str(error) or type(error).__name__.startswith("RayTaskError"):  # with a traceback
        return f"its process failed: {lines[-1]}"
    return f"its process ended: {' '.join(lines[1:] or lines)}"
