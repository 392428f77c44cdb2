"""`hardmoe run`: every missing or stale artifact of a study in order, each in its own Dagster run, N at a time.

A loop over futures: submit what is ready, wait for the first that completes, note it, read the state again where it
changed, and plan the rest again. Where tasks run is the pool's matter.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
from dagster._core.utils import make_new_run_id

from assets.record import Recorder
from assets.runs import end_run
from assets.study import project_keys
from moe_core import threads
from moe_core.devices import gpu_names
from moe_core.engine.build import build
from moe_core.engine.context import Context
from moe_core.engine.planner import Name, PlannedTask
from moe_core.errors import HardmoeError
from moe_core.maintenance.gc import collect_unless_busy
from moe_core.processes import this_process
from moe_core.settings import Cluster, Study
from moe_core.stages.data.rows import remove_gone_shards
from moe_core.store.artifact import Spec, name_of
from moe_core.store.locks import Holder
from moe_core.study_file import load_study
from moe_core.tables.location import tables_of
from moe_core.workspace import reopened, token
from pipelines.instance.home import prepare_home
from pipelines.instance.opening import opened
from pipelines.instance.reap import reap
from pipelines.run.dag import Dag
from pipelines.run.interrupts import handled, signals_deferred
from pipelines.run.plan import in_own_order, planned_tasks
from pipelines.run.pools import Pool
from pipelines.run.pools.choice import pool_on, worker_count
from pipelines.run.task import Summary, Task, TaskResult

POLL_SECONDS = 0.25  # the display is told at least so often
ELSEWHERE_SECONDS = 2.0  # between two looks at what another machine builds: each asks the file system for each task


@dataclass(frozen=True)
class Running:
    """A run under way."""

    task: Task
    run_id: str
    started: float
    version: str  # of the artifact that it was submitted for

    @property
    def name(self) -> Name:
        return self.task.asset, self.task.key


# ("started" | "done" | "fresh" | "failed" | "replanned" | "warning", task's name, why)
Event = Callable[[str, str, str], None]
Poll = Callable[[list[Running], dict[str, str]], None]  # what runs, and what waits for another process: name, why


def run_study(
    context: Context,
    *,
    until: str | None = None,
    only: Iterable[Name] | None = None,
    workers: int | None = None,
    force: bool = False,
    cluster: Cluster | None = None,
    on_event: Event = lambda *_: None,
    on_poll: Poll = lambda *_: None,
) -> Summary:
    """Materializes what is missing or stale, up to the asset `until`, or `only` some artifacts; where the study says,
    or on another `cluster`.

    HARDMOE_STUDY must name the study. Raises BadSetting for an unknown asset. A failure stops what depends on it and
    nothing else. Ctrl-C ends what is under way, whose checkpoints stay, and the summary says so. What another process
    builds at the moment is waited for. Settings, takedowns, requests and pointers that change meanwhile are planned
    for again.
    """
    began = time.monotonic()
    cluster = cluster or context.study.cluster
    worker_count(workers, context.study, cluster)  # raises what is wrong with them before anything is written
    prepare_home(context.root, worker_count(None, context.study))
    if workers:
        os.environ[threads.SHARE] = str(max(1, threads.cores() // workers))  # of the processes started from here on
    with opened() as instance:
        reap(instance, context.root, context.study.name, context.store.place)
        loop = _Loop(context, instance, until, None if only is None else list(only), force, on_event, on_poll)
        remove_gone_shards(tables_of(context.store), [shard.key for shard in context.shards])
        summary = loop.run(pool_on(cluster, context, instance, workers, lambda why: on_event("warning", "", why)))
    if not summary.interrupted and any(name.startswith("posts:") for name in summary.made):
        try:
            collect_unless_busy(loop.context)
        except KeyboardInterrupt:
            summary.interrupted = True
    summary.seconds = time.monotonic() - began
    return summary


@dataclass
class _Loop:
    """One run of the scheduler."""

    context: Context
    instance: dg.DagsterInstance
    until: str | None
    only: list[Name] | None
    force: bool
    on_event: Event
    on_poll: Poll
    summary: Summary = field(default_factory=Summary)
    running: dict[Future[TaskResult], Running] = field(default_factory=dict)
    complete: dict[Name, str] = field(default_factory=dict)  # version
    lost: set[Name] = field(default_factory=set)  # failed, and what depends on it
    outdated: list[Name] = field(default_factory=list)  # tasks to plan again: inputs changed, or the process was lost
    died: Counter[Name] = field(default_factory=Counter)  # tries whose process was lost
    is_shared: bool = False  # other commands, here or elsewhere, build the same study
    is_elsewhere: bool = False  # one of them on another machine

    def __post_init__(self) -> None:
        self._plan()

    def _plan(self) -> None:
        """Plans what is left, by the state as it is now."""
        planned = planned_tasks(self.context, self.until, self.only)
        self.recorder = Recorder(self.instance)  # what ran since the last plan is recorded
        study, experts = self.context.study, list(self.context.experts)
        project_keys(self.instance, study.name, [shard.key for shard in self.context.shards], experts)
        due = [p for p in planned if p.name not in self.lost and not self._is_complete(p)]
        self.tasks = {p.name: p for p in due}
        self.dag = Dag(self.context.planner.graph, self.tasks)
        busy = {running.name: running for running in self.running.values()}
        for name in [name for name in self.dag.ready if name in busy]:
            spec = self.tasks[name].spec
            if not busy[name].version or (spec and busy[name].version == spec.version):  # else it makes an old one
                self.dag.start(name)

    def _is_complete(self, planned: PlannedTask) -> bool:
        return planned.spec is not None and self.complete.get(planned.name) == planned.spec.version

    def run(self, pool: Pool) -> Summary:
        try:
            if self.force or any(p.artifact is None for p in self.tasks.values()):
                pool.load_ahead()
            waiting, look = dict[str, str](), 0.0
            while self.running or self.dag.left:
                if time.monotonic() >= look:
                    waiting = self._submit_ready(pool)
                    look = time.monotonic() + (ELSEWHERE_SECONDS if waiting and self.is_elsewhere else 0.0)
                if self.running:
                    done, _ = wait(self.running, POLL_SECONDS, FIRST_COMPLETED)
                    with signals_deferred():
                        for future in done:
                            self._note(future.result(), self.running.pop(future), pool.tries)
                        if done:
                            self._replan_if_changed()
                            look = 0.0
                elif waiting:
                    time.sleep(POLL_SECONDS)
                    self._replan_if_changed()
                self.on_poll(list(self.running.values()), waiting)
        except KeyboardInterrupt:
            self.summary.interrupted = True
        finally:
            with handled(signal.SIG_IGN):  # so that what was started is ended in order
                pool.close()
                self._cancel_running()
        return self.summary

    def _submit_ready(self, pool: Pool) -> dict[str, str]:
        """Submits what is ready, as far as the pool has room. Returns what waits for another process, and why."""
        waiting: dict[str, str] = {}
        full: set[str] = set()  # stages whose tasks must wait for room
        progress = True
        while progress:  # what is fresh sets others free at once
            progress = False
            busy = {running.name for running in self.running.values()}
            ready = self.dag.ready
            for name in in_own_order(ready, this_process()) if self.is_shared else ready:
                if name[0] in full or name in busy:  # by an older plan: what it leaves is looked at once it has ended
                    continue
                planned = self.context.planner.task(*name)
                tasks = [running.task for running in self.running.values()]
                if planned.artifact and not self.force and not self.recorder.wants_run(planned):
                    self._note_fresh(planned)
                    progress = True
                elif not pool.has_room(Task(*name), tasks):
                    full.add(name[0])
                    if not tasks:
                        waiting[planned.label] = "no node has room"  # the cluster lost those that had
                    if len(tasks) >= pool.capacity:
                        break
                elif planned.spec and (builder := self.context.store.builder(planned.spec)):
                    waiting[planned.label] = str(builder)
                    self._note_other(builder)
                else:
                    task = Task(*name, self.force)
                    version = planned.spec.version if planned.spec else ""
                    running = Running(task, make_new_run_id(), time.monotonic(), version)
                    self.dag.start(name)
                    log = self.context.store.layout.log(*name)
                    self.running[pool.submit(task, running.run_id, log, self.context.study)] = running
                    self.on_event("started", task.name, "")
        return waiting

    def _note_other(self, builder: Holder) -> None:
        """Another command builds the same study; a second machine is told of once, where results depend on it."""
        self.is_shared = True
        if builder.is_elsewhere and not (self.is_elsewhere or threads.chosen_threads() or gpu_names()):
            why = f"{builder.host} builds this study, too, and threads follow from each machine's cores: where those "
            why += "differ, results do. Set them for all machines with --set cluster.threads=N"
            self.on_event("warning", "", why)
        self.is_elsewhere = self.is_elsewhere or builder.is_elsewhere

    def _note_fresh(self, planned: PlannedTask) -> None:
        """What exists is recorded in Dagster where its record does not name it, and made current where it is not."""
        assert planned.spec
        assert planned.artifact
        if self.context.planner.graph[planned.stage].on_commit:
            build(self.context, *planned.name)
        if not self.recorder.is_recorded(self.context, planned):
            self.recorder.record(self.context, planned)
        self.dag.start(planned.name)
        self._complete(planned.name, planned.spec.version, reused=True)
        self.on_event("fresh", planned.label, "")

    def _complete(self, name: Name, version: str, reused: bool) -> None:
        self.complete[name] = version
        self.summary.note(name_of(*name), reused)
        self.dag.done(name)

    def _note(self, result: TaskResult, running: Running, tries: int) -> None:
        """Enters how a run ended, and tells it. One that failed since its inputs changed is planned again."""
        name = running.name
        if result.died:
            self._close_run(running, result.error, failed=True)
            self.died[name] += 1
        if not result.error:
            self._complete(name, result.version, result.reused)
            self.is_shared = self.is_shared or result.reused
            took = f"{time.monotonic() - running.started:.1f} s{', it was there' if result.reused else ''}"
            self.on_event("done", running.task.name, took)
        elif result.inputs_changed or (not result.died and self._inputs_changed(running)):
            self._close_run(running, f"inputs changed: {result.error}", failed=False)
            self.outdated.append(name)
        elif result.died and self.died[name] < tries:
            self.outdated.append(name)
            why = f"{running.task.name}: {result.error}; started again, try {self.died[name] + 1} of {tries}"
            self.on_event("warning", running.task.name, why)
        else:
            self._give_up(name, result.error)
            self.on_event("failed", running.task.name, result.error)

    def _give_up(self, name: Name, why: str) -> None:
        """A task failed, and what depends on it is not started."""
        self.summary.failed[name_of(*name)] = why
        lost = self.dag.give_up(name) if name in self.tasks else []
        self.lost |= {name, *lost}
        self.summary.skipped += [name_of(*other) for other in lost]

    def _inputs_changed(self, running: Running) -> bool:
        """Whether the study, opened again, asks for another artifact than was submitted."""
        with suppress(HardmoeError, OSError):  # the source cannot be read: the task itself says so
            spec = self._reopened().planner.spec(*running.name)
            changed = spec.version != running.version if isinstance(spec, Spec) else spec.on is not None
            return bool(running.version) and changed
        return False

    def _reopened(self) -> Context:
        return reopened(self.context, self._study_now())

    def _study_now(self) -> Study:
        """By study.toml; the study as it was while that cannot be read."""
        with suppress(HardmoeError, OSError):
            return load_study(Path(os.environ["HARDMOE_STUDY"]))
        return self.context.study

    def _replan_if_changed(self) -> None:
        """Reads the state again where a file tells that it changed, or where the plan waited for what is complete."""
        before, planner = self.context, self.context.planner
        changed = bool(self.outdated) or self._study_now() != before.study
        changed = changed or token(before.study, before.store.documents) != planner.state.token
        blocking = {p.blocked.on for p in self.tasks.values() if p.blocked} | planner.provisional
        if not changed and not blocking & set(self.complete):
            return
        try:
            self.context = self._reopened()
            self._plan()
        except (HardmoeError, OSError) as error:  # the source cannot be read now: what is planned goes on
            self.context = before
            for name in self.outdated:
                self._give_up(name, str(error))
            self.outdated = []
            return
        self.outdated = []
        if self.only:
            self._leave_what_waits_for_others()
        if why := _what_changed(before, self.context):
            self.on_event("replanned", "", why)

    def _leave_what_waits_for_others(self) -> None:
        """Drops tasks that were requested by name and wait now for one that was not."""
        for name in self.dag.ready:
            blocked = self.tasks[name].blocked
            if blocked and blocked.on and blocked.on not in self.tasks:
                self.dag.start(name)
                self.summary.blocked[name_of(*name)] = str(blocked)

    def _cancel_running(self) -> None:
        for running in self.running.values():
            self._close_run(
                running, "interrupted: run the same command to resume from the last checkpoint", failed=False
            )
        self.summary.stopped = [running.task.name for running in self.running.values()]
        self.summary.left = [name_of(*name) for name in self.dag.left]

    def _close_run(self, running: Running, why: str, failed: bool) -> None:
        run = self.instance.get_run_by_id(running.run_id)
        if run and (not run.is_finished or not failed):
            end_run(self.instance, run, why, failed)


def _what_changed(before: Context, now: Context) -> str:
    """What somebody changed meanwhile, in a word; "" where only this run's own work did."""
    old, new = before.planner.state, now.planner.state
    if old.study != new.study:
        return "settings"
    if old.takedowns != new.takedowns:
        return "takedown"
    if [shard.content_hash for shard in old.shards] != [shard.content_hash for shard in new.shards]:
        return "source files"
    if added := new.requests - old.requests:
        return f"request to {' and '.join(sorted(added))}"
    return ""
