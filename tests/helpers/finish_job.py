"""The job `finish` for Dagster's execute_job, which loads it by the name of this function."""

import dagster as dg


def finish() -> dg.JobDefinition:
    from pipelines.definitions import defs

    return defs.resolve_job_def("finish")
