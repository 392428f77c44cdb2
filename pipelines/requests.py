"""Runs on request, from Dagster: a job records what is wanted, a sensor launches the runs that are due until it is.

Dagster's own "Materialize all" takes the partition keys that exist when it is launched: neither the shards that a
source has by now, nor the experts that the partition turns out to have. `launch_requested` is the scheduler of
`hardmoe run` in another form: at each tick it plans, and launches what is ready, each asset partition in its own run.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import asdict, dataclass, fields

import dagster as dg
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from dagster._core.storage.tags import WILL_RETRY_TAG

from assets.record import Recorder
from assets.runs import runs_by_task
from assets.study import key_of, project_keys, root, study
from moe_core.engine.context import Context
from moe_core.engine.planner import Name, PlannedTask
from moe_core.processes import this_process
from moe_core.store import pointer
from moe_core.store.artifact import name_of
from moe_core.store.documents import Documents
from moe_core.store.hashing import content_hash
from moe_core.store.layout import NAMES
from moe_core.store.protocols import open_store
from moe_core.workspace import token
from pipelines.jobs import JOBS, job_of
from pipelines.run.dag import Dag
from pipelines.run.plan import planned_tasks
from pipelines.sensors import opened_in_time

TICK_SECONDS = 5
REPLAN_SECONDS = 60  # a tick plans so often anyway: new files of the source change nothing that is cheap to see
REQUEST_TAG = "hardmoe/request"  # of a run: which request it belongs to
UNFINISHED = dg.RunsFilter(statuses=NOT_FINISHED_STATUSES)
FAILED = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


@dataclass(frozen=True)
class RunRequested:
    """What is to be made: everything missing or stale, or that up to an asset."""

    id: str
    until: str | None


def request_run(documents: Documents, until: str | None) -> RunRequested:
    """Records a request; it takes the place of an earlier one that is not carried out yet."""
    request = RunRequested(uuid.uuid4().hex[:12], until)
    pointer.write(documents, NAMES.run_request, asdict(request))
    return request


def read_request(documents: Documents) -> RunRequested | None:
    """None where nothing is requested. Raises CorruptArtifact for a damaged one."""
    request = pointer.read(documents, NAMES.run_request, [field.name for field in fields(RunRequested)])
    return RunRequested(**request) if request else None


@dg.sensor(
    jobs=JOBS,
    minimum_interval_seconds=TICK_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,  # it does nothing until a job requests something
    description="Launches the runs that the jobs `everything` and `repartition` request, as they become ready.",
)
def launch_requested(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """One tick: plans, records what exists, and launches what is ready and does not run yet.

    Where the tick before found nothing to launch and nothing changed since, it waits for the runs without planning.
    """
    documents, instance = open_store(study(), root()).documents, context.instance
    request = read_request(documents)
    if request is None:
        return dg.SensorResult(skip_reason="nothing is requested")
    now = _now(instance, request, documents)
    if context.cursor == now:
        return dg.SensorResult(skip_reason="nothing changed; runs are under way", cursor=now)
    work = opened_in_time()
    if work is None:
        return dg.SensorResult(skip_reason="new or changed files of the source are read", cursor="")
    if request.until and request.until not in work.planner.graph:  # settings changed since
        pointer.remove(documents, NAMES.run_request)
        return dg.SensorResult(
            skip_reason=f"request {request.id} is dropped: the study has no {request.until} any more"
        )
    project_keys(instance, work.study.name, [shard.key for shard in work.shards], work.experts)
    due = _due(work, instance, request)
    active = {name for name, _ in runs_by_task(instance, work.study.name, UNFINISHED)}
    since = dg.RunsFilter(statuses=FAILED, tags={REQUEST_TAG: request.id})
    failed = {
        name: run
        for name, run in runs_by_task(instance, work.study.name, since)
        if name in due and run.tags.get(WILL_RETRY_TAG) != "true"  # another follows, by `run_retries` of dagster.yaml
    }
    dag = Dag(work.planner.graph, due)
    for name, run in failed.items():  # is not tried again
        context.log.warning(f"{name_of(*name)}: run {run.run_id} ended as {run.status.value}")
        dag.give_up(name)
    ready = [due[name] for name in dag.ready if name not in active]
    if not (ready or active):
        pointer.remove(documents, NAMES.run_request)
        end = f"failed: {', '.join(name_of(*name) for name in failed)}" if failed else "all of it is made"
        return dg.SensorResult(skip_reason=f"request {request.id} is carried out; {end}", cursor="")
    return dg.SensorResult(
        run_requests=[_run_of(planned, request) for planned in ready],
        skip_reason=None if ready else f"{len(active)} runs are under way",
        cursor="" if ready else now,
    )


def _now(instance: dg.DagsterInstance, request: RunRequested, documents: Documents) -> str:
    """Changes once a run starts or ends, the study or its state changes, or another process, such as of newer code,
    takes the sensor over; and now and then. Costs two queries at most, however large the study is."""
    active = sorted(instance.get_run_ids(UNFINISHED))
    period = int(time.time() // REPLAN_SECONDS)
    return content_hash([request.id, token(study(), documents), this_process(), active, period])


def _due(work: Context, instance: dg.DagsterInstance, request: RunRequested) -> dict[Name, PlannedTask]:
    """Tasks that want a run. Those that exist are recorded where Dagster does not know them."""
    recorder, due = Recorder(instance), dict[Name, PlannedTask]()
    for planned in planned_tasks(work, request.until):
        if planned.artifact is None or recorder.wants_run(planned):
            due[planned.name] = planned
        elif not recorder.is_recorded(work, planned):
            recorder.record(work, planned)
    return due


def _run_of(planned: PlannedTask, request: RunRequested) -> dg.RunRequest:
    version = planned.spec.version if planned.spec else "unknown"  # a run key that was used is not used again
    return dg.RunRequest(
        run_key=f"{request.id}-{planned.label}-{version}",
        job_name=job_of(planned.stage),
        asset_selection=[key_of(planned.stage)],
        partition_key=planned.key,
        tags={REQUEST_TAG: request.id},
    )
