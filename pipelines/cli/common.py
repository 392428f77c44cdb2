"""What the commands share: opening a study, saying what was done."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from assets.study import project_keys
from moe_core.clustering import faiss_build
from moe_core.data.sources.scan import Unready
from moe_core.engine.context import Context
from moe_core.engine.planner import Blocked, Name, PlannedTask, missing
from moe_core.errors import BadSetting, BadSource, LockHeld
from moe_core.maintenance import takedown
from moe_core.maintenance.takedown import Takedown
from moe_core.maintenance.verify import damaged_pointers
from moe_core.serving.publication import read_log
from moe_core.settings import Cluster, Study, ray_address
from moe_core.store import places
from moe_core.store.files import write_text
from moe_core.store.layout import Layout
from moe_core.store.locks import exclusive
from moe_core.store.owner import check_owner, claim
from moe_core.study_file import dump_study, load_study, override
from moe_core.text import refuse_bytes, shown
from moe_core.workspace import open_study, reopened
from pipelines.cli.progress import Display, result_line
from pipelines.cli.table import print_table
from pipelines.instance.home import prepare_home
from pipelines.instance.opening import opened
from pipelines.run.estimate import run_plan
from pipelines.run.plan import planned_tasks
from pipelines.run.pools.choice import worker_count
from pipelines.run.reasons import older_than
from pipelines.run.scheduler import run_study
from pipelines.run.status import states
from pipelines.run.task import Summary, Task
from pipelines.terminal import echo, echo_json


def study_at(study_file: Path, by: str = "hardmoe", requests: Iterable[str] = ()) -> Context:
    """The study, and HARDMOE_STUDY naming it for all that Dagster loads from here on."""
    study = load_study(study_file)
    check_owner(study_file)
    os.environ["HARDMOE_STUDY"] = str(study_file.absolute())
    context = open_study(study, study_file.absolute().parent, by=by, requests=requests)
    if context.store.place:
        places.is_claimed(context.store.place, study.name)
    return context


def changed_study(study_file: Path, settings: tuple[str, ...], dry_run: bool, requests: Iterable[str] = ()) -> Context:
    """The study with some settings changed; study.toml says so too, unless this is a dry run."""
    if not settings:
        return study_at(study_file, requests=requests)
    check_owner(study_file)
    if dry_run:
        changed = override(study_file, settings)
    else:
        override(study_file, settings)  # what is refused leaves no lock
        with exclusive(Layout.study_lock(study_file)):  # two at once lose no setting
            changed = override(study_file, settings)
            changed.write()
    for change in changed.changes:
        echo(f"{study_file}{' would be changed' if dry_run else ''}: {change}", err=True)
    if not dry_run:
        return study_at(study_file, requests=requests)
    return open_study(changed.study, study_file.absolute().parent, requests=requests)


def chosen_cluster(study: Study, engine: str | None, address: str | None) -> Cluster:
    """Where runs take place: as the study says, but for what was chosen on the command line. Raises BadSetting."""
    cluster = study.cluster.model_copy(update={"engine": engine or study.cluster.engine})
    if address is None:
        return cluster
    if cluster.engine != "ray":
        raise BadSetting("--address names a Ray cluster: it goes with --engine ray")
    try:
        return cluster.model_copy(update={"address": ray_address(address)})
    except ValueError as error:
        raise BadSetting(f"--address {address}: {error}") from None


def show_run_plan(context: Context, planned: Sequence[PlannedTask], force: bool, workers: int, as_json: bool) -> None:
    """What a run of these tasks would do, with so many workers."""
    warn_damaged(context)
    plan = run_plan(context, planned, force, workers)
    if as_json:
        echo_json(plan.as_json())
    else:
        for line in plan.as_lines():
            echo(line)


def show_keys(context: Context) -> None:
    """Shows Dagster the study's partition keys, where its source can be read; its instance is created first."""
    claim_all(context)
    prepare_home(context.root, worker_count(None, context.study))
    if isinstance(context.planner.state.source, Exception):
        return
    with opened() as instance:
        project_keys(instance, context.study.name, [s.key for s in context.shards], context.experts)


