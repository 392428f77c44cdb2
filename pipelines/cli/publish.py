"""Which mixture is answered with: publish."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moe_core.errors import BadSetting, HardmoeError
from pipelines.cli.common import JSON, STUDY_OPTION, study_at
from pipelines.terminal import echo, echo_json

if TYPE_CHECKING:
    from moe_core.engine.context import Context
    from moe_core.serving.publication import Book


@click.command(short_help="Publish a mixture, or go back.")
@STUDY_OPTION
@click.option(
    "--version", default=None, help="Of the mixture, or its beginning.  [default: that of the study as it is]"
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
    from moe_core.serving.publication import load

    if sum((rollback, list_it, version is not None or force)) > 1:
        raise BadSetting("--rollback, --list and --version (or --force) exclude one another: choose one")
    context = study_at(study_file, by="hardmoe publish")
    book = load(context.root)
    refused = False
    if not list_it:
        before = len(book.history)
        book = _decide(context, version, force, rollback)
        refused = len(book.history) > before and book.history[-1].action == "refused"
        if len(book.history) > before:
            _show_dagster(context, book)
    if as_json:
        history = [asdict(decision) for decision in book.history]
        echo_json({"published": book.published, "previous": book.previous, "history": history})
    else:
        _show(book, list_it)
    if f"mixture {book.published}" in context.takedowns.saw:
        echo("Warning: the published mixture saw posts that were taken down since.", err=True)
    if refused:
        raise HardmoeError(f"not published: {book.history[-1].why}; --force publishes it all the same")


def _decide(context: "Context", version: str | None, force: bool, rollback: bool) -> "Book":
    from moe_core.serving.publication import load
    from moe_core.stages.mixture import promote
    from moe_core.store.artifact import full_version

    if rollback:
        return promote.roll_back(context)
    if version is None:
        mixture = context.need("mixture").version
    else:
        there = (artifact.version for artifact in context.store.versions("mixture", None))
        mixture = full_version(version, there, f"mixture in {context.root}")
    if force:
        return promote.force(context, mixture)
    against = load(context.root).published
    if against == mixture:
        return load(context.root)
    return promote.decide(context, mixture, against, promote.judge(context, mixture, against))


def _show(book: "Book", all_of_it: bool) -> None:
    for decision in book.history if all_of_it else book.history[-1:]:
        echo(f"{decision.at}  {decision.action:11}  {decision.mixture}  by {decision.by}: {decision.why}")
    echo(f"published: {book.published or 'nothing'}" + (f"   (before: {book.previous})" if book.previous else ""))


def _show_dagster(context: "Context", book: "Book") -> None:
    """Dagster's UI is told, where it has the study: otherwise it would show what the last run decided."""
    import os

    home = os.environ.get("DAGSTER_HOME") or str(context.root / "dagster")
    if not os.path.exists(os.path.join(home, "dagster.yaml")):
        return
    os.environ["DAGSTER_HOME"] = home
    import dagster as dg

    from assets.mixture import NEWEST, decided
    from assets.study import key_of
    from moe_core.store.artifact import Spec
    from pipelines.instance.opening import opened

    spec = context.planner.spec("mixture")
    # where another artifact is to be built to know it, nothing is newest
    mixture = spec.version if isinstance(spec, Spec) else book.history[-1].mixture
    said = decided(context.root, mixture)
    newest = said.pop("newest is published")
    with opened() as instance:
        instance.report_runless_asset_event(dg.AssetObservation(key_of("published"), metadata=said))
        instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=key_of("published"),
                check_name=NEWEST.name,
                passed=newest,
                metadata={"published": dg.MetadataValue.text(book.published)},
                severity=dg.AssetCheckSeverity.WARN,
                description=str(said["why"]),
            )
        )
