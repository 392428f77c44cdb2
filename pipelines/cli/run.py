"""Commands that build: demo, init, run, backfill."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click

from moe_core.advice import propose
from moe_core.data.sources.files import Unready
from moe_core.data.sources.guessing import absolute, guess_format
from moe_core.data.sources.registry import FORMATS
from moe_core.data.sources.shards import find_shards
from moe_core.errors import BadSetting
from moe_core.recipes import RECIPES
from moe_core.recipes import quick as quicker
from moe_core.serving.publication import published_bundle
from moe_core.settings import Source, dump_study, study_of
from moe_core.stages.trunk.frozen import request_renewal
from moe_core.store.layout import Layout
from moe_core.store.owner import check_owner
from moe_core.text import format_duration, refuse_bytes
from pipelines.cli.common import (
    DRY_RUN,
    FORCE,
    JSON,
    SET,
    STUDY_OPTION,
    WORKERS,
    changed_study,
    finish,
    run_shown,
    show_keys,
    show_publication,
    show_results,
    show_run_plan,
    show_table,
    study_at,
    warn_unready_files,
    write_study,
)
from pipelines.instance.home import checked_home
from pipelines.run.plan import tasks_until
from pipelines.run.status import states_of
from pipelines.terminal import echo

if TYPE_CHECKING:
    from moe_core.advice import Seen
    from moe_core.engine.context import Context
    from moe_core.settings import Study


@click.command()
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=Path("studies/demo"),
    show_default=True,
    help="Folder of the study.",
)
@WORKERS
def demo(root: Path, workers: int | None) -> None:
    """The whole graph on synthetic data; prints the comparison table.

    Example: hardmoe demo --root /tmp/demo
    """
    from moe_core.recipes import demo as recipe

    study_file = Layout(root).study_file
    if not study_file.exists():
        write_study(study_file, recipe())
    context = study_at(study_file)
    finish(run_shown(context, workers=workers))
    context = study_at(study_file)
    show_table(context)
    echo()
    report = context.need("report").file("report.html")
    echo(f"Report: {report}   (hardmoe report --study {quote(str(study_file))} --open)")
    echo(f"Bundle: {published_bundle(context.root)}")
    echo(f"Dagster's UI on this study: hardmoe ui --study {quote(str(study_file))}   (or `make ui`)")


@click.command(short_help="Preview a source, write study.toml.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--source",
    required=True,
    help=f"{'; '.join(format.what for format in FORMATS.values())}.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(list(FORMATS)),
    help="Format of the source.  [default: by what is there]",
)
@click.option("--id-column", default="", help="Column of ids, or #row.  [default: by the usual names]")
@click.option("--image-column", default="", help="Column of images or file names.  [default: by the usual names]")
@click.option("--tags-column", default="", help="Column of tags.  [default: by the usual names]")
@click.option("--user-column", default="", help="Column of users.  [default: by the usual names]")
@click.option("--split-column", default="", help="Column of splits.  [default: by the usual names]")
@click.option("--caption-column", default="", help="Column of text whose #words are the tags.")
@click.option(
    "--images", default="", help="yfcc: folder of the images, or glob of tars of them; coco: folder of images."
)
@click.option("--table", default="", help="folder: the table, or a glob of them, where there are several.")
@click.option(
    "--recipe",
    default=None,
    help=f"Named settings as they are: {', '.join(RECIPES)}.  [default: small, with what suits the source]",
)
@click.option("--quick", is_flag=True, help="For a first look: no controls, fewer epochs.")
@click.option("--name", default=None, help="Name of the study.  [default: the folder's]")
@click.option("--force", is_flag=True, help="Replace a study.toml that is there.")
def init(
    folder: Path,
    source: str,
    kind: str | None,
    recipe: str | None,
    quick: bool,
    name: str | None,
    force: bool,
    images: str,
    table: str,
    **settings: str,
) -> None:
    """Reports what is in the source and writes FOLDER/study.toml.

    Proposes the number of experts, the loss and the share of validation posts from what it saw, with the reasons, and
    writes them, unless --recipe asks for named settings.

    Example: hardmoe init cats --source photos.parquet
    """
    import re

    from moe_core.data.sources.preview import preview

    by_name = recipe is not None
    recipe = recipe or "small"
    if recipe not in RECIPES:
        raise BadSetting(f"no recipe {recipe!r}: wanted one of {', '.join(RECIPES)}")
    refuse_bytes(folder.absolute(), "the study")
    checked_home(folder.absolute())
    for option, path in (("source", source), ("images", images), ("table", table)):
        refuse_bytes(path, f"--{option}")
    study_file = Layout(folder).study_file
    if study_file.exists() and not force:
        raise BadSetting(f"{study_file} exists: edit it, or replace it with --force")
    check_owner(study_file)
    kind = kind or guess_format(source)
    given = Source.model_validate(
        {
            "format": kind,
            "uri": "" if kind == "synthetic" else absolute(source),
            "images": absolute(images) if images else "",
            "table": table,
            **settings,
        }
    )
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.absolute().name).strip("-_") or "study"
    base = quicker(RECIPES[recipe]()) if quick else RECIPES[recipe]()
    if kind == "synthetic":
        given = base.source if base.source.format == "synthetic" else given
    unready: list[Unready] = []
    lines, seen = preview(given, find_shards(given, unready=unready), base.data.image_size)
    for line in lines:
        echo(line)
    warn_unready_files(unready)
    study = base.model_copy(update={"name": name or plain, "source": given})
    if kind != "synthetic":
        study = _as_proposed(study, seen, by_name)
    echo(f"Recipe {recipe}: {(RECIPES[recipe].__doc__ or '').strip().splitlines()[0]}")
    if quick:
        echo(
            f"--quick: no controls, {study.trunk.epochs:g}+{study.expert_training.epochs:g} epochs; whether the "
            "mixture is worth its cost is not measured"
        )
    echo(_training_time(study, seen))
    write_study(study_file, study_of(dump_study(study), study_file))
    echo(f"Wrote {study_file}. Next: hardmoe run --study {quote(str(study_file))}")
    show_keys(study_at(study_file))


def _as_proposed(study: "Study", seen: "Seen", by_name: bool) -> "Study":
    """With what suits the source; a recipe that was asked for by its name stays as it is. Says so, with reasons."""
    proposal = propose(seen, study)
    for why in proposal.why:
        echo(f"Kept as --recipe has it, though the source suggests {why}" if by_name else f"Set {why}")
    return study if by_name else proposal.apply(study)


def _training_time(study: "Study", seen: "Seen") -> str:
    """An estimate, by a trial of a second or so on this machine."""
    import torch

    from moe_core.training.trial import images_per_second

    device = "cuda" if torch.cuda.is_available() else "cpu"
    hashtags = max(2, seen.distinct_tags)
    speed = images_per_second(study.network, hashtags, study.data.image_size, study.trunk, device)
    trunk, experts = study.trunk.epochs, study.expert_training.epochs
    seconds = seen.train_of(study) / speed
    where = "on the GPU" if device == "cuda" else "on one core, less on several"
    line = f"Estimate for the training, from a trial: {format_duration((trunk + experts) * seconds)} {where}"
    if study.evaluation.controls:
        controls = 3 * experts + (trunk + experts if study.evaluation.dense_control else 0)
        line += f"; {format_duration(controls * seconds)} more for the controls (--quick leaves them out)"
    return line


@click.command(short_help="Build everything missing or stale.")
@STUDY_OPTION
@click.option("--until", default=None, help="Stop after this asset and what it needs.")
@click.option(
    "--renew-trunk", is_flag=True, help="Retrain trunk and vocabulary where shards were added since, as --force does."
)
@WORKERS
@FORCE
@SET
@DRY_RUN
@JSON
def run(
    study_file: Path,
    until: str | None,
    renew_trunk: bool,
    workers: int | None,
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
    if dry_run:
        show_run_plan(context, tasks_until(context, until), force, workers, as_json)
        return
    if renew:
        request_renewal(context)
    finish(run_shown(context, until=until, workers=workers, force=force))
    now, last = study_at(study_file), {task.stage for task in tasks_until(context, until)}
    if "evaluation" in last:
        show_table(now)
    elif "published" in last:
        show_publication(now, always=True)


@click.command(short_help="Train some experts, or all.")
@STUDY_OPTION
@click.option("--experts", default=None, help="Keys with commas, such as e000,e003.")
@click.option("--all", "every", is_flag=True, help="All experts.")
@click.option("--missing", is_flag=True, help="Experts that were never trained.")
@click.option("--stale", is_flag=True, help="Experts whose inputs or settings changed.")
@click.option("--failed", is_flag=True, help="Experts whose last run failed.")
@WORKERS
@FORCE
@SET
@DRY_RUN
@JSON
def backfill(
    study_file: Path,
    experts: str | None,
    every: bool,
    missing: bool,
    stale: bool,
    failed: bool,
    workers: int | None,
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
    from moe_core.stages.experts.decoder import mode_of

    _json_needs_dry_run(as_json, dry_run)
    context = changed_study(study_file, settings, dry_run)
    chosen = _chosen(context, experts, every, {"missing": missing, "stale": stale, "failed": failed})
    tasks: list[tuple[str, str | None]] = [("expert", key) for key in chosen]
    if dry_run:
        show_run_plan(context, [context.planner.task(*task) for task in tasks], force, workers, as_json)
        return
    if not chosen:
        echo("No expert is to be trained: nothing to do.")
        return
    if mode_of(context.study).joint and (force or context.find("joint_experts") is None):
        raise BadSetting(
            "decoder.mode is joint: experts of one generation are trained together, not one by one; run "
            f"`hardmoe run --study {quote(str(study_file))} --until expert`, with --force where they exist"
        )
    summary = run_shown(context, only=tasks, workers=workers, force=force)
    show_results(context, tasks, summary)
    finish(summary)


def _json_needs_dry_run(as_json: bool, dry_run: bool) -> None:
    if as_json and not dry_run:
        raise BadSetting("--json goes with --dry-run: it is the plan as a document")


def _chosen(context: "Context", experts: str | None, every: bool, states: dict[str, bool]) -> list[str]:
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