def write_study(path: Path, study: Study) -> None:
    refuse_bytes(path.absolute(), "the study")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, dump_study(study))


def claim_all(context: Context) -> None:
    """Notes whose the folder is, and the bucket, before anything is written there. Raises BadSetting."""
    claim(Path(os.environ["HARDMOE_STUDY"]))
    if context.store.place:
        places.claim(context.store.place, context.study.name)


def run_shown(context: Context, **options: Any) -> Summary:
    """Runs what is missing or stale and shows it while it runs; `options` are those of `run_study`."""
    if problem := faiss_build.check():
        echo(f"Warning: {problem}", err=True)
    claim_all(context)
    warn_damaged(context)
    warn_unready(context.planner.state.unready)
    _ = context.shards  # a source that is not there is an error before anything starts
    cluster = options.get("cluster") or context.study.cluster
    if options.get("workers"):
        os.environ.setdefault("HARDMOE_WORKERS", str(options["workers"]))  # of a stage that starts its own
    try:
        now = finish_takedown(context)
        planned = planned_tasks(now, options.get("until"), options.get("only"))
        with Display(now, planned, worker_count(options.get("workers"), now.study, cluster)) as display:
            summary = run_study(now, on_event=display.event, on_poll=display.poll, **options)
    except KeyboardInterrupt:  # before or after runs are under way
        return Summary(interrupted=True)
    if not summary.interrupted:
        finish_takedown(context)  # one that came meanwhile had to wait
        summary.failed |= {f"source {file.path}": file.why for file in context.planner.state.unready}
    return summary


def warn_damaged(context: Context) -> None:
    """Warns of damaged files that name what is current: they explain what follows."""
    for damage in damaged_pointers(context):
        echo(f"Damaged: {damage.why}", err=True)


def warn_unready(unready: Iterable[Unready]) -> None:
    """Names new files of the source that cannot be read as they are now."""
    for file in unready:
        echo(f"Left out until it can be read: {shown(file.why, 4000)}", err=True)


def with_source(context: Context, wanted: Name | None = None) -> Context:
    """The study. Where its source cannot be read, prints why; the asset that is wanted is then as it was last built,
    with what it was made from.

    Raises BadSource where it was never built.
    """
    source = context.planner.state.source
    if not isinstance(source, Exception):
        return context
    why = shown(" ".join(str(source).split()), 4000)
    if wanted:
        if not context.store.versions(*wanted):
            raise BadSource(f"the source cannot be read, and the store has no {wanted[0]} yet: {why}")
        context = _as_last_built(context, *wanted)
    echo(f"The source cannot be read now, so this is as it was last built: {why}", err=True)
    return context


def _as_last_built(context: Context, asset: str, key: str | None = None) -> Context:
    """The study with the newest version of an asset in the store, and what that was made from, in place of its own."""
    newest = max(context.store.versions(asset, key), key=lambda artifact: artifact.made_at)
    made_from = (context.store.get(name, None, version) for name, version in newest.inputs.items())
    return replace(context, planner=context.planner.pinned([newest, *filter(None, made_from)]))


def last_built(context: Context, asset: str) -> tuple[Context, list[str] | None]:
    """(the study with the newest version of an asset, what changed since: None where it is as the study wants it now).

    What changed is printed. Raises MissingInput where it was never built.
    """
    if isinstance(context.planner.state.source, Exception):
        return with_source(context, (asset, None)), ["the source cannot be read"]
    wanted = context.planner.artifact(asset)
    if not isinstance(wanted, Blocked):
        return context, None
    if not context.store.versions(asset, None):
        raise missing(asset, None, wanted)
    pinned = _as_last_built(context, asset)
    newest = pinned.need(asset)
    (state,) = states(context, [context.planner.task(asset)], {})
    since = older_than(context, newest) or [state.why or "what it is made from"]
    at = datetime.fromtimestamp(newest.made_at, UTC).isoformat(" ", "minutes").removesuffix("+00:00")
    name = "table" if asset == "evaluation" else asset
    echo(
        f"This {name} of {at} UTC is older than the study; since then: {shown('; '.join(since), 4000)}. `hardmoe run` "
        "rebuilds it.",
        err=True,
    )
    return pinned, since


