"""Jobs for backfills and schedules: one a set of partitions."""

import dagster as dg

JOBS = [
    dg.define_asset_job("ingest", selection=["posts"], description="One shard of the source; backfill over shards."),
    dg.define_asset_job("experts", selection=["expert"], description="One expert; backfill over experts."),
    dg.define_asset_job(
        "finish",
        selection=["shared_decoder", "mixture", "published", "evaluation", "report"],
        description="From trained experts to the table.",
    ),
]
