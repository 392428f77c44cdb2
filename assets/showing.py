"""What a person sees of an artifact in Dagster's UI: plots, tables, numbers; and where everything lies.

No picture of a post is given to Dagster, whose event log keeps what it is told: a takedown could not find it there. The
contact sheets are files of the artifact, named by their paths, and parts of the report.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from moe_core.engine.context import Context
from moe_core.evaluation.plots import BLUE, Line, bars, data_uri, glance, lines
from moe_core.maintenance.lineage import Lineage, flat
from moe_core.stages.training.cost import training_cost
from moe_core.stages.training.fit import log_of, seconds_left
from moe_core.store.artifact import Artifact
from moe_core.text import shown

# ASCII punctuation that Markdown or HTML may read as more than text; an underscore inside a word is only that.
_MARKUP = re.compile(r"[!-,/:-@\[-^`{-~]|(?<![^\W_])_|_(?![^\W_])")
# The UI makes links of addresses even where every mark is escaped: a word joiner, which nobody sees, breaks them.
_ADDRESS = re.compile(r"(?i)://|www(?=\.)|@")
ROWS = 40  # of a plot of bars at most
MOST_ROWS = 100  # of a table of lineage
INLINE = 1000  # characters of Markdown from which Dagster's UI shows a link to it in its place


def cell(text: object) -> str:
    """Text of users made safe for Markdown: it stays the text that it is, on one line."""
    plain = _ADDRESS.sub(lambda begun: begun[0] + "\u2060", shown(" ".join(str(text).split()), 200))
    return _MARKUP.sub(lambda mark: f"&#{ord(mark[0])};", plain)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> dg.MetadataValue:
    """A table of cells that are text: in Markdown, which looks better, as long as the UI shows that at once."""
    lines = [head, ["---"] * len(head), *([cell(value) for value in row] for row in rows)]
    text = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
    if len(text) < INLINE:
        return dg.MetadataValue.md(text)
    records = [dg.TableRecord({name: shown(value, 200) for name, value in zip(head, row, strict=True)}) for row in rows]
    return dg.MetadataValue.table(records, dg.TableSchema([dg.TableColumn(name) for name in head]))


def bar(value: float, most: float) -> str:
    """Of up to twelve blocks, to stand beside a number."""
    return "▇" * max(1, round(12 * value / most)) if value else ""


def picture(svg: str, about: str) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(f"![{cell(about)}]({data_uri(svg)})")


def about(artifact: Artifact) -> dict[str, Any]:
    """What the artifact says of itself: numbers and words as they are, short lists and tables as such.

    What is nested deeper is left to the asset that knows what it means.
    """
    found: dict[str, Any] = {}
    for name, value in artifact.metadata.items():
        label = name.replace("_", " ")
        if isinstance(value, bool | int | float | str):
            found[label] = value
        elif isinstance(value, dict) and value and all(isinstance(v, bool | int | float | str) for v in value.values()):
            found[label] = table((" ", label), list(value.items()))
        elif isinstance(value, list) and value and all(isinstance(v, str) for v in value):
            found[label] = dg.MetadataValue.md(", ".join(map(cell, value)))
    return found


def origin(artifact: Artifact, context: Context) -> dict[str, Any]:
    """Version, place, and all that it came from: exact versions, shards and settings, as far as a table can be read."""
    lineage = Lineage(context.store)
    above = [lineage.artifact(version) for version in lineage.above(artifact.version)]
    shards = [(a.key, a.inputs["shard"]) for a in above if a.asset == "posts"]
    settings = {(a.asset, name): json.dumps(value) for a in reversed(above) for name, value in flat(a.settings)}
    return {
        "made from": table(("input", "version"), _at_most(sorted(artifact.inputs.items()))),
        "lineage": table(
            ("artifact", "version", "digest"), _at_most([(a.spec.name, a.version, a.content_hash) for a in above])
        ),
        "lineage: shards": table(("shard", "content"), _at_most(shards)),
        "lineage: settings": table(
            ("of", "setting", "value"), _at_most([(asset, name, value) for (asset, name), value in settings.items()])
        ),
        "posts snapshot": context.planner.posts_snapshot,
        "version": artifact.version,
        "digest": artifact.content_hash,
        "path": dg.MetadataValue.path(str(artifact.path)),
    }


def _at_most(rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The first rows, and how many more there are: Dagster's event log is no place for a thousand."""
    if len(rows) <= MOST_ROWS:
        return list(rows)
    more = (f"and {len(rows) - MOST_ROWS} more", "hardmoe lineage has all")
    return [*rows[:MOST_ROWS], (*more, *[""] * len(rows[0]))[: len(rows[0])]]


def curves(artifact: Artifact) -> dict[str, Any]:
    """Loss and learning rate of a network while it was trained: small ones that are seen at once, and large ones."""
    log = log_of(artifact)
    small, large = {}, []
    for title, name in (("loss", "loss"), ("learning rate", "lr")):
        points = [(at["images_seen"], at[name]) for at in log]
        small[f"{title} curve"] = picture(glance(points, title), f"{title} curve")
        large.append(picture(lines([Line("", points, BLUE)], "images seen", title), title).value)
    return small | {"curves with axes": dg.MetadataValue.md("\n\n".join(map(str, large)))}


def cost_so_far(context: Context) -> dict[str, Any]:
    """Of all the networks of the study that are in the store, superseded ones too."""
    all_of_it = training_cost(context)
    return {
        "study: training seconds so far": round(sum(one.seconds for one in all_of_it), 1),
        "study: training images so far": sum(one.training_images for one in all_of_it),
    }


def plot_of_bars(rows: Sequence[tuple[str, float]], about: str, form: str = "{:,.0f}") -> dict[str, Any]:
    """{about: plot}; nothing where rows are more than one can read."""
    return {about: picture(bars(rows, about, form), about)} if 0 < len(rows) <= ROWS else {}


def numbers(said: Mapping[str, Any]) -> dict[str, int | float]:
    """Of a stage's report while it works: its numbers, how much is done and how long the rest takes."""
    found = {name.replace("_", " "): value for name, value in said.items() if isinstance(value, int | float)}
    if said.get("steps") and said.get("images_per_second"):
        left = round(seconds_left(said), 1)
        found |= {"percent done": round(100 * said["step"] / said["steps"], 1), "seconds left": left}
    return found
