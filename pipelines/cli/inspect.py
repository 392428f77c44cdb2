"""Commands that only read: status, results, report, ui."""

import os
from dataclasses import asdict
from pathlib import Path
from shlex import quote

import click

from moe_core.engine.context import Context
from moe_core.errors import HardmoeError
from moe_core.evaluation.comparison import compare
from moe_core.evaluation.hashtag_table import hashtags_file
from moe_core.evaluation.page import render_table
from moe_core.store.artifact import name_of
from moe_core.store.files import write_text
from pipelines.cli.common import (
    last_built,
    publication_of,
    show_keys,
    show_table,
    study_at,
    table_of,
    warn_unready,
    with_source,
)
from pipelines.cli.options import JSON, STUDY_OPTION
from pipelines.cli.pilot import last_pilot, pilot_as_json, show_pilot
from pipelines.instance.opening import opened
from pipelines.instance.reap import reap
from pipelines.instance.ui_lock import daemon_heartbeat_age, lock_ui
from pipelines.run.status import posts_of, states_of
from pipelines.terminal import echo, echo_json
from pipelines.ui.commands import checked_host, checked_prefix, dagster_commands
from pipelines.ui.supervisor import run_together


@click.command()
@STUDY_OPTION
@JSON
def status(study_file: Path, as_json: bool) -> None:
    """Each asset and expert: fresh, stale (why), missing, failed or running.

    Example: hardmoe status --study cats/study.toml
    """
    context = study_at(study_file)
    pilot, posts = last_pilot(context), posts_of(context)
    of_pilot = [state for state in states_of(context, "pilot") if pilot or state.state != "missing"]
    states = [*states_of(context), *of_pilot]
    if as_json:
        unready = {file.path: file.why for file in context.planner.state.unready}
        assets = [asdict(state) for state in states]
        echo_json({"posts": posts, "unready": unready, "assets": assets, "pilot": pilot_as_json(pilot)})
        return
    reasons = ", ".join(f"{reason} {n}" for reason, n in posts["rejects_by_reason"].items())
    echo(
        f"posts: {posts['read']:,} read, {posts['accepted']:,} accepted, {posts['rejected']:,} rejected"
        + (f" ({reasons})" if reasons else "")
    )
    warn_unready(context.planner.state.unready)
    if context.takedowns.pending:
        echo(f"A takedown is not finished: hardmoe forget --study {quote(str(study_file))} --apply")
    colors = {"fresh": "green", "stale": "yellow", "missing": "bright_black", "failed": "red", "running": "cyan"}
    for state in states:
        name = name_of(state.asset, state.key)
        echo(f"{name:28} ", (f"{state.state:8}", colors[state.state]), f" {state.why}".rstrip())
    if pilot:
        if not pilot.is_current:
            echo("The last pilot, which is not of the study as it is now:")
        show_pilot(pilot.artifact)


@click.command()
@STUDY_OPTION
@JSON
def results(study_file: Path, as_json: bool) -> None:
    """The comparison table; --json also names the file with a row for each hashtag.

    Example: hardmoe results --study cats/study.toml --json
    """
    context = study_at(study_file)
    context, since = last_built(context, "evaluation")
    if as_json:
        table = table_of(context)
        document = {
            "study": context.study.name,
            **table,
            "comparison": compare(table).as_json(),
            "publication": publication_of(context),
            "is_current": since is None,
            "changed_since": since or [],
            "hashtags_file": _hashtags_file(context),
        }
        echo_json(document)
        return
    show_table(context)


def _hashtags_file(context: Context) -> str | None:
    """Path of the table with a row for each hashtag; None where the evaluation has none."""
    file = hashtags_file(context.need("evaluation"))
    return str(file) if file else None


@click.command()
@STUDY_OPTION
@click.option("--open", "open_it", is_flag=True, help="Open it in a browser.")
def report(study_file: Path, open_it: bool) -> None:
    """Prints the path of the report, one HTML page that needs no other file and no network.

    Example: hardmoe report --study cats/study.toml --open
    """
    import webbrowser

    context = study_at(study_file)
    page = _page(context)
    echo(page)
    if open_it and not webbrowser.open(page.absolute().as_uri()):
        raise HardmoeError(f"no browser could be started: open {page}")


def _page(context: Context) -> Path:
    """The report, or, where a takedown removed it with the pictures in it, a page of the last table alone."""
    page = context.store.layout.report_page
    if context.takedowns.entries and not context.store.versions("report", None):
        context, since = last_built(context, "evaluation")
        echo(
            "A takedown removed the report, which had pictures and hashtags of posts: this page has the table alone.",
            err=True,
        )
        page.parent.mkdir(exist_ok=True)
        write_text(page, render_table(context.study, table_of(context), since or []))
        return page
    context, _ = last_built(context, "report")
    report = context.need("report").file("report.html")
    if not context.store.place:
        return report
    page.parent.mkdir(exist_ok=True)  # the file in the cache is this process's
    write_text(page, report.read_text("utf-8"))
    return page


@click.command()
@STUDY_OPTION
@click.option("--port", default=3000, show_default=True, help="Port on 127.0.0.1.")
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME[:PORT]",
    help="Also a name of this server, such as that of a proxy before it; may be given several times.",
)
@click.option("--path-prefix", default="", metavar="/PATH", help="Path under which a proxy serves the UI.")
def ui(study_file: Path, port: int, allow_host: tuple[str, ...], path_prefix: str) -> None:
    """Dagster's UI and daemon on the study, until interrupted; they end with this command, also when it is killed.

    The UI answers requests from its own pages and from programs of this machine, not from other web sites.

    Example: hardmoe ui --study cats/study.toml --port 3000
    """
    allowed, prefix = [checked_host(host) for host in allow_host], checked_prefix(path_prefix)
    context = study_at(study_file)
    show_keys(with_source(context))
    lock = lock_ui(port)
    with opened(launches=True) as instance:
        if (seconds := daemon_heartbeat_age(instance)) is not None:
            echo(
                f"A daemon of this instance reported {seconds:.0f} s ago. Unless it was that of a `hardmoe ui` which "
                "has ended, stop it or this command: two daemons would start each run twice",
                err=True,
            )
        if ended := reap(instance, context.root, context.study.name, context.store.place):
            echo(f"Ended {len(ended)} runs whose process is gone: {', '.join(ended)}")
    echo(f"Dagster's UI: http://127.0.0.1:{port}{prefix}   (Ctrl-C ends it)")
    os.environ["DAGSTER_IS_DEV_CLI"] = "1"  # the code server alone shows an error of its code
    with dagster_commands(port, prefix, allowed) as (commands, socket):
        code = run_together(commands, socket, lock)
    if code:
        raise HardmoeError(f"code server, webserver or daemon ended (exit code {code}): their last messages are above")
