"""Re-partition from Dagster: a job, a weekly schedule, and a sensor of drift. Both are stopped until someone starts
them: experts that are trained again cost money."""

import dagster as dg

from assets.runs import claim
from assets.study import STUDY, root, study
from pipelines.everything import make_stale

LOOK_SECONDS = 600


class Again(dg.Config):
    """What can be said when the job is launched."""

    then: str = study().repartition.then  # make what is stale up to this asset
    renew: bool = False  # a new trunk and vocabulary, too


@dg.op(description="Asks for a new fit of the gate and makes what is stale, each asset partition in a run of its own.")
def fit_again(context: dg.OpExecutionContext, config: Again) -> None:
    """A run of the op is one request: when it is tried again after a crash, the request still stands."""
    from moe_core.engine.context import Context
    from moe_core.stages.gate import current_partition
    from moe_core.stages.trunk import frozen

    claim(context.instance, context.run)
    try:
        work = Context(study(), root())
        if context.retry_number == 0:
            current_partition.ask_to_refit(work)
            if config.renew:
                frozen.ask_to_renew(work)
        summary = make_stale(context, config.then)
    except ValueError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    said = Context(study(), root()).need("partition").metadata
    context.add_output_metadata(
        {
            "posts moved": said["moved"],
            "new posts": said["new"],
            "trained again": ", ".join(said["trained_again"]) or "none",
            "made": ", ".join(summary.made),
        }
    )


@dg.job(
    description="Fits the gate again from its clusters; experts whose posts changed become stale.",
    tags={STUDY: study().name},
)
def repartition() -> None:
    fit_again()


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
    from moe_core.engine.context import Context

    work = Context(study(), root())
    now = work.current
    there = work.store.read(work.root / "partition" / now.version) if now else None
    said = there.metadata.get("drift") if there else None
    if now is None or said is None:
        return dg.SensorResult(skip_reason="no shard came since the gate was fitted")
    limits = work.study.repartition
    over = [
        f"{name} {said[name]:.3f}, more than {limit}"
        for name, limit in (
            ("far", limits.drift_far),
            ("ambiguous", limits.drift_ambiguous),
            ("imbalance", limits.drift_imbalance),
        )
        if said[name] > limit
    ]
    if not over:
        return dg.SensorResult(skip_reason=f"no drift: {said}")
    context.log.info("; ".join(over))
    return dg.SensorResult(
        run_requests=[dg.RunRequest(f"drift-{now.version}", tags={"hardmoe/drift": "; ".join(over)})]
    )
