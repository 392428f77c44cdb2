"""`hardmoe run`: every missing or stale artifact of a study in order, each in its own Dagster run, N at a time."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_core.engine.context import SHARE, Context, cores, workers_for
from moe_core.engine.gpus import gpu_names
from moe_core.engine.stage import maker, shown_as
from moe_core.maintenance.gc import remove_gone_shards, tidy_where_cheap
from moe_core.settings import load_study
from moe_core.stages.gate import current_partition
from moe_core.stages.graph import GRAPH
from moe_core.stages.trunk import frozen
from pipelines.instance import home, opened, project_keys, reap
from pipelines.run.pools.local import Worker, load_ahead, sharers
from pipelines.run.task import SETTINGS, Task, TaskResult

if TYPE_CHECKING:
    import dagster as dg

POLL_SECONDS = 0.25  # at least so often the display is told
DATA_VERSION_TAG, INPUT_TAG = "dagster/data_version", "dagster/input_data_version"
ONE_NETWORK = ("trunk_same_budget", "dense_same_cost")  # controls that take longest


@dataclass
class Running:
    """A run under way."""

    task: Task
    run_id: str
    started: float
    worker: Worker | None = None  # None: a run of Dagster's daemon


@dataclass
class Summary:
    """What a run did."""

    made: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)  # for want of one that failed
    stopped: list[str] = field(default_factory=list)  # under way when it was interrupted
    left: list[str] = field(default_factory=list)  # not begun when it was interrupted or overtaken
    interrupted: bool = False
    overtaken: str = ""  # what came meanwhile, so that the rest is to be planned again
    seconds: float = 0.0

    def followed_by(self, other: "Summary") -> "Summary":
        """Both together, where the other began with what this one left."""
        made = [name for name in self.made if name not in other.made]
        fresh = [name for name in other.fresh if name not in made]
        return replace(other, made=made + other.made, fresh=fresh, seconds=self.seconds + other.seconds)


Event = Callable[[str, Task, str], None]  # ("started" | "done" | "fresh" | "failed", which, why)
Poll = Callable[[list[Running], dict[str, str]], None]  # what runs, and what waits for others: its name, and for whom


def default_workers(experts: int) -> int:
    """As many as there are shares of the cores, or GPUs."""
    return len(gpu_names()) or workers_for(experts)


def use_workers(workers: int | None, experts: int) -> int:
    """Divides the cores among so many workers, for the processes started from here on. Raises ValueError below 1."""
    if workers is None:
        return default_workers(experts)
    if workers < 1:
        raise ValueError(f"--workers {workers}: wanted at least 1")
    os.environ[SHARE] = str(max(1, cores() // workers))
    return workers


def run_study(
    context: Context,
    *,
    until: str | None = None,
    only: Iterable[tuple[str, str | None]] | None = None,
    workers: int | None = None,
    force: bool = False,
    on_event: Event = lambda *_: None,
    on_poll: Poll = lambda *_: None,
) -> Summary:
    """Materializes what is missing, up to the asset `until`, or `only` some. HARDMOE_STUDY must name the study.

    Raises ValueError for an unknown asset. A failure stops what depends on it, nothing else. Ctrl-C ends what is under
    way, whose checkpoints stay, and the summary says so. What another process makes at the moment is waited for. When
    something comes meanwhile that changes the plan, what is under way ends and nothing else is begun.
    """
    began = time.monotonic()
    study = context.study
    count = use_workers(workers, study.partition.experts)
    home(context.root, count)
    waiting = [Task(stage, key, force) for stage, key in (only if only is not None else tasks_of(context, until))]
    alone = only is not None
    done: set[tuple[str, str | None]] = set()
    summary, running, idle = Summary(), list[Running](), list[Worker]()
    meanwhile = Meanwhile(context)
    if force or any(context.find(task.asset, task.key) is None for task in waiting):
        load_ahead()

    from dagster._core.utils import make_new_run_id

    with opened() as instance:
        reap(instance)
        project_keys(instance, study.name, [s.key for s in context.shards], context.experts)
        remove_gone_shards(context)
        try:
            while running or (waiting and not summary.overtaken):
                held_up: dict[str, str] = {}
                for task in list(waiting):
                    if summary.overtaken:
                        break
                    if _lost(summary) & above(task.asset):
                        waiting.remove(task)
                        summary.skipped.append(task.name)
                    elif len(running) < count and (alone or _ready(context, task, done)):
                        if not force and is_fresh(context, instance, task):
                            _settle(context, task)
                            summary.fresh.append(task.name)
                            on_event("fresh", task, "")
                            done.add((task.asset, task.key))
                        elif (pid := maker(context, task.asset, task.key)) is not None:
                            held_up[task.name] = f"is made by another process{f' ({pid})' if pid else ''}"
                            continue
                        elif why := meanwhile.overtook(task):
                            summary.overtaken = why
                            break
                        else:
                            worker = idle.pop() if idle else Worker(sharers(count))
                            if worker.is_worn:
                                worker.stop()
                                worker = Worker(sharers(count))
                            one = Running(task, make_new_run_id(), time.monotonic(), worker)
                            running.append(one)
                            worker.ask(task, one.run_id, _log(context, task), context.study)
                            on_event("started", task, "")
                        waiting.remove(task)
                if running:
                    wait([one.worker.pipe for one in running if one.worker], POLL_SECONDS)  # a dead worker's is ready
                elif held_up:
                    time.sleep(POLL_SECONDS)
                with heard_later():
                    for one in [one for one in running if one.worker and one.worker.has_ended()]:
                        running.remove(one)
                        answer = _end(one, instance)
                        if one.worker:
                            idle.append(one.worker)
                        ended(summary, one, answer, meanwhile, instance, on_event)
                        if not answer.error:
                            done.add((one.task.asset, one.task.key))
                on_poll(running, held_up)
        except KeyboardInterrupt:
            summary.interrupted = True
        finally:
            with undisturbed():
                for worker in (*(one.worker for one in running if one.worker), *idle):
                    worker.stop()
                for one in running:
                    _cancel(one, instance)
                summary.stopped = [one.task.name for one in running]
                summary.left += [task.name for task in waiting]
    if not (summary.interrupted or summary.overtaken) and any(name.startswith("posts:") for name in summary.made):
        try:
            tidy_where_cheap(context)
        except KeyboardInterrupt:
            summary.interrupted = True
    summary.seconds = time.monotonic() - began
    return summary


def study_file_of(root: Path) -> Path:
    """The file of the study in a root: the one that HARDMOE_STUDY names, if it is there."""
    named = Path(os.environ.get("HARDMOE_STUDY") or "study.toml").absolute()
    return named if named.parent == root.absolute() else root / "study.toml"


def settings_changed(context: Context) -> bool:
    """Whether study.toml has other settings now; not while it cannot be read."""
    with suppress(ValueError, OSError):
        return load_study(study_file_of(context.root)) != context.study
    return False


class Meanwhile:
    """What came since the study was planned: settings, takedowns, requests, shards, another command's partition."""

    def __init__(self, planned: Context) -> None:
        self.planned = planned
        self.requests, self.current = self._requests(), current_partition.load(planned)

    def overtook(self, task: Task, surely: bool = False) -> str:
        """What changed the plan of the task since it was made; "" where nothing did. Looks only when a file tells of
        it, unless `surely`."""
        with suppress(ValueError, OSError):  # source or lists cannot be read: the task itself says so
            if surely or self._is_told():
                return self._why(task)
        return ""

    def _why(self, task: Task) -> str:
        planned, study = self.planned, self.planned.study
        with suppress(ValueError, OSError):  # while it is edited, or where there is none: as it was
            study = load_study(study_file_of(planned.root))
        now = Context(study, planned.root)
        with suppress(ValueError):  # what it is made from is to be made first
            if now.version(task.asset, task.key) == planned.version(task.asset, task.key):
                return ""
        if study != planned.study:
            return SETTINGS
        if now.forgotten != planned.forgotten:
            return "posts were forgotten"
        if [shard.content_hash for shard in now.shards] != [shard.content_hash for shard in planned.shards]:
            return "the files of the source changed"
        if frozen.is_renewal_asked(now):
            return "a new trunk was asked for"
        if now.refit_is_asked:
            return "a new fit of the gate was asked for"
        if now.current and now.current.version != planned.version("partition"):
            return "the gate was fitted again"
        return ""

    def _is_told(self) -> bool:
        if any(now not in (None, then) for then, now in zip(self.requests, self._requests(), strict=True)):
            return True  # one that is gone is spent
        current = current_partition.load(self.planned)
        return current not in (None, self.current) and current.version != self.planned.version("partition")

    def _requests(self) -> list[tuple[int, int] | None]:
        root = self.planned.root
        names = ("forgotten.parquet", current_partition.REQUEST, frozen.RENEW)
        return [_state(study_file_of(root)), *(_state(root / name) for name in names)]


