"""Which mixture is answered with: publish."""

from dataclasses import asdict
from pathlib import Path

import click
import dagster as dg

from assets.mixture import decided
from assets.record import report_checks
from assets.study import key_of
from moe_core.engine.context import Context
from moe_core.errors import BadSetting, HardmoeError
from moe_core.serving.names import version_of
from moe_core.serving.publication import PublicationLog, read_log
from moe_core.stages.mixture import comparison, promotion
from moe_core.store.artifact import Spec
from pipelines.cli.common import study_at
from pipelines.cli.options import JSON, STUDY_OPTION
from pipelines.instance.opening import opened_if_there
from pipelines.terminal import echo, echo_json


@click.command()
@STUDY_OPTION
@click.option(
    "--version", default=None, help="Of the mixture, its beginning, or its name.  [default: that of the study as it is]"
)
@click.option("--force", is_flag=True, help="Without comparing it with the published one.")
@click.option("--rollback", is_flag=True, help="Go back to the mixture that was published before.")
@click.option("--list", "list_it", is_flag=True, help="Show what was decided, and change nothing.")
@JSON
def publish(study_file: Path, version: str | None, force: bool, rollback: bool, list_it: bool, as_json: bool) -> None:
    """Says which mixture `predict` answers with. `hardmoe run` publishes a new one by itself unless it is worse.

    \b
    Example: hardmoe publish --study cats/study.toml --rollback
             hardmoe publish --study cats/study.toml --version 1f0c8e5a2b7d4c3e9f60 --force
    """
    if sum((rollback, list_it, version is not None or force)) > 1:
        raise BadSetting("--rollback, --list and --version (or --force) exclude one another: choose one")
    context = study_at(study_file, by="hardmoe publish")
    log = read_log(context.store.documents)
    refused = False
    if not list_it:
        before = len(log.history)
        log = _decide(context, version, force, rollback)
        refused = len(log.history) > before and log.history[-1].action == "refused"
        if len(log.history) > before:
            _show_dagster(context, log)
    if as_json:
        history = [asdict(decision) for decision in log.history]
        echo_json({"published": log.published, "previous": log.previous, "history": history})
    else:
        _show(log, list_it)
    if f"mixture {log.published}" in context.takedowns.saw:
        echo("Warning: the published mixture saw posts that were taken down since.", err=True)
    if refused:
        raise HardmoeError(f"not published: {log.history[-1].why}; --force publishes it all the same")


def _decide(context: Context, version: str | None, force: bool, rollback: bool) -> PublicationLog:
    if rollback:
        return comparison.roll_back(context)
    if version is None:
        mixture = context.need("mixture").version
    else:
        there = [artifact.version for artifact in context.store.versions("mixture", None)]
        mixture = version_of(context.store.documents, version, there, f"mixture in {context.store.uri}")
    if force:
        return comparison.force(context, mixture)
    baseline = read_log(context.store.documents).published
    if baseline == mixture:
        return read_log(context.store.documents)
    return promotion.decide(context, mixture, baseline, comparison.judge(context, mixture, baseline))


def _show(log: PublicationLog, all_of_it: bool) -> None:
    for decision in log.history if all_of_it else log.history[-1:]:
        echo(f"{decision.at}  {decision.action:11}  {decision.mixture}  by {decision.by}: {decision.why}")
    echo(f"published: {log.published or 'nothing'}" + (f"   (before: {log.previous})" if log.previous else ""))


def _show_dagster(context: Context, log: PublicationLog) -> None:
    """Records the decision in Dagster, where it has the study: else its UI would show what the last run decided."""
    with opened_if_there(context.root) as instance:
        if instance is None:
            return
        spec = context.planner.spec("mixture")
        # where another artifact is to be built to know it, nothing is newest
        mixture = spec.version if isinstance(spec, Spec) else log.history[-1].mixture
        metadata, check = decided(context.store.documents, mixture)
        instance.report_runless_asset_event(dg.AssetObservation(key_of("published"), metadata=metadata))
        report_checks(instance, "published", [check])
