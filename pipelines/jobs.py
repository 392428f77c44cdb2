"""Jobs for backfills and schedules, one a set of partitions; and those that runs of the commands belong to.

The page of a job lists its runs. Dagster's timeline shows only runs that a code server started.
"""

import dagster as dg

from assets.study import STUDY, key_of, study
from moe_core.stages.graph import GRAPH

REPOSITORY = ".dagster/repository"  # tag of a run: what the page of a job looks for


def _of(*stages: str) -> dg.AssetSelection:
    return dg.AssetSelection.assets(*map(key_of, stages))


FINISH = ("shared_decoder", "mixture", "published", "evaluation", "report")
SHARDED = [name for name, stage in GRAPH.for_study(study()).items() if stage.keys == "shards"]
LAUNCH = "Runs of `hardmoe run` and `everything`, an asset partition each. Launch `everything` instead."
JOBS = [
    dg.define_asset_job(
        name,
        selection=selection,
        description=description,
        tags={STUDY: study().name},  # also of a run that fails before its step begins
    )
    for name, selection, description in (
        ("ingest", _of("posts"), "One shard of the source; backfill over shards."),
        ("experts", _of("expert"), "One expert; backfill over experts."),
        ("finish", _of(*FINISH), "From trained experts to the table."),
        # two, since the partitioned assets of a job have one set of partitions
        ("shard_assets", _of(*SHARDED), LAUNCH),
        ("study_assets", dg.AssetSelection.all() - _of(*SHARDED), LAUNCH),
    )
]


def job_of(stage: str) -> str:
    """The job whose run materializes a stage's asset."""
    return "ingest" if stage == "posts" else "shard_assets" if stage in SHARDED else "study_assets"