def _state(path: Path) -> tuple[int, int] | None:
    try:
        said = path.stat()
    except OSError:
        return None
    return said.st_mtime_ns, said.st_ino


def ended(
    summary: Summary,
    one: Running,
    answer: TaskResult,
    meanwhile: Meanwhile,
    instance: "dg.DagsterInstance",
    on_event: Event,
) -> None:
    """Notes how a run ended. One that failed since its plan was overtaken is canceled, for Dagster too."""
    why = SETTINGS if answer.inputs_changed else ""
    if answer.error and not answer.died:
        why = why or meanwhile.overtook(one.task, surely=True)
    if not why:
        note(summary, one, answer, on_event)
        return
    summary.overtaken = why
    summary.left.append(one.task.name)
    if run := instance.get_run_by_id(one.run_id):
        instance.report_run_canceled(run, message=f"{why} meanwhile: {answer.error}")


def note(summary: Summary, one: Running, answer: TaskResult, on_event: Event) -> None:
    """Enters how a run ended into the summary, and tells it."""
    if answer.error:
        summary.failed[one.task.name] = answer.error
    else:
        (summary.fresh if answer.reused else summary.made).append(one.task.name)
    took = f"{time.monotonic() - one.started:.1f} s{', it was there' if answer.reused else ''}"
    on_event("failed" if answer.error else "done", one.task, answer.error or took)


