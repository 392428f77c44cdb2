"""Commands that keep a study in order: reap, gc, verify, forget."""

import sys
from pathlib import Path

import click

from moe_core.data.takedowns import lines_of
from moe_core.data.traces import Traces
from moe_core.engine.context import Context
from moe_core.errors import BadSetting
from moe_core.maintenance import takedown
from moe_core.maintenance.gc import collect
from moe_core.maintenance.verify import Damage
from moe_core.maintenance.verify import verify as read_all
from moe_core.text import shown
from pipelines.cli.common import show_takedown, study_at
from pipelines.cli.options import JSON, STUDY_OPTION
from pipelines.instance.home import prepare_home
from pipelines.instance.opening import opened, opened_if_there
from pipelines.instance.reap import reap as reap_runs
from pipelines.instance.search import find_places
from pipelines.run.pools.choice import worker_count
from pipelines.terminal import echo, echo_json

APPLY = click.option("--apply", "apply_it", is_flag=True, help="Remove it; without, only show what would be removed.")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Only show what would be removed, as without --apply.")
JSON_FILES = "a .json list or .jsonl strings hold ids with line ends"


@click.command()
@STUDY_OPTION
def reap(study_file: Path) -> None:
    """Ends runs whose processes are gone, and frees their pool slots.

    Of machines that share only a bucket: those that are silent for a minute, for which it waits.

    Example: hardmoe reap --study cats/study.toml
    """
    context = study_at(study_file)
    prepare_home(context.root, worker_count(None, context.study))
    with opened() as instance:
        ended = reap_runs(instance, root=context.root, study=context.study.name, place=context.store.place, wait=True)
    echo(f"{len(ended)} dead runs ended" + (": " + ", ".join(ended) if ended else ""))


@click.command()
@STUDY_OPTION
@click.option("--superseded", is_flag=True, help="Also posts, features and the like that the study no longer reads.")
@click.option("--keep", type=int, metavar="N", help="Also old versions, but for the N newest of each asset partition.")
@APPLY
@DRY_RUN
@JSON
def gc(study_file: Path, superseded: bool, keep: int | None, apply_it: bool, dry_run: bool, as_json: bool) -> None:
    """Removes what interrupted processes left, and rows and files of the tables that no artifact refers to.

    With --keep also old versions of artifacts. These stay: what the study names now, the published mixture and the one
    before with their embeddings, a mixture that a program has open, and whatever any of these was made from.

    \b
    Example: hardmoe gc --study cats/study.toml --apply
             hardmoe gc --study cats/study.toml --keep 2 --apply
    """
    freed = collect(study_at(study_file), superseded, keep, dry_run=_is_preview(apply_it, dry_run))
    if as_json:
        echo_json(freed.as_json() | {"applied": apply_it})
        return
    for name, size in zip(freed.removed, freed.sizes, strict=True):
        echo(f"{size / 2**20:10,.1f} MiB  {name}")
    rows = freed.bytes - sum(freed.sizes)
    if rows or freed.versions:
        echo(
            f"{rows / 2**20:10,.1f} MiB  of posts.lance and rejects.lance: {freed.versions} old versions, "
            f"{freed.files} files"
        )
    if freed.rewritten:
        echo(f"{len(freed.rewritten)} shards {'' if apply_it else 'would be '}written again in fewer files")
    for version in freed.open:
        echo(f"Kept: mixture {version}, which a program has open")
    would = "freed" if apply_it else "would be freed; --apply frees it"
    echo(f"{freed.bytes / 2**20:,.1f} MiB {would}")


@click.command()
@STUDY_OPTION
@JSON
def verify(study_file: Path, as_json: bool) -> None:
    """Reads all artifacts and all posts, and names what is not what was written: a damaged disk, an edited file.

    Example: hardmoe verify --study cats/study.toml
    """
    found = list(read_all(study_at(study_file)))
    damaged = [damage for damage in found if isinstance(damage, Damage)]
    artifacts = len(found) - sum(not damage.is_artifact for damage in damaged)
    if as_json:
        rows = [{"folder": damage.where, "why": damage.why} for damage in damaged]
        echo_json({"artifacts": artifacts, "damaged": rows})
    else:
        echo(f"{artifacts} artifacts read, {len(damaged)} damaged")
        for damage in damaged:
            echo(f"Error: {damage.why}", err=True)
    if damaged:
        sys.exit(1)


@click.command()
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
    preview = _is_preview(apply_it, dry_run)
    context = study_at(study_file)
    if ids is None and users is None and not context.takedowns.pending:
        raise BadSetting("nothing to take down: name posts with --ids FILE or users with --users FILE")
    done = takedown.forget(context, lines_of(ids) if ids else [], lines_of(users) if users else [], preview)
    done.left += [] if preview else _elsewhere(context, done.texts)
    if as_json:
        echo_json(done.as_json() | {"applied": apply_it})
    else:
        show_takedown(done, preview)
    if done.left:
        echo(
            f"Error: {len(done.left)} places still name what was taken down: {shown('; '.join(done.left), 4000)}. "
            "Delete or edit the files; of Dagster: `dagster run delete RUN`, or delete its folder while nothing runs "
            "(`hardmoe run` records again what exists). Then run the same command again: it looks once more",
            err=True,
        )
    if preview and not dry_run:
        echo("Error: nothing was removed yet; --apply removes it", err=True)
    if done.left or (preview and not dry_run):
        sys.exit(1)


def _is_preview(apply_it: bool, dry_run: bool) -> bool:
    if apply_it and dry_run:
        raise BadSetting("--apply and --dry-run exclude each other: choose one")
    return not apply_it


def _elsewhere(context: Context, texts: set[str]) -> list[str]:
    """Where Dagster's storage still names what was taken down: in a database on a server, or in folders that
    dagster.yaml names; nothing without texts or an instance."""
    traces = Traces(texts)
    if not traces:
        return []
    with opened_if_there(context.root) as instance:
        return find_places(instance, traces, context.store.layout.used_dagster_home) if instance else []
