"""The one entry point of Dagster: every asset and job of the study that HARDMOE_STUDY names."""

import dagster as dg

from assets import controls, experts, mixture, partition, posts, results, splits, trunk, vocabulary
from assets.gpu import GPUS, KEY
from assets.materialize import MINE
from assets.study import key_of, study
from pipelines.instance.home import warn_of_telemetry
from pipelines.jobs import JOBS, RUN_JOBS
from pipelines.repartition import drift, everything, repartition, weekly_repartition
from pipelines.requests import launch_requested
from pipelines.sensors import SENSORS

warn_of_telemetry()
MODULES = [posts, splits, vocabulary, trunk, partition, experts, controls, mixture, results]
ALL = dg.load_assets_from_modules(MODULES, include_specs=True, key_prefix=study().asset_prefix or None)
SHOWN = {*MINE, *(read for stage in MINE.values() for read in stage.reads)}  # with names for parts of stages
ASSETS = [one for one in ALL if isinstance(one, dg.AssetsDefinition | dg.AssetSpec) and one.key.path[-1] in SHOWN]

defs = dg.Definitions(
    # `key_prefix` reaches what an asset depends on, but not the key of an asset that cannot be executed
    assets=[a.replace_attributes(key=key_of(a.key.path[-1])) if isinstance(a, dg.AssetSpec) else a for a in ASSETS],
    jobs=[*JOBS, *RUN_JOBS, everything, repartition],
    resources={KEY: GPUS},
    schedules=[weekly_repartition],
    sensors=[*SENSORS, drift, launch_requested],
    # A step is minutes to days of work in one process: a process of its own inside the run would only be one more
    # that can be orphaned. Parallelism is one run an expert.
    executor=dg.in_process_executor,
)
