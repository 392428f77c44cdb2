"""What a mixture would gain, before its experts are trained: pilot."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from moe_core.engine.context import Context
from moe_core.errors import BadSetting
from moe_core.evaluation.pilot import HEAD, choice, notes, rows_of, title_of
from moe_core.stages.pilot.plan import cost_lines
from moe_core.stages.pilot.stages import PILOT
from moe_core.store.artifact import Artifact
from moe_core.text import shown
from pipelines.cli.common import changed_study, chosen_cluster, finish, run_shown, show_run_plan, study_at
from pipelines.cli.options import STUDY_OPTION, plans_and_runs
from pipelines.run.plan import planned_tasks
from pipelines.run.pools.choice import worker_count
from pipelines.terminal import echo


@click.command()
@STUDY_OPTION
@plans_and_runs
def pilot(
    study_file: Path,
    workers: int | None,
    engine: str | None,
    address: str | None,
    force: bool,
    settings: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """What a mixture would gain over training the trunk on, with an interval, for several numbers of experts K.

    Trains a few experts on samples of growing size, and says what each K would cost and which it would choose. Makes
    the trunk first where there is none. Ctrl-C stops it at the last checkpoint; run the same command to resume.

    Example: hardmoe pilot --study cats/study.toml --set pilot.experts=[8,16]
    """
    if as_json and not dry_run:
        raise BadSetting("--json goes with --dry-run; `hardmoe status --json` has what the pilot found")
    context = changed_study(study_file, settings, dry_run)
    cluster = chosen_cluster(context.study, engine, address)
    again = force and context.find("pilot") is not None  # of what it needs nothing is made again
    only = [("pilot", None)] if again else None
    if again or context.find("pilot") is None:
        for line in cost_lines(context):
            echo(line, err=as_json)
    if dry_run:
        planned = planned_tasks(context, "pilot", only)
        show_run_plan(context, planned, again, worker_count(workers, context.study, cluster), as_json)
        return
    summary = run_shown(context, until="pilot", only=only, workers=workers, cluster=cluster, force=again)
    if not (summary.failed or summary.interrupted or summary.blocked):
        show_pilot(study_at(study_file).need("pilot"))
    finish(summary)


@dataclass(frozen=True)
class LastPilot:
    """The pilot that was made last, and whether it is of the study as it is now."""

    artifact: Artifact
    is_current: bool


def last_pilot(context: Context) -> LastPilot | None:
    """None where none was made, or only by another version of the code, whose result has other fields."""
    if found := context.find("pilot"):
        return LastPilot(found, True)
    older = [one for one in context.store.versions("pilot", None) if one.code == PILOT.code]
    return LastPilot(max(older, key=lambda one: one.made_at), False) if older else None


def pilot_as_json(last: LastPilot | None) -> dict[str, Any] | None:
    """What `status --json` has of it."""
    if last is None:
        return None
    result = result_of(last.artifact)
    about = {"version": last.artifact.version, "is_current": last.is_current, "choice": choice(result)}
    return about | result


def result_of(artifact: Artifact) -> dict[str, Any]:
    """What a pilot found."""
    result: dict[str, Any] = json.loads(artifact.file("pilot.json").read_text("utf-8"))
    return result


def show_pilot(artifact: Artifact) -> None:
    """Prints what a pilot found."""
    result, console = result_of(artifact), Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    table = Table(title=f"Pilot: {title_of(result)}", box=None)
    for number, head in enumerate(HEAD):
        table.add_column(head, justify="left" if number == 3 else "right", overflow="fold")
    for row in rows_of(result):
        table.add_row(*row)
    console.print(table)
    for note in notes(result):
        echo(shown(note, None))
    echo(shown(f"Choice: {choice(result)}", None))
