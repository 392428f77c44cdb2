"""Jobs that request runs, and what launches a re-partition: a weekly schedule and a sensor of drift. Both are stopped
until someone starts them: experts that are trained again cost money."""

import dagster as dg

from assets.runs import claim
from assets.study import STUDY, root, study
from moe_core.clustering import faiss_build
from moe_core.errors import HardmoeError
from moe_core.stages.gate import current_partition
from moe_core.stages.gate.current_partition import current_of
from moe_core.stages.trunk import frozen
from moe_core.workspace import open_study
from pipelines.requests import request_run

LOOK_SECONDS = 600


class Again(dg.Config):
    """Launch options."""

    then: str = study().repartition.then  # what is stale up to this asset is made
    renew: bool = False  # a new trunk and vocabulary, too


@dg.op(description="Requests a new fit of the gate, and the runs of what is stale then.")
def request_refit(context: dg.OpExecutionContext, config: Again) -> None:
    """A run of the op is one request: when it is tried again after a crash, the request still stands."""
    _request(context, config.then, refit=True, renew=config.renew)


@dg.job(
    description="Requests that the gate is fitted again; experts whose posts changed become stale.",
    tags={STUDY: study().name},
)
def repartition() -> None:
    request_refit()


class Until(dg.Config):
    """Launch options."""

    until: str = ""  # the last asset to make, with what it needs; "" makes everything


@dg.op(description="Requests the runs of what is missing or stale.")
def request_everything(context: dg.OpExecutionContext, config: Until) -> None:
    _request(context, config.until)


def _request(context: dg.OpExecutionContext, until: str, refit: bool = False, renew: bool = False) -> None:
    """Requests the runs up to an asset, or all; a user's mistake fails the op in one line."""
    claim(context.instance, context.run)
    try:
        faiss_build.check()  # once here, not in each run that is requested
        work = open_study(study(), root(), remember=True)
        if until:
            work.planner.stage(until)
        if refit and context.retry_number == 0:
            current_partition.request_refit(work)
        if renew and context.retry_number == 0:
            frozen.request_renewal(work)
    except HardmoeError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    request = request_run(work.store.documents, until or None)
    context.add_output_metadata({"request": request.id, "until": until or "everything"})


@dg.job(
    description="Requests everything that is missing or stale, as `hardmoe run`: each asset partition in its own run.",
    tags={STUDY: study().name},
)
def everything() -> None:
    request_everything()


weekly_repartition = dg.ScheduleDefinition(
    name="weekly_repartition",
    job=repartition,
    cron_schedule=study().repartition.cron,
    execution_timezone=study().repartition.timezone,
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="[repartition] cron and timezone of study.toml say when.",
)


@dg.sensor(
    job=repartition,
    minimum_interval_seconds=LOOK_SECONDS,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Asks for a new fit when new posts lie far from the centroids or between two, or experts are unequal.",
)
def drift(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """By what `partition` says of itself; one request a partition, so a fit that changes nothing is not repeated."""
    work = open_study(study(), root())
    now = current_of(work.planner.state)
    there = work.store.get("partition", None, now.version) if now else None
    drifted = there.metadata.get("drift") if there else None
    if now is None or drifted is None:
        return dg.SensorResult(skip_reason="no shard came since the gate was fitted")
    limits = work.study.repartition
    allowed = {"far": limits.drift_far, "ambiguous": limits.drift_ambiguous, "imbalance": limits.drift_imbalance}
    over = [f"{name} {drifted[name]:.3f}, more than {most}" for name, most in allowed.items() if drifted[name] > most]
    if not over:
        return dg.SensorResult(skip_reason=f"no drift: {drifted}")
    why = "; ".join(over)
    context.log.info(why)
    return dg.SensorResult(run_requests=[dg.RunRequest(f"drift-{now.version}", tags={"hardmoe/drift": why})])
