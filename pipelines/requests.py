"""Runs on request, from Dagster: a job records what is wanted, a sensor launches the runs that are due until it is.

Dagster's own "Materialize all" takes the partition keys that exist when it is launched: neither the shards that a
source has by now, nor the experts that the partition turns out to have. `launch_requested` is the scheduler of
`hardmoe run` in another form: at each tick it plans, and launches what is ready, each asset partition in its own run.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import dagster as dg
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

from assets.record import Recorder
from assets.study import STUDY, experts, key_of, root, shards, study
from moe_core.engine.context import Context
from moe_core.engine.planner import Name, PlannedTask
from moe_core.processes import this_process
from moe_core.store import pointer
from moe_core.store.artifact import name_of
from moe_core.store.hashing import content_hash
from moe_core.store.layout import Layout
from moe_core.workspace import token
from pipelines.jobs import JOBS, RUN_JOBS, job_of
from pipelines.run.dag import Dag
from pipelines.run.plan import tasks_until
from pipelines.sensors import opened_in_time

TICK_SECONDS = 5
REPLAN_SECONDS = 60  # a tick plans after so long anyway: new files of the source change nothing that is cheap to see
REQUEST_TAG = "hardmoe/request"  # of a run: which request it belongs to


@dataclass(frozen=True)
class RunRequested:
    """What is to be made: everything missing or stale, or that up to an asset."""

    id: str
    until: str | None
    at: float  # seconds since 1970


def request_run(root: Path, until: str | None) -> RunRequested:
    """Records a request; it takes the place of an earlier one that is not carried out yet."""
    request = RunRequested(uuid.uuid4().hex[:12], until, time.time())
    pointer.write(Layout(root).run_request, asdict(request))
    return request


def read_request(root: Path) -> RunRequested | None:
    """None where nothing is requested. Raises CorruptArtifact for a damaged file."""
    request = pointer.read(Layout(root).run_request, [field.name for field in fields(RunRequested)])
    return RunRequested(**request) if request else None


@dg.sensor(
    jobs=[*JOBS, *RUN_JOBS],
    minimum_interval_seconds=TICK_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,  # it does nothing until a job requests something
    description="Launches the runs that the jobs `everything` and `repartition` request, as they become ready.",
)
def launch_requested(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """One tick: plans, records what exists, and launches what is ready and does not run yet.

    Where the tick before found nothing to launch and nothing changed since, it waits for the runs without planning.
    """
    request = read_request(root())
    if request is None:
        return dg.SensorResult(skip_reason="nothing is requested")
    now = _now(context.instance, request)
    if _waits(context.cursor, now):
        return dg.SensorResult(skip_reason="nothing changed; runs are under way", cursor=context.cursor)
    work = opened_in_time()
    if work is None:
        return dg.SensorResult(skip_reason="new or changed files of the source are read", cursor="")
    if request.until and request.until not in work.planner.graph:  # settings changed since
        pointer.remove(work.store.layout.run_request)
        return dg.SensorResult(
            skip_reason=f"request {request.id} is dropped: the study has no {request.until} any more"
        )
    tick = _Tick(work, context.instance, request)
    for line in tick.failed.values():
        context.log.warning(line)
    if not (tick.ready or tick.active):
        pointer.remove(work.store.layout.run_request)
        failed = f"failed: {', '.join(name_of(*name) for name in tick.failed)}" if tick.failed else "all of it is made"
        return dg.SensorResult(skip_reason=f"request {request.id} is carried out; {failed}", cursor="")
    return dg.SensorResult(
        run_requests=[tick.run_of(name) for name in tick.ready],
        dynamic_partitions_requests=list(tick.new_keys()),
        skip_reason=None if tick.ready else f"{len(tick.active)} runs are under way",
        cursor="" if tick.ready else json.dumps({"now": now, "planned at": time.time()}),
    )


def _now(instance: dg.DagsterInstance, request: RunRequested) -> str:
    """Changes once a run starts or ends, the study or its state changes, or another process, such as of newer code,
    takes the sensor over. Costs two queries at most, however large the study is."""
    active = sorted(instance.get_run_ids(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES)))
    return content_hash([request.id, token(study(), root()), this_process(), active])


def _waits(cursor: str | None, now: str) -> bool:
    """Whether the tick before, which left the cursor, planned the same not long ago and found nothing to launch."""
    before = json.loads(cursor) if cursor else {}
    return before.get("now") == now and time.time() - before["planned at"] < REPLAN_SECONDS


class _Tick:
    """What is ready, active and failed of a request."""

    def __init__(self, work: Context, instance: dg.DagsterInstance, request: RunRequested) -> None:
        self.work, self.instance, self.request = work, instance, request
        recorder = Recorder(instance)
        self.due: dict[Name, PlannedTask] = {}
        for planned in tasks_until(work, request.until):
            if planned.artifact is None or recorder.wants_run(planned):
                self.due[planned.name] = planned
            elif not recorder.is_recorded(work, planned):
                recorder.record(work, planned)
        self.active = self._active()
        self.failed = self._failed()
        dag = Dag(work.planner.graph, self.due)
        for name in self.failed:
            dag.give_up(name)
        self.ready = [name for name in dag.ready if name not in self.active]

    def _runs(self, filters: dg.RunsFilter) -> Iterator[tuple[Name, dg.DagsterRun]]:
        for run in self.instance.get_runs(filters):
            if run.tags.get(STUDY, study().name) == study().name:
                for asset in run.asset_selection or ():
                    yield (asset.path[-1], run.tags.get("dagster/partition")), run

    def _active(self) -> set[Name]:
        return {name for name, _ in self._runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES))}

    def _failed(self) -> dict[Name, str]:
        """Tasks that are due and whose run failed or was canceled since the request: they are not tried again."""
        ended = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
        filters = dg.RunsFilter(statuses=ended, tags={REQUEST_TAG: self.request.id})
        failed = (pair for pair in self._runs(filters) if pair[0] in self.due)
        return {name: f"{name_of(*name)}: run {run.run_id} ended as {run.status.value}" for name, run in failed}

    def run_of(self, name: Name) -> dg.RunRequest:
        stage, key = name
        spec = self.due[name].spec
        version = spec.version if spec else "unknown"  # a run key that was used is not used again
        return dg.RunRequest(
            run_key=f"{self.request.id}-{name_of(stage, key)}-{version}",
            job_name=job_of(stage),
            asset_selection=[key_of(stage)],
            partition_key=key,
            tags={REQUEST_TAG: self.request.id},
        )

    def new_keys(self) -> Iterator[dg.AddDynamicPartitionsRequest]:
        for partitions, keys in ((shards(), [s.key for s in self.work.shards]), (experts(), self.work.experts)):
            known = set(self.instance.get_dynamic_partitions(str(partitions.name)))
            if new := [key for key in keys if key not in known]:
                yield partitions.build_add_request(new)
