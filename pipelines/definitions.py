"""The one entry point of Dagster: every asset and job of the study that HARDMOE_STUDY names."""

import dagster as dg

from assets.gpu import GPUS, KEY
from assets.materialize import NODES, definition
from assets.partition import expert_shards
from assets.study import study
from moe_core.stages.graph import GRAPH
from pipelines.instance.home import warn_of_telemetry
from pipelines.jobs import JOBS
from pipelines.repartition import drift, everything, repartition, weekly_repartition
from pipelines.requests import launch_requested
from pipelines.run.pools.ray_gang import stage_nodes
from pipelines.sensors import alert, new_shards

warn_of_telemetry()
MINE = GRAPH.for_study(study())  # stages that the study has
READ = {read for stage in MINE.values() for read in stage.reads}  # by these names, some for a part of a stage

defs = dg.Definitions(
    assets=[*(definition(name) for name in MINE), *(s for s in expert_shards() if s.key.path[-1] in READ)],
    jobs=[*JOBS, everything, repartition],
    resources={KEY: GPUS, NODES: stage_nodes},
    schedules=[weekly_repartition],
    sensors=[new_shards, alert, drift, launch_requested],
    # A step is minutes to days of work in one process: a process of its own inside the run would only be one more
    # that can be orphaned. Parallelism is one run an expert.
    executor=dg.in_process_executor,
)
