"""Mixtures beside one another: those of a study with their names and notes, and those of several studies."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from moe_core.engine.context import Context
from moe_core.errors import BadSetting
from moe_core.evaluation.comparison import compare as compared
from moe_core.serving.names import Label, label, read_labels, version_of
from moe_core.serving.publication import PublicationLog, read_log
from moe_core.store.artifact import Artifact
from moe_core.store.layout import Layout
from moe_core.study_file import load_study
from moe_core.text import shown
from moe_core.workspace import open_study
from pipelines.cli.common import last_built, study_at, table_of
from pipelines.cli.options import JSON, STUDY_OPTION
from pipelines.terminal import echo, echo_json


@dataclass(frozen=True)
class Line:
    """A mixture of a study."""

    version: str
    made_at: str  # UTC, ISO 8601
    state: str  # published, or what was decided about it last; "" where nothing was
    experts: int
    p_at_1: float | None  # of the answer on test posts; None where it was not evaluated
    name: str
    note: str


@click.command()
@STUDY_OPTION
@click.option("--version", default=None, help="Of the mixture to name, its beginning, or its name.")
@click.option("--name", default=None, help="Give it this name, which every --version takes; empty: none.")
@click.option("--note", default=None, help="Give it this note; empty: none.")
@JSON
def mixtures(study_file: Path, version: str | None, name: str | None, note: str | None, as_json: bool) -> None:
    """All mixtures of a study, the newest first; names and notes for them.

    \b
    Example: hardmoe mixtures --study cats
             hardmoe mixtures --study cats --version 1f0c --name holiday --note "with the pictures of July"
    """
    if (version is None) != (name is None and note is None):
        raise BadSetting("--version goes with --name or --note: say which mixture, and what to call it")
    context = study_at(study_file, by="hardmoe mixtures")
    built = sorted(context.store.versions("mixture", None), key=lambda artifact: -artifact.made_at)
    if version is not None:
        known = [artifact.version for artifact in built]
        where = f"mixture in {context.store.uri}"
        label(context.store.documents, version_of(context.store.documents, version, known, where), name, note)
    lines = _lines(context, built)
    if as_json:
        echo_json({"study": context.study.name, "mixtures": [asdict(line) for line in lines]})
    else:
        for line in lines:
            score = "     " if line.p_at_1 is None else f"{line.p_at_1:.3f}"
            parts = (line.version, line.made_at, f"{line.state:12}", f"K={line.experts}", f"P@1 {score}", line.name)
            echo("  ".join((*parts, line.note)).rstrip())
        if not lines:
            echo("No mixture yet: `hardmoe run` builds one.")


def _lines(context: Context, built: list[Artifact]) -> list[Line]:
    labels, log = read_labels(context.store.documents), read_log(context.store.documents)
    tables = {a.inputs.get("mixture"): a for a in context.store.versions("evaluation", None)}
    return [_line(mixture, labels.get(mixture.version, Label()), log, tables.get(mixture.version)) for mixture in built]


def _line(mixture: Artifact, label: Label, log: PublicationLog, evaluation: Artifact | None) -> Line:
    last, state = log.last(mixture.version), ""
    if log.published == mixture.version:
        state = "published"
    elif last:
        state = last.action if last.action in ("refused", "rolled back") else "replaced"
    made_at = datetime.fromtimestamp(mixture.made_at, UTC).isoformat(timespec="minutes")
    score = None
    if evaluation:
        metadata: Any = evaluation.metadata
        score = metadata["p_at_1"][metadata["published"]]
    published: Any = mixture.metadata["published"]
    return Line(mixture.version, made_at, state, len(published), score, label.name, label.note)


@click.command()
@click.argument("studies", nargs=-1, required=True, type=click.Path(path_type=Path))
@JSON
def compare(studies: tuple[Path, ...], as_json: bool) -> None:
    """The last tables of several studies beside one another: what each mixture reaches, gains and costs.

    Figures of studies with other test posts or hashtags do not compare; the gains over their own controls do.

    Example: hardmoe compare cats cats-wide
    """
    rows = [_study_row(path) for path in studies]
    if as_json:
        echo_json({"studies": rows})
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    table = Table(box=None)
    heads = (
        "",
        "mixture",
        "test posts",
        "hashtags",
        "K",
        "P@1 (95 %)",
        "over the trunk",
        "same budget",
        "worth its cost",
    )
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < 2 else "right", overflow="fold")
    for row in rows:
        table.add_row(*_cells(row))
    console.print(table)
    if len({(row["test_posts"], row["hashtags"]) for row in rows}) > 1:
        echo("These studies have other test posts or hashtags: compare their gains, not their P@1.")


def _study_row(path: Path) -> dict[str, Any]:
    file = Layout(path).study_file if path.is_dir() else path
    context, since = last_built(open_study(load_study(file), file.parent), "evaluation")
    table, mixture = table_of(context), context.version("mixture")
    (answer,) = (row for row in table["rows"] if row["name"] == table["published"])
    words = compared(table)
    return {
        "study": context.study.name,
        "path": str(path),
        "mixture": mixture,
        "name": read_labels(context.store.documents).get(mixture, Label()).name,
        "is_published": read_log(context.store.documents).published == mixture,
        "is_current": since is None,
        "test_posts": table["n"],
        "hashtags": table["hashtags"],
        "experts": len(table["per_expert"]),
        "answer": answer,
        "gains": {name: table["published_gains"].get(name) for name in ("trunk", "trunk_same_budget")},
        "worth_its_cost": words.worth_its_cost,
    }


def _cells(row: dict[str, Any]) -> list[str]:
    low, high = row["answer"]["p_at_1_ci95"]
    cells = [row["name"] or row["mixture"][:8], f"{row['test_posts']:,}", f"{row['hashtags']:,}", str(row["experts"])]
    cells.append(f"{row['answer']['p_at_1']:.3f} ({low:.3f}-{high:.3f})")
    for gain in row["gains"].values():
        if gain is None:
            cells.append("not trained")
            continue
        low, high = gain["p_at_1_gain_ci95"]
        cells.append(f"{gain['p_at_1_gain']:+.3f} ({low:+.3f} to {high:+.3f})")
    return [shown(row["study"]), *cells, row["worth_its_cost"]]
