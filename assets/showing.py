"""Metadata of an artifact for Dagster's UI: plots, tables, numbers and paths.

No picture of a post goes to Dagster, whose event log keeps all it records: a takedown could not find it there. Contact
sheets are files of the artifact, named by their paths, and parts of the report.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from moe_core.engine.context import Context
from moe_core.evaluation.plots import BLUE, Line, bars, data_uri, glance, lines
from moe_core.maintenance.lineage import Lineage, flat
from moe_core.stages.training.cost import training_cost
from moe_core.stages.training.log import log_of, seconds_left
from moe_core.store.artifact import Artifact
from moe_core.text import shown

# ASCII punctuation that Markdown or HTML may read as more than text; an underscore inside a word is only that.
_MARKUP = re.compile(r"[!-,/:-@\[-^`{-~]|(?<![^\W_])_|_(?![^\W_])")
# The UI makes links of addresses even where every mark is escaped: a word joiner, which nobody sees, breaks them.
_ADDRESS = re.compile(r"(?i)://|www(?=\.)|@")
ROWS = 40  # of a plot of bars at most
MOST_ROWS = 100  # of a table of lineage
SERVED_AT = "HARDMOE_SERVE_URL"  # variable with the address of `hardmoe serve`, where one runs
INLINE = 1000  # characters of Markdown from which Dagster's UI shows a link to it in its place


@dataclass(frozen=True)
class Shown:
    """What an asset shows beside its artifact's own metadata, where None hides an entry; and results of its checks."""

    metadata: Mapping[str, Any] = field(default_factory=dict)
    checks: tuple[dg.AssetCheckResult, ...] = ()


def cell(text: object) -> str:
    """Text of users made safe for Markdown: it stays the text that it is, on one line."""
    plain = _ADDRESS.sub(lambda begun: begun[0] + "\u2060", shown(" ".join(str(text).split()), 200))
    return _MARKUP.sub(lambda mark: f"&#{ord(mark[0])};", plain)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> dg.MetadataValue:
    """A table of cells that are text: in Markdown, which looks better, as long as the UI shows that at once."""
    text = markdown(head, ([cell(value) for value in row] for row in rows))
    if len(text) < INLINE:
        return dg.MetadataValue.md(text)
    records = [dg.TableRecord({name: shown(value, 200) for name, value in zip(head, row, strict=True)}) for row in rows]
    return dg.MetadataValue.table(records, dg.TableSchema([dg.TableColumn(name) for name in head]))


def bar(value: float, most: float) -> str:
    """A bar of up to twelve blocks, to stand beside a number."""
    return "▇" * max(1, round(12 * value / most)) if value else ""


def picture(svg: str, about: str) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(f"![{cell(about)}]({data_uri(svg)})")


def about(artifact: Artifact) -> dict[str, Any]:
    """An artifact's metadata: numbers and words as they are, short lists and tables as such.

    Deeper nesting is left to the asset that knows what it means.
    """
    entries: dict[str, Any] = {}
    for name, value in artifact.metadata.items():
        label = name.replace("_", " ")
        if isinstance(value, bool | int | float | str):
            entries[label] = value
        elif isinstance(value, dict) and value and all(isinstance(v, bool | int | float | str) for v in value.values()):
            entries[label] = table((" ", label), list(value.items()))
        elif isinstance(value, list) and value and all(isinstance(v, str) for v in value):
            entries[label] = dg.MetadataValue.md(", ".join(map(cell, value)))
    return entries


def origin(artifact: Artifact, context: Context) -> dict[str, Any]:
    """Version, path and lineage: exact versions, shards and settings, as many as a table can show."""
    lineage = Lineage(context.store, {artifact.version: artifact})
    above = [lineage.artifact(version) for version in lineage.above(artifact.version, most=MOST_ROWS + 1)]
    shards = [(a.key, a.inputs["shard"]) for a in above if a.asset == "posts"]
    settings = {(a.asset, name): json.dumps(value) for a in reversed(above) for name, value in flat(a.settings)}
    return {
        "made from": table(("input", "version"), _at_most(sorted(artifact.inputs.items()))),
        "lineage": table(
            ("artifact", "version", "content hash"), _at_most([(a.spec.name, a.version, a.content_hash) for a in above])
        ),
        "lineage: shards": table(("shard", "content"), _at_most(shards)),
        "lineage: settings": table(
            ("of", "setting", "value"), _at_most([(asset, name, value) for (asset, name), value in settings.items()])
        ),
        "posts snapshot": context.planner.posts_snapshot,
        "version": artifact.version,
        "content hash": artifact.content_hash,
        "path": dg.MetadataValue.path(artifact.uri),
    }


def _at_most(rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The first rows, and that there are more: Dagster's event log is no place for a thousand."""
    if len(rows) <= MOST_ROWS:
        return list(rows)
    more = ("and more", "hardmoe lineage has all")
    return [*rows[:MOST_ROWS], (*more, *[""] * len(rows[0]))[: len(rows[0])]]


def look(view: str) -> dict[str, Any]:
    """A link to a view of the page of `hardmoe serve`; nothing where no address is known."""
    address = os.environ.get(SERVED_AT, "").strip().rstrip("/")
    return {"look": dg.MetadataValue.url(f"{address}/#/{view}")} if re.match(r"https?://[^\s/]", address) else {}


def curves(artifact: Artifact) -> dict[str, Any]:
    """Curves of a training's loss and learning rate: small ones that are seen at once, and large ones."""
    log = log_of(artifact)
    small, large = {}, []
    for title, name in (("loss", "loss"), ("learning rate", "lr")):
        points = [(line["images_seen"], line[name]) for line in log]
        small[f"{title} curve"] = picture(glance(points, title), f"{title} curve")
        large.append(picture(lines([Line("", points, BLUE)], "images seen", title), title).value)
    return small | {"curves with axes": dg.MetadataValue.md("\n\n".join(map(str, large)))}


def cost_so_far(context: Context) -> dict[str, Any]:
    """Training cost of all the networks of the study in the store, superseded ones too."""
    costs = training_cost(context)
    return {
        "study: training seconds so far": round(sum(cost.seconds for cost in costs), 1),
        "study: training images so far": sum(cost.training_images for cost in costs),
    }


def plot_of_bars(rows: Sequence[tuple[str, float]], about: str, form: str = "{:,.0f}") -> dict[str, Any]:
    """{about: plot}; empty where the rows are too many to read."""
    return {about: picture(bars(rows, about, form), about)} if 0 < len(rows) <= ROWS else {}


def numbers(report: Mapping[str, Any]) -> dict[str, int | float]:
    """Numbers of a stage's report on its progress, with the share done and the time left."""
    entries = {name.replace("_", " "): value for name, value in report.items() if isinstance(value, int | float)}
    if report.get("steps") and report.get("images_per_second"):
        left = round(seconds_left(report), 1)
        entries |= {"percent done": round(100 * report["step"] / report["steps"], 1), "seconds left": left}
    return entries
