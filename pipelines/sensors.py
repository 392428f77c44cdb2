"""Sensors: what starts by itself. All are stopped until someone starts them: a surprise of runs costs money."""

import dagster as dg

from assets.study import SHARDS, root, study

LOOK_SECONDS = 60


@dg.sensor(
    job_name="ingest",
    minimum_interval_seconds=LOOK_SECONDS,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Looks for new and changed files in the source, and ingests each in a run of its own.",
)
def new_shards(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """A shard that is in the store already, as it is now, is left alone: `hardmoe run` may have ingested it."""
    from moe_core.stages.context import Context

    work = Context(study(), root())
    known = set(context.instance.get_dynamic_partitions(str(SHARDS.name)))
    new = [shard.key for shard in work.shards if shard.key not in known]
    missing = [shard for shard in work.shards if work.find("posts", shard.key) is None]
    waiting = [f"left out until it can be read: {file.why}" for file in work.unready]
    for line in waiting:
        context.log.warning(line)
    return dg.SensorResult(
        # a run key that was used once is not used again: one run a version, also when it fails
        run_requests=[
            dg.RunRequest(f"{shard.key}-{work.version('posts', shard.key)}", partition_key=shard.key)
            for shard in missing
        ],
        dynamic_partitions_requests=[SHARDS.build_add_request(new)] if new else [],
        skip_reason=None if missing else "; ".join([f"all {len(work.shards)} shards are ingested", *waiting]),
    )


SENSORS = [new_shards]
