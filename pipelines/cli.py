"""The `hardmoe` command: what Dagster's own commands lack. A user's mistake is one line and an exit code."""

import json
import os
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moe_core.recipes import RECIPES
from moe_core.text import shown

if TYPE_CHECKING:
    import numpy as np

    from moe_core.data.sources import Unready
    from moe_core.serving.bundle import Bundle
    from moe_core.settings import Study
    from moe_core.stages.context import Context
    from moe_core.stages.takedown import Takedown
    from pipelines.runner import Summary

STUDY_OPTION = click.option(
    "--study",
    "study_file",
    type=click.Path(path_type=Path),
    default=lambda: os.environ.get("HARDMOE_STUDY", "study.toml"),
    help="study.toml  [default: $HARDMOE_STUDY, else ./study.toml]",
)
WORKERS = click.option(
    "--workers", type=int, default=None, help="Runs at once.  [default: one a GPU, else by the cores]"
)
FORCE = click.option("--force", is_flag=True, help="Make again what exists already.")
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")


class OneLineErrors(click.Group):
    """Turns the ValueErrors of moe_core, which are written for users, into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, FloatingPointError, OSError) as error:
            if os.environ.get("HARDMOE_TRACE"):
                raise
            # a message may quote what a file of a user's says
            raise click.ClickException(shown(" ".join(str(error).split()), 4000)) from None


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="hardmoe")
def main() -> None:
    """Hard mixtures of convolutional experts for images with hashtags.

    \b
    hardmoe demo                                        the whole graph on drawn data
    hardmoe init cats --source photos.parquet           a study of one's own
    hardmoe run --study cats/study.toml
    """


@main.command()
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=Path("studies/demo"),
    show_default=True,
    help="Folder of the study.",
)
@WORKERS
def demo(root: Path, workers: int | None) -> None:
    """The whole graph on the drawn data; prints the comparison table.

    Example: hardmoe demo --root /tmp/demo
    """
    from moe_core.recipes import demo as recipe

    study_file = root / "study.toml"
    if not study_file.exists():
        _write_study(study_file, recipe())
    context = _open(study_file)
    _finish(_run(context, workers=workers))
    _print_table(context)
    click.echo(
        f"\nReport: {context.need('report').path / 'report.html'}   (hardmoe report --study {study_file} --open)"
    )
    click.echo(f"Bundle: {context.need('mixture').path}")
    click.echo(f"Dagster's UI on this study: hardmoe ui --study {study_file}   (or `make ui`)")


@main.command(short_help="Look at a source, write study.toml.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--source",
    required=True,
    help="Parquet, Arrow or Lance file, tars, YFCC100M metadata: a file, folder, glob or URI; a folder of images with "
    "a table, or that table; or the word drawn.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["parquet", "arrow", "lance", "folder", "webdataset", "yfcc", "drawn"]),
    help="Format of the source.  [default: by what is there]",
)
@click.option("--id-column", default="", help="Column of ids, or #row.  [default: by the usual names]")
@click.option("--image-column", default="", help="Column of images or file names.  [default: by the usual names]")
@click.option("--tags-column", default="", help="Column of tags.  [default: by the usual names]")
@click.option("--user-column", default="", help="Column of users.  [default: by the usual names]")
@click.option("--split-column", default="", help="Column of splits.  [default: by the usual names]")
@click.option("--caption-column", default="", help="Column of text whose #words are the tags.")
@click.option("--images", default="", help="yfcc: folder of the images, or glob of tars of them.")
@click.option("--table", default="", help="folder: the table, or a glob of them, where there are several.")
@click.option("--recipe", default="small", show_default=True, help=f"Named settings: {', '.join(RECIPES)}.")
@click.option("--name", default=None, help="Name of the study.  [default: the folder's]")
@click.option("--force", is_flag=True, help="Replace a study.toml that is there.")
def init(
    folder: Path,
    source: str,
    kind: str | None,
    recipe: str,
    name: str | None,
    force: bool,
    images: str,
    **settings: str,
) -> None:
    """Says what was found in the source and writes FOLDER/study.toml.

    Example: hardmoe init cats --source photos.parquet --recipe small
    """
    import re

    from moe_core.data.sources import Unready, absolute, describe, find_shards, guess_format
    from moe_core.settings import Source

    if recipe not in RECIPES:
        raise ValueError(f"no recipe {recipe!r}: wanted one of {', '.join(RECIPES)}")
    study_file = folder / "study.toml"
    if study_file.exists() and not force:
        raise ValueError(f"{study_file} exists: edit it, or say --force to replace it")
    kind = kind or guess_format(source)
    found = Source.model_validate(
        {
            "format": kind,
            "uri": "" if kind == "drawn" else absolute(source),
            "images": absolute(images) if images else "",
            **settings,
        }
    )
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.absolute().name).strip("-_") or "study"
    base = RECIPES[recipe]()
    if kind == "drawn":
        found = base.source if base.source.format == "drawn" else found
    unready: list[Unready] = []
    for line in describe(found, find_shards(found, unready=unready), base.data.image_size):
        click.echo(line)
    _warn(unready)
    study = base.model_copy(update={"name": name or plain, "source": found})
    _write_study(study_file, type(study).model_validate(study.model_dump()))
    click.echo(f"Recipe {recipe}: {(RECIPES[recipe].__doc__ or '').strip().splitlines()[0]}")
    click.echo(f"Wrote {study_file}. Next: hardmoe run --study {study_file}")
    _sync(_open(study_file))


@main.command(short_help="Make everything missing or stale.")
@STUDY_OPTION
@click.option("--until", default=None, help="Stop after this asset and what it needs.")
@WORKERS
@FORCE
def run(study_file: Path, until: str | None, workers: int | None, force: bool) -> None:
    """Everything missing or stale, in order, each asset partition as its own Dagster run.

    Example: hardmoe run --study cats/study.toml --workers 2
    """
    context = _open(study_file)
    _finish(_run(context, until=until, workers=workers, force=force))
    if until is None:
        _print_table(context)


@main.command()
@STUDY_OPTION
@click.option("--experts", default=None, help="Keys with commas, such as e000,e003.")
@click.option("--all", "every", is_flag=True, help="All experts.")
@click.option("--missing", is_flag=True, help="Experts that were never trained.")
@click.option("--stale", is_flag=True, help="Experts whose inputs or settings changed.")
@click.option("--failed", is_flag=True, help="Experts whose last run failed.")
@WORKERS
@FORCE
def backfill(
    study_file: Path,
    experts: str | None,
    every: bool,
    missing: bool,
    stale: bool,
    failed: bool,
    workers: int | None,
    force: bool,
) -> None:
    """Trains some experts only.

    Example: hardmoe backfill --study cats/study.toml --experts e000,e003
    """
    context = _open(study_file)
    chosen = _chosen(context, experts, every, {"missing": missing, "stale": stale, "failed": failed})
    if not chosen:
        click.echo("No such expert: nothing to do.")
        return
    if context.study.decoder.mode == "joint" and (force or context.find("joint_experts") is None):
        raise ValueError(
            "decoder.mode is joint: experts of one generation are trained together, not one by one; say "
            f"`hardmoe run --study {study_file} --until expert`, with --force where they exist"
        )
    _finish(_run(context, only=[("expert", key) for key in chosen], workers=workers, force=force))


def _chosen(context: "Context", experts: str | None, every: bool, states: dict[str, bool]) -> list[str]:
    from pipelines.status import states_of

    if sum((experts is not None, every, *states.values())) != 1:
        raise ValueError("say exactly one of --experts, --all, --missing, --stale, --failed")
    if every:
        return context.experts
    if experts is not None:
        keys = [key.strip() for key in experts.split(",") if key.strip()]
        unknown = [key for key in keys if key not in context.experts]
        if unknown or not keys:
            raise ValueError(
                f"no expert {', '.join(unknown) or repr(experts)}: wanted some of {', '.join(context.experts)}"
            )
        return keys
    wanted = next(name for name, said in states.items() if said)
    return [s.key for s in states_of(context, only="expert") if s.state == wanted and s.key is not None]


@main.command(short_help="What is fresh, stale, missing, failed, running.")
@STUDY_OPTION
@JSON
def status(study_file: Path, as_json: bool) -> None:
    """Each asset and expert: fresh, stale (why), missing, failed or running.

    Example: hardmoe status --study cats/study.toml
    """
    from pipelines.status import posts_of, states_of

    context = _open(study_file)
    states = states_of(context)
    posts = posts_of(context)
    if as_json:
        unready = {file.path: file.why for file in context.unready}
        click.echo(json.dumps({"posts": posts, "unready": unready, "assets": [state.as_json() for state in states]}))
        return
    reasons = ", ".join(f"{reason} {n}" for reason, n in posts["rejects_by_reason"].items())
    click.echo(
        f"posts: {posts['read']:,} read, {posts['accepted']:,} accepted, {posts['rejected']:,} rejected"
        + (f" ({reasons})" if reasons else "")
    )
    _warn(context.unready)
    if context.forgotten.pending:
        click.echo(f"A takedown is not finished: hardmoe forget --study {study_file}")
    colours = {"fresh": "green", "stale": "yellow", "missing": "bright_black", "failed": "red", "running": "cyan"}
    for state in states:
        label = state.asset if state.key is None else f"{state.asset}:{state.key}"
        click.echo(f"{label:28} " + click.style(f"{state.state:8}", fg=colours[state.state]) + f" {state.why}".rstrip())


@main.command()
@STUDY_OPTION
@JSON
def results(study_file: Path, as_json: bool) -> None:
    """The comparison table.

    Example: hardmoe results --study cats/study.toml --json
    """
    context = _open(study_file)
    if as_json:
        table = _table(context)
        click.echo(json.dumps({"study": context.study.name, **table}))
        return
    _print_table(context)


@main.command(short_help="Where the page lies; --open shows it.")
@STUDY_OPTION
@click.option("--open", "open_it", is_flag=True, help="Open it in a browser.")
def report(study_file: Path, open_it: bool) -> None:
    """Prints the path of the report, one HTML page that needs no other file and no network.

    Example: hardmoe report --study cats/study.toml --open
    """
    import webbrowser

    page = _open(study_file).need("report").file("report.html")
    click.echo(page)
    if open_it and not webbrowser.open(page.absolute().as_uri()):
        raise ValueError(f"no browser could be started: open {page} yourself")


@main.command(short_help="Hashtags of images.")
@click.option("--bundle", required=True, type=click.Path(path_type=Path), help="Folder of a mixture, or of its study.")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top", default=5, show_default=True, help="Hashtags an image.")
@click.option("--topk", default=1, show_default=True, help="Experts asked for an image; 1: the published answer.")
@click.option("--temperature", default=0.1, show_default=True, help="T of softmax(-d^2/T), the weights of --topk.")
@click.option("--memory", default=4096, show_default=True, help="MiB of experts held at once.")
@JSON
def predict(
    bundle: Path, images: tuple[Path, ...], top: int, topk: int, temperature: float, memory: int, as_json: bool
) -> None:
    """Hashtags of image files, and of all image files in folders.

    Example: hardmoe predict --bundle cats cat.jpg holiday/ --top 3
    """
    from moe_core.serving.bundle import Bundle
    from moe_core.serving.files import files_of

    if top < 1:
        raise ValueError(f"--top {top}: wanted at least 1")
    path = _open(bundle / "study.toml").need("mixture").path if (bundle / "study.toml").exists() else bundle
    opened = Bundle(path, expert_bytes=memory << 20)
    failed, separator = False, "["
    for answer in _predictions(opened, list(files_of(images)), top, topk, temperature):
        failed |= "error" in answer
        if as_json:
            click.echo(separator + json.dumps(answer, ensure_ascii=False), nl=False)
            separator = ",\n"
        if "error" in answer:
            click.echo(f"Error: {answer['image']}: {answer['error']}", err=True)
        elif not as_json:
            words = "  ".join(f"{tag['tag']} {tag['p']:.3f}" for tag in answer["tags"])
            click.echo(f"{answer['image']}  [{answer['expert']}]  {words}")
    if as_json:
        click.echo("]")
    if failed:
        sys.exit(1)


def _predictions(
    bundle: "Bundle", paths: list[Path], top: int, topk: int, temperature: float
) -> Iterator[dict[str, Any]]:
    """The answer to each file in turn, or what is wrong with it."""
    import torch

    from moe_core.serving.files import decoded
    from moe_core.serving.routed import routed
    from moe_core.stages.context import cores

    device = "cuda" if torch.cuda.is_available() else "cpu"
    parts: deque[list[tuple[Path, str]]] = deque()  # read, not yet answered

    def batches() -> "Iterator[np.ndarray]":
        for part in decoded(paths, bundle.image_size, cores()):
            parts.append(part.files)
            yield part.images_BHWC

    for answer in routed(bundle, batches(), topk=topk, temperature=temperature, device=device):
        rows = iter(zip(answer.probabilities_BV, answer.experts, strict=True))
        for path, error in parts.popleft():
            if error:
                yield {"image": str(path), "error": error}
                continue
            probabilities_V, expert = next(rows)
            best = probabilities_V.topk(min(top, len(bundle.hashtags)))
            tags = [
                {"tag": bundle.hashtags[int(tag)], "p": round(float(p), 5)}
                for p, tag in zip(best.values, best.indices, strict=True)
            ]
            how = bundle.answer if topk == 1 else "mixture_topk"
            yield {"image": str(path), "expert": expert, "answer": how, "tags": tags}


@main.command(short_help="End runs whose process died.")
@STUDY_OPTION
def reap(study_file: Path) -> None:
    """Ends what dead processes left: runs that only seem to run, and the pool slots they hold.

    Example: hardmoe reap --study cats/study.toml
    """
    import dagster as dg

    from pipelines import instance

    context = _open(study_file)
    instance.home(context.root, 1)
    with dg.DagsterInstance.get() as open_instance:
        ended = instance.reap(open_instance)
    click.echo(f"{len(ended)} dead runs ended" + (": " + ", ".join(ended) if ended else ""))


@main.command(short_help="Free disk that nothing needs.")
@STUDY_OPTION
@click.option("--dry-run", is_flag=True, help="Say what would be freed, and free nothing.")
@click.option("--superseded", is_flag=True, help="Also posts, features and the like that the study no longer reads.")
@JSON
def tidy(study_file: Path, dry_run: bool, superseded: bool, as_json: bool) -> None:
    """Frees what nothing points at: old versions and files of the Lance data sets, leftovers of dead processes.

    Example: hardmoe tidy --study cats/study.toml --dry-run
    """
    from moe_core.stages.housekeeping import tidy as clean_up

    done = clean_up(_open(study_file), dry_run, superseded)
    if as_json:
        click.echo(json.dumps(done.as_json()))
        return
    would = "would free" if dry_run else "freed"
    click.echo(
        f"{would} {done.bytes / 2**20:,.1f} MiB: {done.versions} old versions, {done.files} files, "
        f"{len(done.removed)} leftovers; {len(done.rewritten)} shards {'would be ' if dry_run else ''}written again"
    )
    for name in done.removed:
        click.echo(f"  {name}")


@main.command(short_help="Take posts down for good.")
@STUDY_OPTION
@click.option("--ids", type=click.Path(path_type=Path), help="File with the id of a post on each line.")
@click.option("--users", type=click.Path(path_type=Path), help="File with a user on each line: all their posts.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@JSON
def forget(study_file: Path, ids: Path | None, users: Path | None, dry_run: bool, as_json: bool) -> None:
    """Takes posts down: out of every store and its old versions, for good, and names the networks that saw them.

    Without a file it finishes a takedown that was interrupted. The source's own files are not touched.

    Example: hardmoe forget --study cats/study.toml --ids ids.txt
    """
    from moe_core.data.forgotten import lines_of

    context = _open(study_file)
    done = _forget(context, lines_of(ids) if ids else [], lines_of(users) if users else [], dry_run)
    if as_json:
        click.echo(json.dumps(done.as_json()))
    else:
        _print_takedown(done, dry_run)
    if done.left:
        click.echo(
            f"Error: {len(done.left)} files still name what was forgotten: {', '.join(done.left)}. They are Dagster's "
            "event logs: delete the folder while nothing runs, `hardmoe run` begins it anew",
            err=True,
        )
        sys.exit(1)


def _forget(context: "Context", ids: list[str], users: list[str], dry_run: bool) -> "Takedown":
    from moe_core.stages.takedown import forget as take_down

    return take_down(context, ids, users, dry_run)


def _print_takedown(done: "Takedown", dry_run: bool = False) -> None:
    would = "would be removed" if dry_run else "removed"
    click.echo(f"{done.posts:,} posts of {len(done.shards)} shards {would}, {done.bytes / 2**20:,.1f} MiB freed")
    for title, names in (
        ("Unknown here, remembered all the same", done.unknown),
        (f"Artefacts and files {would}", done.removed),
        ("Networks made from these posts, stale now", done.saw),
    ):
        if names:
            click.echo(f"{title}:")
            for name in names:
                click.echo(f"  {name}")
    if done.posts and not dry_run:
        click.echo("Next: hardmoe run makes everything again without them.")


@main.command()
@STUDY_OPTION
@click.option("--port", default=3000, show_default=True, help="Port on 127.0.0.1.")
def ui(study_file: Path, port: int) -> None:
    """Dagster's UI and daemon on the study, until interrupted.

    Example: hardmoe ui --study cats/study.toml --port 3000
    """
    context = _open(study_file)
    _sync(context)
    click.echo(f"Dagster's UI: http://127.0.0.1:{port}   (Ctrl-C ends it)")
    command = [
        sys.executable,
        "-m",
        "dagster",
        "dev",
        "-m",
        "pipelines.definitions",
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
    ]
    os.execv(sys.executable, command)


def _open(study_file: Path) -> "Context":
    """The study, and HARDMOE_STUDY naming it for all that Dagster loads from here on."""
    from moe_core.settings import load_study
    from moe_core.stages.context import Context

    study = load_study(study_file)
    os.environ["HARDMOE_STUDY"] = str(study_file.absolute())
    return Context(study, study_file.absolute().parent)


def _sync(context: "Context") -> None:
    """Shows Dagster the study's partition keys."""
    import dagster as dg

    from pipelines.instance import home, project_keys
    from pipelines.runner import default_workers

    home(context.root, default_workers(context.study.partition.experts))
    with dg.DagsterInstance.get() as instance:
        project_keys(instance, context.study.name, [s.key for s in context.shards], context.experts)


