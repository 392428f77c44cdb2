"""Keeping a study: reap, tidy, gc, verify, forget."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moe_core.errors import BadSetting
from moe_core.text import shown
from pipelines.cli.common import JSON, STUDY_OPTION, show_takedown, study_at, take_posts_down
from pipelines.terminal import echo, echo_json

if TYPE_CHECKING:
    from moe_core.engine.context import Context

APPLY = click.option("--apply", "apply_it", is_flag=True, help="Do it; without it, only show what would be removed.")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Only show what would be removed, as without --apply.")
JSON_FILES = "a .json list or .jsonl strings hold ids with line ends"


@click.command(short_help="End runs whose process died.")
@STUDY_OPTION
def reap(study_file: Path) -> None:
    """Ends runs whose processes are gone, and frees their pool slots.

    Example: hardmoe reap --study cats/study.toml
    """
    from pipelines.instance.home import prepare_home
    from pipelines.instance.opening import opened
    from pipelines.instance.reap import reap as reap_runs
    from pipelines.run.scheduler import default_workers

    context = study_at(study_file)
    prepare_home(context.root, default_workers(context.study.partition.experts))
    with opened() as instance:
        ended = reap_runs(instance)
    echo(f"{len(ended)} dead runs ended" + (": " + ", ".join(ended) if ended else ""))


@click.command(short_help="Free disk that nothing needs.")
@STUDY_OPTION
@click.option("--superseded", is_flag=True, help="Also posts, features and the like that the study no longer reads.")
@APPLY
@DRY_RUN
@JSON
def tidy(study_file: Path, superseded: bool, apply_it: bool, dry_run: bool, as_json: bool) -> None:
    """Frees what nothing points at: old versions and files of the Lance data sets, leftovers of dead processes.

    Example: hardmoe tidy --study cats/study.toml --apply
    """
    from moe_core.maintenance.gc import tidy as clean_up

    done = clean_up(study_at(study_file), _only_shows(apply_it, dry_run), superseded)
    if as_json:
        echo_json(done.as_json() | {"applied": apply_it})
        return
    would = "freed" if apply_it else "would free"
    echo(
        f"{would} {done.bytes / 2**20:,.1f} MiB: {done.versions} old versions, {done.files} files, "
        f"{len(done.removed)} leftovers; {len(done.rewritten)} shards {'' if apply_it else 'would be '}written again"
    )
    for name in done.removed:
        echo(f"  {name}")
    if not apply_it:
        echo("Nothing was freed; --apply frees it")


@click.command(short_help="Remove old versions.")
@STUDY_OPTION
@click.option("--keep", default=1, show_default=True, help="Newest versions of each asset partition that stay anyway.")
@APPLY
@DRY_RUN
@JSON
def gc(study_file: Path, keep: int, apply_it: bool, dry_run: bool, as_json: bool) -> None:
    """Removes old versions of artifacts. Stays: what the study names now, the published mixture and the one before
    with their embeddings, a mixture that a program has open, and whatever any of these was made from.

    Example: hardmoe gc --study cats/study.toml --keep 2 --apply
    """
    from moe_core.maintenance.gc import collect

    done = collect(study_at(study_file), keep, dry_run=_only_shows(apply_it, dry_run))
    if as_json:
        echo_json(done.as_json() | {"applied": apply_it})
        return
    for name, size in zip(done.removed, done.sizes, strict=True):
        echo(f"{size / 2**20:10,.1f} MiB  {name}")
    rows = done.bytes - sum(done.sizes)
    if rows:
        echo(f"{rows / 2**20:10,.1f} MiB  of {done.files} files of posts.lance and rejects.lance")
    for version in done.open:
        echo(f"Kept: mixture {version}, which a program has open")
    would = "freed" if apply_it else "would be freed; --apply frees it"
    echo(f"{done.bytes / 2**20:,.1f} MiB {would}")


@click.command(short_help="Check every byte of the store.")
@STUDY_OPTION
@JSON
def verify(study_file: Path, as_json: bool) -> None:
    """Reads all artifacts and all posts, and names what is not what was written: a damaged disk, an edited file.

    Example: hardmoe verify --study cats/study.toml
    """
    from moe_core.maintenance.verify import Damage
    from moe_core.maintenance.verify import verify as look_at_all

    found = list(look_at_all(study_at(study_file)))
    damaged = [one for one in found if isinstance(one, Damage)]
    artifacts = len(found) - sum(one.folder.is_file() for one in damaged)
    if as_json:
        rows = [{"folder": str(one.folder), "why": one.why} for one in damaged]
        echo_json({"artifacts": artifacts, "damaged": rows})
    else:
        echo(f"{artifacts} artifacts read, {len(damaged)} damaged")
        for one in damaged:
            echo(f"Error: {one.why}", err=True)
    if damaged:
        sys.exit(1)


@click.command(short_help="Take posts down for good.")
@STUDY_OPTION
@click.option("--ids", type=click.Path(path_type=Path), help=f"File with the id of a post on each line; {JSON_FILES}.")
@click.option("--users", type=click.Path(path_type=Path), help="File with a user on each line: all their posts.")
@APPLY
@DRY_RUN
@JSON
def forget(
    study_file: Path, ids: Path | None, users: Path | None, apply_it: bool, dry_run: bool, as_json: bool
) -> None:
    """Takes posts down: out of every store and its old versions, for good, and names the networks that saw them.

    Without a file it finishes a takedown that was interrupted. The source's own files are not touched. Without --apply
    nothing is removed; exit code 1 says so, unless --dry-run asked for it.

    Example: hardmoe forget --study cats/study.toml --ids ids.txt --apply
    """
    from moe_core.data.takedowns import lines_of

    only_shows = _only_shows(apply_it, dry_run)
    context = study_at(study_file)
    if ids is None and users is None and not context.takedowns.pending:
        raise BadSetting("nothing to take down: name posts with --ids FILE or users with --users FILE")
    done = take_posts_down(context, lines_of(ids) if ids else [], lines_of(users) if users else [], only_shows)
    done.left += [] if only_shows else _elsewhere(context, done.texts)
    if as_json:
        echo_json(done.as_json() | {"applied": apply_it})
    else:
        show_takedown(done, only_shows)
    if done.left:
        echo(
            f"Error: {len(done.left)} places still name what was taken down: {shown('; '.join(done.left), 4000)}. "
            "Delete or edit the files; of Dagster: `dagster run delete RUN`, or delete its folder while nothing runs "
            "(`hardmoe run` records again what exists). Then run the same command again: it looks once more",
            err=True,
        )
    if only_shows and not dry_run:
        echo("Error: nothing was removed yet; --apply removes it", err=True)
    if done.left or (only_shows and not dry_run):
        sys.exit(1)


def _only_shows(apply_it: bool, dry_run: bool) -> bool:
    if apply_it and dry_run:
        raise BadSetting("--apply and --dry-run exclude each other: choose one")
    return not apply_it


def _elsewhere(context: "Context", texts: set[str]) -> list[str]:
    """Where Dagster's storage quotes what was forgotten: in a database on a server, or in folders that dagster.yaml
    names; nothing without texts or an instance."""
    from moe_core.data.traces import Traces
    from pipelines.instance.home import prepare_home
    from pipelines.instance.opening import opened
    from pipelines.instance.search import find_places

    home = Path(os.environ.get("DAGSTER_HOME") or context.root / "dagster")
    traces = Traces(texts)
    if not traces or not (home / "dagster.yaml").exists():
        return []
    prepare_home(context.root, 1)
    with opened() as instance:
        return find_places(instance, traces, home)
