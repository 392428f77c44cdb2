"""Jobs for backfills and schedules: one a set of partitions."""

import dagster as dg

from assets.study import STUDY, key_of, study

STAGES_OF = {
    "ingest": (["posts"], "One shard of the source; backfill over shards."),
    "experts": (["expert"], "One expert; backfill over experts."),
    "finish": (
        ["shared_decoder", "mixture", "published", "evaluation", "report"],
        "From trained experts to the table.",
    ),
}
JOBS = [
    dg.define_asset_job(
        name,
        selection=dg.AssetSelection.assets(*map(key_of, stages)),
        description=description,
        tags={STUDY: study().name},  # also of a run that fails before its step begins
    )
    for name, (stages, description) in STAGES_OF.items()
]