def _write_study(path: Path, study: "Study") -> None:
    from moe_core.settings import dump_study
    from moe_core.store import write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, dump_study(study))


def _run(context: "Context", **options: Any) -> "Summary":
    from pipelines.display import Display
    from pipelines.runner import run_study

    _warn(context.unready)  # also a source that is not there is said before anything starts
    if options.get("workers"):
        os.environ.setdefault("HARDMOE_WORKERS", str(options["workers"]))  # of a stage that starts its own
    with Display(_finish_takedown(context)) as display:
        summary = run_study(display.context, on_event=display.event, on_poll=display.poll, **options)
    _finish_takedown(context)  # one that came meanwhile had to wait
    summary.failed |= {f"source {file.path}": file.why for file in context.unready}
    return summary


def _warn(unready: "list[Unready]") -> None:
    for file in unready:
        click.echo(f"Left out until it can be read: {shown(file.why, 4000)}", err=True)


def _finish_takedown(context: "Context") -> "Context":
    """Ends a takedown that was begun, unless others are at work; the study as it is then."""
    from moe_core.stages.context import Context
    from moe_core.store import Busy

    now = Context(context.study, context.root)
    if not now.forgotten.pending:
        return now
    try:
        _print_takedown(_forget(now, [], [], dry_run=False))
    except Busy as why:
        click.echo(f"Takedown: {why}", err=True)
    return Context(context.study, context.root)


def _finish(summary: "Summary") -> None:
    """Says what was done; exit code 1 when something failed."""
    click.echo(
        f"{len(summary.made)} made, {len(summary.fresh)} fresh, {len(summary.failed)} failed, "
        f"{len(summary.skipped)} not started, in {summary.seconds:.1f} s"
    )
    if summary.failed:
        for name, why in summary.failed.items():
            click.echo(f"Error: {name}: {shown(why, 4000)}", err=True)
        sys.exit(1)


def _table(context: "Context") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(context.need("evaluation").file("table.json").read_text("utf-8"))
    return found


def _print_table(context: "Context") -> None:
    from pipelines.display import print_table

    print_table(_table(context))


if __name__ == "__main__":
    main()
