"""Commands that build: demo, run, backfill."""

from pathlib import Path
from shlex import quote

import click

from moe_core import recipes
from moe_core.engine.context import Context
from moe_core.errors import BadSetting
from moe_core.serving.publication import bundle_at
from moe_core.stages.experts.modes import mode_of
from moe_core.stages.trunk.frozen import request_renewal
from moe_core.store.artifact import Artifact
from moe_core.store.layout import Layout
from pipelines.cli.common import (
    changed_study,
    chosen_cluster,
    finish,
    run_shown,
    show_publication,
    show_results,
    show_run_plan,
    show_table,
    study_at,
    write_study,
)
from pipelines.cli.options import STUDY_OPTION, plans_and_runs, runs_on
from pipelines.run.plan import planned_tasks
from pipelines.run.pools.choice import worker_count
from pipelines.run.status import states_of
from pipelines.terminal import echo


@click.command()
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=Path("studies/demo"),
    show_default=True,
    help="Folder of the study.",
)
@runs_on
def demo(root: Path, workers: int | None, engine: str | None, address: str | None) -> None:
    """The whole graph on synthetic data; prints the comparison table.

    Example: hardmoe demo --root /tmp/demo
    """
    study_file = Layout(root).study_file
    if not study_file.exists():
        write_study(study_file, recipes.demo())
    context = study_at(study_file)
    finish(run_shown(context, workers=workers, cluster=chosen_cluster(context.study, engine, address)))
    context = study_at(study_file)
    show_table(context)
    echo()
    echo(f"Report: {context.need('report').uri}/report.html   (hardmoe report --study {quote(str(study_file))} --open)")
    bundle = bundle_at(study_file)
    echo(f"Bundle: {bundle.uri if isinstance(bundle, Artifact) else bundle}")
    echo(f"Dagster's UI on this study: hardmoe ui --study {quote(str(study_file))}   (or `make ui`)")


@click.command()
@STUDY_OPTION
@click.option("--until", default=None, help="Stop after this asset and what it needs.")
@click.option(
    "--renew-trunk", is_flag=True, help="Retrain trunk and vocabulary where shards were added since, as --force does."
)
@plans_and_runs
def run(
    study_file: Path,
    until: str | None,
    renew_trunk: bool,
    workers: int | None,
    engine: str | None,
    address: str | None,
    force: bool,
    settings: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Everything missing or stale, in order, each asset partition as its own Dagster run.

    Ctrl-C stops it at the last checkpoints; run the same command to resume. --json goes with --dry-run.

    Example: hardmoe run --study cats/study.toml --workers 2
    """
    _json_needs_dry_run(as_json, dry_run)
    renew = renew_trunk or (force and until not in ("posts", "splits"))
    context = changed_study(study_file, settings, dry_run, requests=("renew",) if renew and dry_run else ())
    cluster = chosen_cluster(context.study, engine, address)
    if dry_run:
        show_run_plan(
            context, planned_tasks(context, until), force, worker_count(workers, context.study, cluster), as_json
        )
        return
    if renew:
        request_renewal(context)
    finish(run_shown(context, until=until, workers=workers, cluster=cluster, force=force))
    now, last = study_at(study_file), {task.stage for task in planned_tasks(context, until)}
    if "evaluation" in last:
        show_table(now)
    elif "published" in last:
        show_publication(now, always=True)


@click.command()
@STUDY_OPTION
@click.option("--experts", default=None, help="Keys with commas, such as e000,e003.")
@click.option("--all", "every", is_flag=True, help="All experts.")
@click.option("--missing", is_flag=True, help="Experts that were never trained.")
@click.option("--stale", is_flag=True, help="Experts whose inputs or settings changed.")
@click.option("--failed", is_flag=True, help="Experts whose last run failed.")
@plans_and_runs
def backfill(
    study_file: Path,
    experts: str | None,
    every: bool,
    missing: bool,
    stale: bool,
    failed: bool,
    workers: int | None,
    engine: str | None,
    address: str | None,
    force: bool,
    settings: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Trains some experts only, reports how each ended, and fails when one did.

    Ctrl-C stops it at the last checkpoints; run the same command to resume. Two at once train no expert twice.
    --json goes with --dry-run.

    Example: hardmoe backfill --study cats/study.toml --experts e000,e003
    """
    _json_needs_dry_run(as_json, dry_run)
    context = changed_study(study_file, settings, dry_run)
    chosen = _chosen(context, experts, every, {"missing": missing, "stale": stale, "failed": failed})
    tasks: list[tuple[str, str | None]] = [("expert", key) for key in chosen]
    cluster = chosen_cluster(context.study, engine, address)
    if dry_run:
        show_run_plan(
            context, planned_tasks(context, only=tasks), force, worker_count(workers, context.study, cluster), as_json
        )
        return
    if not chosen:
        echo("No expert is to be trained: nothing to do.")
        return
    if mode_of(context.study).joint and (force or context.find("joint_experts") is None):
        raise BadSetting(
            "decoder.mode is joint: experts of one generation are trained together, not one by one; run "
            f"`hardmoe run --study {quote(str(study_file))} --until expert`, with --force where they exist"
        )
    summary = run_shown(context, only=tasks, workers=workers, cluster=cluster, force=force)
    show_results(context, tasks, summary)
    finish(summary)


def _json_needs_dry_run(as_json: bool, dry_run: bool) -> None:
    if as_json and not dry_run:
        raise BadSetting("--json goes with --dry-run: it is the plan as a document")


def _chosen(context: Context, experts: str | None, every: bool, states: dict[str, bool]) -> list[str]:
    if sum((experts is not None, every, *states.values())) != 1:
        raise BadSetting("choose exactly one of --experts, --all, --missing, --stale, --failed")
    if every:
        return context.experts
    if experts is not None:
        keys = [key.strip() for key in experts.split(",") if key.strip()]
        unknown = [key for key in keys if key not in context.experts]
        if unknown or not keys:
            raise BadSetting(
                f"no expert {', '.join(unknown) or repr(experts)}: wanted some of {', '.join(context.experts)}"
            )
        return keys
    wanted = next(name for name, chosen in states.items() if chosen)
    return [s.key for s in states_of(context, only="expert") if s.state == wanted and s.key is not None]
