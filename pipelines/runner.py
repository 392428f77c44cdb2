"""`hardmoe run`: every missing or stale artefact of a study in order, each in its own Dagster run, N at a time."""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING

from moe_core.stages.answers import ONE_NETWORK
from moe_core.stages.context import Context, cores, threads_for
from moe_core.stages.housekeeping import remove_gone_shards, tidy_where_cheap
from moe_core.stages.table import STAGES
from pipelines.instance import home, project_keys, reap
from pipelines.workers import Task, Worker, gpus, load_ahead

if TYPE_CHECKING:
    import dagster as dg

POLL_SECONDS = 0.25  # at least so often the display is told
JOINT = ("joint_experts", "random_joint_experts")  # stages that start processes of their own, one a GPU


@dataclass
class Running:
    """A run under way."""

    task: Task
    run_id: str
    worker: Worker
    started: float
    slot: int


@dataclass
class Summary:
    """What a run did."""

    made: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)  # for want of one that failed
    seconds: float = 0.0


Event = Callable[[str, Task, str], None]  # ("started" | "done" | "fresh" | "failed", which, why)


def default_workers(experts: int) -> int:
    """As many as there are shares of the cores, or GPUs."""
    return gpus() or max(1, cores() // threads_for(True, experts))


def run_study(
    context: Context,
    *,
    until: str | None = None,
    only: Iterable[tuple[str, str | None]] | None = None,
    workers: int | None = None,
    force: bool = False,
    on_event: Event = lambda *_: None,
    on_poll: Callable[[list[Running]], None] = lambda _: None,
) -> Summary:
    """Materialises what is missing, up to the asset `until`, or `only` some. HARDMOE_STUDY must name the study.

    Raises ValueError for an unknown asset. A failure stops what depends on it, nothing else.
    """
    began = time.monotonic()
    study = context.study
    if workers is not None:
        if workers < 1:
            raise ValueError(f"--workers {workers}: wanted at least 1")
        os.environ.setdefault("HARDMOE_THREADS", str(max(1, cores() // workers)))
    count = workers or default_workers(study.partition.experts)
    home(context.root, count)
    waiting = [Task(stage, key, force) for stage, key in (only if only is not None else _tasks(context, until))]
    alone = only is not None
    done: set[tuple[str, str | None]] = set()
    summary, running, idle = Summary(), list[Running](), dict[int, Worker]()
    if force or any(context.find(task.stage, task.key) is None for task in waiting):
        load_ahead()

    import dagster as dg
    from dagster._core.utils import make_new_run_id

    with dg.DagsterInstance.get() as instance:
        reap(instance)
        project_keys(instance, study.name, [s.key for s in context.shards], context.experts)
        remove_gone_shards(context)
        try:
            while waiting or running:
                for task in list(waiting):
                    if _lost(summary) & _above(task.stage):
                        waiting.remove(task)
                        summary.skipped.append(task.name)
                    elif len(running) < count and (alone or _ready(context, task, done)):
                        if not force and _is_fresh(context, instance, task):
                            summary.fresh.append(task.name)
                            on_event("fresh", task, "")
                            done.add((task.stage, task.key))
                        else:
                            slot = min(set(range(count)) - {r.slot for r in running})
                            all_gpus = task.stage in JOINT or (task.stage == "trunk" and study.trunk_setup.ranks > 1)
                            worker = _worker(slot, idle.pop(slot, None), all_gpus)
                            running.append(Running(task, make_new_run_id(), worker, time.monotonic(), slot))
                            worker.ask(task, running[-1].run_id, _log(context, task))
                            on_event("started", task, "")
                        waiting.remove(task)
                if running:
                    wait([one.worker.pipe for one in running], POLL_SECONDS)  # a dead worker's is ready, too
                for one in [one for one in running if one.worker.pipe.poll()]:
                    running.remove(one)
                    error = _end(one, instance)
                    idle[one.slot] = one.worker
                    if error:
                        summary.failed[one.task.name] = error
                    else:
                        summary.made.append(one.task.name)
                        done.add((one.task.stage, one.task.key))
                    on_event(
                        "failed" if error else "done", one.task, error or f"{time.monotonic() - one.started:.1f} s"
                    )
                on_poll(running)
        finally:
            for worker in (*(one.worker for one in running), *idle.values()):
                worker.stop()
            if running:
                reap(instance)
    if any(name.startswith("posts:") for name in summary.made):
        tidy_where_cheap(context)
    summary.seconds = time.monotonic() - began
    return summary


def _tasks(context: Context, until: str | None) -> list[tuple[str, str | None]]:
    """All of the graph, or what `until` needs; what others wait for longest comes first."""
    if until is not None and until not in STAGES:
        raise ValueError(f"no asset {until!r}: wanted one of {', '.join(STAGES)}")
    wanted = set(STAGES) if until is None else {until, *_above(until)}
    if not context.study.evaluation.controls:
        wanted -= {name for name, stage in STAGES.items() if stage.control}
    order = sorted(wanted, key=lambda name: (STAGES[name].control, name not in ONE_NETWORK, list(STAGES).index(name)))
    return [(name, key) for name in order for key in STAGES[name].keys_of(context)]


def _above(stage: str) -> set[str]:
    """All stages upstream."""
    found: set[str] = set()
    for name in STAGES[stage].reads:
        name = "partition" if name == "expert_shard" else name
        found |= {name, *_above(name)}
    return found


def _lost(summary: Summary) -> set[str]:
    """Stages that are not complete and will not be."""
    return {name.split(":")[0] for name in (*summary.failed, *summary.skipped)}


def _ready(context: Context, task: Task, done: set[tuple[str, str | None]]) -> bool:
    stage = STAGES[task.stage]
    for name in stage.reads:
        upstream = STAGES["partition" if name == "expert_shard" else name]
        if upstream.control and not context.study.evaluation.controls:
            continue
        keys = [task.key] if upstream.keys == stage.keys == "shards" else upstream.keys_of(context)
        if not all((upstream.name, key) in done for key in keys):
            return False
    return True


def _is_fresh(context: Context, instance: "dg.DagsterInstance", task: Task) -> bool:
    """The artefact is there, and it is the one that Dagster's record names."""
    return context.find(task.stage, task.key) is not None and (
        recorded_version(instance, task.stage, task.key) == context.version(task.stage, task.key)
    )


def recorded_version(instance: "dg.DagsterInstance", stage: str, key: str | None) -> str | None:
    """Data version of the latest materialisation in Dagster's event log."""
    import dagster as dg
    from dagster._core.definitions.data_version import extract_data_version_from_entry

    which = dg.AssetRecordsFilter(asset_key=dg.AssetKey(stage), asset_partitions=None if key is None else [key])
    records = instance.fetch_materializations(which, limit=1).records
    version = extract_data_version_from_entry(records[0].event_log_entry) if records else None
    return version.value if version else None


def _worker(slot: int, idle: Worker | None, all_gpus: bool) -> Worker:
    """The slot's own, where it can go on, or a new one."""
    if idle and all_gpus:
        idle.stop()
    return Worker(slot, all_gpus) if all_gpus or idle is None or idle.is_worn else idle


def _end(one: Running, instance: "dg.DagsterInstance") -> str:
    """The error of a run that ended, or "". A process that died without a word is named, and its run marked failed."""
    error, died = one.worker.answer()
    if died:
        run = instance.get_run_by_id(one.run_id)
        if run and not run.is_finished:
            instance.report_run_failed(run, message=error)
            instance.event_log_storage.free_concurrency_slots_for_run(one.run_id)
    return error


def _log(context: Context, task: Task) -> Path:
    return context.root / "logs" / f"{task.name.replace(':', '.')}.log"


def progress_of(context: Context, task: Task) -> Path:
    """File in which the run tells how far it is."""
    from assets.materialise import progress_file

    return progress_file(context.root, task.stage, task.key)
