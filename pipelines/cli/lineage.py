"""Where an artifact or a figure comes from, and what depends on it: lineage."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from moe_core.engine.context import Context
from moe_core.errors import HardmoeError
from moe_core.maintenance.lineage import find, flat, place_of, report
from moe_core.store.artifact import name_of
from moe_core.text import shown
from pipelines.cli.common import study_at, with_source
from pipelines.cli.options import JSON, STUDY_OPTION
from pipelines.terminal import echo, echo_json

SIBLINGS = 12  # of one asset that are shown one by one
KINDS = {"shard": "content of the shard", "takedowns": "takedowns", "file": "file of the start", "nothing": "nothing"}


@click.command()
@click.argument("asset")
@STUDY_OPTION
@click.option("--version", default=None, help="Another version than the study's current one, or its beginning.")
@JSON
def lineage(asset: str, study_file: Path, version: str | None, as_json: bool) -> None:
    """The exact versions that ASSET[:KEY], or a row of the comparison table, came from, down to shards and settings;
    and what in the store was made from it.

    \b
    Example: hardmoe lineage expert:e003 --study cats/study.toml
             hardmoe lineage mixture_top1_router --study cats/study.toml --json
    """
    context = study_at(study_file)
    if version is None:
        context = with_source(context, place_of(asset)[:2])
    document = report(context, find(context, asset, version))
    if as_json:
        echo_json(document)
        return
    for line in lines_of(document, _files_of(context)):
        echo(shown(line, 4000))


def _files_of(context: Context) -> dict[str, str]:
    """Path of each shard by the hash of its content; none where the source cannot be read."""
    try:
        return {shard.content_hash: shard.path for shard in context.shards}
    except (HardmoeError, OSError):
        return {}


def lines_of(document: dict[str, Any], files: dict[str, str]) -> Iterator[str]:
    """The document of a lineage as text."""
    nodes = {node["version"]: node for node in document["nodes"]}
    if document["figure"]:
        figures = {name: value for name, value in document["figure"].items() if name != "name"}
        yield f"{document['figure']['name']}: " + ", ".join(f"{name} {value}" for name, value in figures.items())
    yield from _tree(nodes, files, document["requested"]["version"], "", "", set())
    yield "Settings"
    for names, settings in _settings(document["nodes"]):
        yield f"  {names}: {settings}"
    yield "Depends on it" if document["dependents"] else "Nothing in the store depends on it"
    for child in document["dependents"]:
        yield f"  {_label(child)} {child['version']}" + ("" if child["direct"] else "  (through others)")
    for version, state in document["publication"].items():
        yield f"mixture {version} is " + ("published" if state == "published" else "the one published before")


def _label(node: dict[str, Any]) -> str:
    return name_of(node["asset"], node["key"])


def _tree(
    nodes: dict[str, Any], files: dict[str, str], version: str, first: str, rest: str, seen: set[str]
) -> Iterator[str]:
    """A node, and under it what it was made from; a node that was shown before is only named."""
    node = nodes[version]
    again = version in seen and bool(node["inputs"])
    seen.add(version)
    yield f"{first}{_label(node)} {version}" + ("  (see above)" if again else f"  content hash {node['content_hash']}")
    if again:
        return
    lines = list(inputs_of(nodes, files, node))
    for number, (child, text) in enumerate(lines):
        last = number == len(lines) - 1
        branch, below = rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  ")
        if child is None:
            yield branch + text
        else:
            yield from _tree(nodes, files, child, branch, below, seen)


def inputs_of(nodes: dict[str, Any], files: dict[str, str], node: dict[str, Any]) -> Iterator[tuple[str | None, str]]:
    """(version of an artifact, "") or (None, what else it is) of each input; many of one asset are counted."""
    shown_of = Counter[str]()
    versions = set()  # the members of all clusters of a generation stand for one partition
    for given in node["inputs"]:
        for version in given["of"]:
            if version in versions:
                continue
            versions.add(version)
            if version not in nodes:
                yield None, f"{given['name']} {version}  (no longer in the store)"
                continue
            asset = nodes[version]["asset"]
            shown_of[asset] += 1
            if shown_of[asset] <= SIBLINGS:
                yield version, ""
        if given["kind"] == "gone":
            yield None, f"{given['name']} {given['version']}  (no longer in the store)"
        elif not given["of"]:
            words = [KINDS.get(given["kind"], given["name"]), given["version"], files.get(given["version"])]
            yield None, " ".join(filter(None, words))
    for asset, count in shown_of.items():
        if count > SIBLINGS:
            yield None, f"and {count - SIBLINGS} more of {asset} (--json has all)"


def _settings(nodes: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """(assets, their settings in a line), equal settings once."""
    users: dict[tuple[str, str], list[str]] = {}
    for node in nodes:
        line = " ".join(f"{name}={json.dumps(value)}" for name, value in flat(node["settings"])) or "none"
        users.setdefault((node["asset"], f"code {node['code']}, {line}"), []).append(_label(node))
    for (asset, line), names in users.items():
        yield (names[0] if len(names) == 1 else f"{asset} ({len(names)})"), line
