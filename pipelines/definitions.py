"""The one entry point of Dagster: every asset and job of the study that HARDMOE_STUDY names."""

import dagster as dg

from assets import controls, experts, mixture, partition, posts, results, splits, trunk, vocabulary
from pipelines.jobs import JOBS
from pipelines.sensors import SENSORS

defs = dg.Definitions(
    assets=dg.load_assets_from_modules(
        [posts, splits, vocabulary, trunk, partition, experts, controls, mixture, results], include_specs=True
    ),
    jobs=JOBS,
    sensors=SENSORS,
    # A step is minutes to days of work in one process: a process of its own inside the run would only be one more
    # that can be orphaned. Parallelism is one run an expert.
    executor=dg.in_process_executor,
)
