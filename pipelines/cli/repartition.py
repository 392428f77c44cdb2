"""Fitting the gate again: repartition."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from assets.partition import CHURN, churn_rows
from moe_core.errors import BadSetting
from moe_core.stages.gate import current_partition, refit
from moe_core.stages.trunk import frozen
from moe_core.store import pointer
from moe_core.store.layout import NAMES
from pipelines.cli.common import chosen_cluster, finish, run_shown, study_at
from pipelines.cli.options import JSON, STUDY_OPTION, runs_on
from pipelines.run.task import Summary
from pipelines.terminal import echo, echo_json


@click.command()
@STUDY_OPTION
@click.option("--dry-run", is_flag=True, help="Show what would move and be trained again; make no changes.")
@click.option("--renew-trunk", "renew", is_flag=True, help="A new trunk and vocabulary from all shards, too.")
@click.option("--until", default="partition", show_default=True, help="Continue to this asset and what it needs.")
@runs_on
@JSON
def repartition(
    study_file: Path,
    dry_run: bool,
    renew: bool,
    until: str,
    workers: int | None,
    engine: str | None,
    address: str | None,
    as_json: bool,
) -> None:
    """Fits the gate again from the clusters there are; experts keep their keys, and those that changed become stale.

    Example: hardmoe repartition --study cats/study.toml --dry-run
    """
    if as_json and not dry_run:
        raise BadSetting("--json goes with --dry-run: it is what would be done as a document")
    if dry_run:
        if renew:
            raise BadSetting("--dry-run --renew-trunk: a trunk that is not trained cannot tell where posts will lie")
        show_churn(refit.preview(study_at(study_file, requests=("refit",))), as_json)
        return
    context = study_at(study_file)
    context.planner.stage(until)
    cluster = chosen_cluster(context.study, engine, address)
    before = context.planner.state.requests
    summary = Summary(interrupted=True)
    with suppress(KeyboardInterrupt):
        current_partition.request_refit(context)
        if renew and not frozen.request_renewal(context):
            echo("Trunk and vocabulary are those of all shards already.", err=True)
        summary = run_shown(study_at(study_file), until=until, workers=workers, cluster=cluster)
    if summary.interrupted and not {"trunk", "partition"} & {*summary.made, *summary.stopped}:
        for request, asset in (("refit", "partition"), ("renew", "trunk")):
            if request not in before:  # else the next run would do what nobody wants any more
                pointer.remove(context.store.documents, NAMES.request(asset))
    if not (summary.failed or summary.interrupted):
        partition = study_at(study_file).need("partition")
        show_churn(dict(partition.metadata) | json.loads(partition.file("churn.json").read_text("utf-8")))
    finish(summary)


def show_churn(churn: dict[str, Any], as_json: bool = False) -> None:
    """Posts moved, by expert, and which experts are to be trained again."""
    if as_json:
        names = ("moved", "new", "gone", "trained_again", "kept", "drift", "experts", "before", "now", "posts")
        echo_json({name: churn[name] for name in names})
        return
    echo(f"training posts: {churn['moved']:,} moved, {churn['new']:,} new, {churn['gone']:,} gone")
    for row in (CHURN, *churn_rows(churn)):
        echo("  ".join(f"{text:>8}" for text in row).rstrip())