def tasks_of(context: Context, until: str | None) -> list[tuple[str, str | None]]:
    """All of the graph, or what `until` needs; what others wait for longest comes first."""
    if until is not None and until not in GRAPH:
        raise ValueError(f"no asset {until!r}: wanted one of {', '.join(GRAPH)}")
    wanted = set(GRAPH) if until is None else {until, *above(until)}
    if not context.study.evaluation.controls:
        wanted -= {name for name, stage in GRAPH.items() if stage.control}
    if until is not None and not (until in wanted and GRAPH[until].when(context.study)):
        raise ValueError(
            f"this study has no {until}: decoder.mode, evaluation.controls or evaluation.dense_control leaves it out"
        )
    order = sorted(wanted, key=lambda name: (GRAPH[name].control, name not in ONE_NETWORK, list(GRAPH).index(name)))
    return [(name, key) for name in order for key in GRAPH[name].keys_of(context)]


def above(stage: str) -> set[str]:
    """All stages upstream."""
    found: set[str] = set()
    for name in GRAPH[stage].reads:
        name = shown_as(name)
        found |= {name, *above(name)}
    return found


def _lost(summary: Summary) -> set[str]:
    """Stages that are not complete and will not be."""
    return {name.split(":")[0] for name in (*summary.failed, *summary.skipped)}


def _ready(context: Context, task: Task, done: set[tuple[str, str | None]]) -> bool:
    stage = GRAPH[task.asset]
    for name in stage.reads:
        upstream = GRAPH[shown_as(name)]
        if upstream.control and not context.study.evaluation.controls:
            continue
        keys = [task.key] if upstream.keys == stage.keys == "shards" else upstream.keys_of(context)
        if not all((upstream.name, key) in done for key in keys):
            return False
    return True