def finish_takedown(context: Context) -> Context:
    """Ends a takedown that was begun, unless others are at work; the study as it is then."""
    now = reopened(context)
    if not now.takedowns.pending:
        return now
    try:
        show_takedown(done := takedown.forget(now, [], []))
        if done.left:
            echo(f"Takedown: {len(done.left)} places still name what was taken down: {'; '.join(done.left)}", err=True)
    except LockHeld as why:
        echo(f"Takedown: {why}", err=True)
    return reopened(context)


def show_takedown(done: Takedown, dry_run: bool = False) -> None:
    would = "would be removed" if dry_run else "removed"
    echo(f"{done.posts:,} posts of {len(done.shards)} shards {would}, {done.bytes / 2**20:,.1f} MiB freed")
    for title, names in (
        (f"Not found; {'would be ' if dry_run else ''}recorded so that later ingests reject it", done.unknown),
        (f"Artifacts and files {would}", done.removed),
        (f"Networks made from these posts, {'would be stale' if dry_run else 'stale now'}", done.saw),
    ):
        if names:
            echo(f"{title}:")
            for name in names:
                echo(f"  {shown(name, 600)}")
    if done.not_searched:
        echo(
            f"{len(done.not_searched)} ids or users are too short, or too plain, to be told apart from other text: all "
            "of our logs were removed; Dagster's are not searched for them"
        )
    if done.posts and not dry_run:
        echo("Next: hardmoe run rebuilds everything without them.")


def show_results(context: Context, tasks: list[tuple[str, str | None]], summary: Summary) -> None:
    """One line per requested network."""
    now = finish_takedown(context)  # as it is since the run, which may have waited for one
    for task in tasks:
        echo(result_line(now, Task(*task), summary))


def finish(summary: Summary) -> None:
    """Prints a summary; exit code 1 when something failed, 130 after Ctrl-C."""
    echo(
        f"{len(summary.made)} made, {len(summary.fresh)} fresh, {len(summary.failed)} failed, "
        f"{len(summary.skipped)} not started, in {summary.seconds:.1f} s"
    )
    for name, why in summary.failed.items():
        echo(f"Error: {name}: {shown(why, 4000)}", err=True)
    if summary.interrupted:
        nothing = not (summary.made or summary.fresh or summary.stopped or summary.left)
        under_way = f"; {', '.join(summary.stopped)} stopped at the last checkpoint" if summary.stopped else ""
        what = "before anything was started" if nothing else f": {len(summary.left)} not started{under_way}"
        echo(f"Interrupted{' ' * nothing}{what}. Run the same command to resume.", err=True)
        sys.exit(130)
    for name, why in summary.blocked.items():
        echo(f"Not started: {name}: its inputs changed, and it {why}; `hardmoe run` builds both", err=True)
    if summary.failed or summary.blocked:
        sys.exit(1)


def table_of(context: Context) -> dict[str, Any]:
    table: dict[str, Any] = json.loads(context.need("evaluation").file("table.json").read_text("utf-8"))
    return table


def publication_of(context: Context) -> dict[str, Any]:
    """Which mixture is published, whether it is the one that the table measures, and why or why not."""
    mixture, log = context.version("mixture"), read_log(context.store.documents)
    last = log.last(mixture)
    why = last.why if last else "not decided yet"
    if last and log.published not in (mixture, last.published):
        since = log.history[-1]
        why = f"it was {last.action} on {last.at}; since then {since.mixture} was {since.action}: {since.why}"
    return {
        "published": log.published,
        "mixture": mixture,
        "is_published": log.published == mixture,
        "why": why,
    }


def show_table(context: Context) -> None:
    print_table(table_of(context))
    show_publication(context)


def show_publication(context: Context, always: bool = False) -> None:
    """Prints that the mixture is not published, and why; with `always` also that it is."""
    publication = publication_of(context)
    if not publication["is_published"]:
        echo(f"This mixture is not published, {publication['published'] or 'nothing'} is: {publication['why']}")
    elif always:
        echo(f"Published: mixture {publication['mixture']}: {publication['why']}")
