"""`hardmoe run` from Dagster: a job that makes what is missing or stale, each asset partition in a run of its own.

Dagster's own "Materialize all" takes the partition keys that are there when it is launched: neither the shards that a
source has by now, nor the experts that the partition turns out to have.
"""

import os
from typing import TYPE_CHECKING

import dagster as dg

from assets.runs import claim
from assets.study import STUDY, root, study, study_file

if TYPE_CHECKING:
    from pipelines.run.scheduler import Summary
    from pipelines.run.task import Task


class Until(dg.Config):
    """Launch options."""

    until: str = ""  # the last asset to make, with what it needs; "" makes everything


@dg.op(description="Makes what is missing or stale, each asset partition in a run of its own.")
def make_what_is_stale(context: dg.OpExecutionContext, config: Until) -> None:
    claim(context.instance, context.run)
    try:
        summary = make_stale(context, config.until or None)
    except ValueError as error:
        raise dg.Failure(" ".join(str(error).split()), allow_retries=False) from error
    context.add_output_metadata({"made": ", ".join(summary.made) or "none", "fresh": len(summary.fresh)})


@dg.job(
    description="Everything that is missing or stale, as `hardmoe run`: each asset partition is a run of its own.",
    tags={STUDY: study().name},
)
def everything() -> None:
    make_what_is_stale()


def make_stale(context: dg.OpExecutionContext, until: str | None) -> "Summary":
    """As `run_study`, planned again once when something comes meanwhile.

    Raises ValueError as that does, and Failure where an asset failed.
    """
    from moe_core.engine.context import Context
    from pipelines.run.scheduler import run_study

    os.environ["HARDMOE_STUDY"] = str(study_file())

    def tell(kind: str, task: "Task", why: str) -> None:
        context.log.info(f"{kind} {task.name} {why}".rstrip())

    summary = run_study(Context(study(), root()), until=until, on_event=tell)
    if summary.overtaken:
        context.log.info(f"meanwhile {summary.overtaken}: what is left is planned again")
        summary = summary.followed_by(run_study(Context(study(), root()), until=until, on_event=tell))
    if summary.failed:
        raise dg.Failure("; ".join(f"{name}: {why}" for name, why in summary.failed.items()), allow_retries=False)
    if summary.overtaken:
        raise dg.Failure(f"meanwhile {summary.overtaken}: launch the job again", allow_retries=False)
    return summary