def is_fresh(context: Context, instance: "dg.DagsterInstance", task: Task) -> bool:
    """The artifact is there, and it is the one that Dagster's record names, made from what is there now."""
    if context.find(task.asset, task.key) is None:
        return False
    recorded = _recorded(instance, task.asset, task.key)
    version = recorded.get(DATA_VERSION_TAG)
    return version == context.version(task.asset, task.key) and not _looks_stale(context, instance, task, recorded)


def _settle(context: Context, task: Task) -> None:
    """Notes what the study lives with, in case that whoever made it was killed before, or was of another time."""
    stage = GRAPH[task.asset]
    if stage.settle and task.asset in ("trunk", "partition"):
        stage.settle(context, context.need(task.asset))


def _looks_stale(context: Context, instance: "dg.DagsterInstance", task: Task, recorded: Mapping[str, str]) -> bool:
    """Dagster compares the versions that it read then with those of now: what is kept when they change is to be found
    again in a run of its own."""
    from assets.study import key_of

    for name in GRAPH[task.asset].reads:
        stage, seen = GRAPH[shown_as(name)], recorded.get(f"{INPUT_TAG}/{key_of(name).to_user_string()}")
        if not stage.when(context.study) or (stage.control and not context.study.evaluation.controls):
            continue
        unseen = seen in (None, "INITIAL")  # the latter is Dagster's word for what it has no record of
        if unseen and not _knows(instance, key_of(name)):  # made without Dagster, which has nothing to compare
            continue
        if name != stage.name and unseen:  # recorded before there was this name
            return True
        if name == stage.name and stage.keys is None and seen != context.version(name):
            return True
    return False


def _knows(instance: "dg.DagsterInstance", asset: "dg.AssetKey") -> bool:
    """Whether Dagster has a record of the asset."""
    return bool(
        instance.fetch_materializations(asset, limit=1).records or instance.fetch_observations(asset, limit=1).records
    )


def _recorded(instance: "dg.DagsterInstance", stage: str, key: str | None) -> Mapping[str, str]:
    """Tags of the latest materialization in Dagster's event log."""
    import dagster as dg

    from assets.study import key_of

    which = dg.AssetRecordsFilter(asset_key=key_of(stage), asset_partitions=None if key is None else [key])
    records = instance.fetch_materializations(which, limit=1).records
    found = records[0].asset_materialization if records else None
    return found.tags or {} if found else {}


def _end(one: Running, instance: "dg.DagsterInstance") -> TaskResult:
    """How a run ended. A process that died without a word is named, and its run marked failed."""
    assert one.worker
    answer = one.worker.answer()
    if answer.died:
        run = instance.get_run_by_id(one.run_id)
        if run and not run.is_finished:
            instance.report_run_failed(run, message=answer.error)
            instance.event_log_storage.free_concurrency_slots_for_run(one.run_id)
    return answer


def _cancel(one: Running, instance: "dg.DagsterInstance") -> None:
    """Marks the run of a process that was ended canceled, and gives back what it held."""
    run = instance.get_run_by_id(one.run_id)
    if run and not run.is_finished:
        instance.report_run_canceled(run, message="interrupted: the same command goes on from the last checkpoint")
        instance.event_log_storage.free_concurrency_slots_for_run(one.run_id)


SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM are not heard: what was started is ended in order."""
    with _handled(signal.SIG_IGN):
        yield


@contextmanager
def heard_later() -> Iterator[None]:
    """Ctrl-C and SIGTERM are heard at the end: what is asked of others is known by then."""
    heard: list[int] = []
    with _handled(lambda number, _: heard.append(number)):
        yield
    if heard:
        signal.raise_signal(heard[0])


@contextmanager
def _handled(handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, its in before.items():
            signal.signal(number, its)


def _log(context: Context, task: Task) -> Path:
    return context.root / "logs" / f"{task.name.replace(':', '.')}.log"


def progress_of(context: Context, task: Task) -> Path:
    """File in which the run tells how far it is."""
    from assets.materialize import progress_file

    return progress_file(context.root, task.asset, task.key)
