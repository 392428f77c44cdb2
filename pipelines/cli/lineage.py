"""Where an artifact or a figure comes from, and what depends on it: lineage."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moe_core.errors import HardmoeError
from moe_core.text import shown
from pipelines.cli.common import JSON, STUDY_OPTION, study_at, with_source
from pipelines.terminal import echo, echo_json

if TYPE_CHECKING:
    from moe_core.engine.context import Context

SIBLINGS = 12  # of one asset that are shown one by one
KINDS = {"shard": "content of the shard", "takedowns": "takedowns", "file": "file of the start", "nothing": "nothing"}


@click.command(short_help="What something was made from, and what depends on it.")
@click.argument("asset")
@STUDY_OPTION
@click.option("--version", default=None, help="Another version than the study's now; its beginning will do.")
@JSON
def lineage(asset: str, study_file: Path, version: str | None, as_json: bool) -> None:
    """The exact versions that ASSET[:KEY], or a row of the comparison table, came from, down to shards and settings;
    and what in the store was made from it.

    \b
    Example: hardmoe lineage expert:e003 --study cats/study.toml
             hardmoe lineage mixture_top1_router --study cats/study.toml --json
    """
    from moe_core.maintenance.lineage import find, place_of, report

    context = study_at(study_file)
    if version is None:
        context = with_source(context, place_of(asset)[:2])
    said = report(context, find(context, asset, version))
    if as_json:
        echo_json(said)
        return
    for line in _text(said, _files_of(context)):
        echo(shown(line, 4000))


def _files_of(context: "Context") -> dict[str, str]:
    """Path of each shard by the digest of its content, as far as the source is there."""
    try:
        return {shard.content_hash: shard.path for shard in context.shards}
    except (HardmoeError, OSError):
        return {}


def _text(said: dict[str, Any], files: dict[str, str]) -> Iterator[str]:
    nodes = {node["version"]: node for node in said["nodes"]}
    if said["figure"]:
        figures = {name: value for name, value in said["figure"].items() if name != "name"}
        yield f"{said['figure']['name']}: " + ", ".join(f"{name} {value}" for name, value in figures.items())
    yield from _tree(nodes, files, said["asked"]["version"], "", "", set())
    yield "Settings"
    for names, settings in _settings(said["nodes"]):
        yield f"  {names}: {settings}"
    yield "Depends on it" if said["dependents"] else "Nothing in the store depends on it"
    for one in said["dependents"]:
        yield f"  {_label(one)} {one['version']}" + ("" if one["direct"] else "  (through others)")
    for version, state in said["publication"].items():
        yield f"mixture {version} is " + ("published" if state == "published" else "the one published before")


def _label(node: dict[str, Any]) -> str:
    return node["asset"] if node["key"] is None else f"{node['asset']}:{node['key']}"


def _tree(
    nodes: dict[str, Any], files: dict[str, str], version: str, first: str, rest: str, seen: set[str]
) -> Iterator[str]:
    """A node, and under it what it was made from; one that was shown before is only named."""
    node = nodes[version]
    again = version in seen and bool(node["inputs"])
    seen.add(version)
    yield f"{first}{_label(node)} {version}" + ("  (see above)" if again else f"  digest {node['digest']}")
    if again:
        return
    lines = list(_lines(nodes, files, node))
    for number, (child, text) in enumerate(lines):
        last = number == len(lines) - 1
        branch, below = rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  ")
        if child is None:
            yield branch + text
        else:
            yield from _tree(nodes, files, child, branch, below, seen)


def _lines(nodes: dict[str, Any], files: dict[str, str], node: dict[str, Any]) -> Iterator[tuple[str | None, str]]:
    """(version of an artifact, "") or (None, what else it is) of each input; many of one asset are counted."""
    shown_of: dict[str, int] = {}
    versions = set()  # of a generation each cluster's members stand for the one partition
    for one in node["inputs"]:
        for version in one["of"]:
            if version in versions:
                continue
            versions.add(version)
            if version not in nodes:
                yield None, f"{one['name']} {version}  (not in the store any more)"
                continue
            asset = nodes[version]["asset"]
            shown_of[asset] = shown_of.get(asset, 0) + 1
            if shown_of[asset] <= SIBLINGS:
                yield version, ""
        if one["kind"] == "gone":
            yield None, f"{one['name']} {one['version']}  (not in the store any more)"
        elif not one["of"]:
            yield (
                None,
                " ".join(
                    filter(None, [KINDS.get(one["kind"], one["name"]), one["version"], files.get(one["version"])])
                ),
            )
    for asset, count in shown_of.items():
        if count > SIBLINGS:
            yield None, f"and {count - SIBLINGS} more of {asset} (--json has all)"


def _settings(nodes: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """(assets, their settings in a line), each different one once."""
    from moe_core.maintenance.lineage import flat

    found: dict[tuple[str, str], list[str]] = {}
    for node in nodes:
        line = " ".join(f"{name}={json.dumps(value)}" for name, value in flat(node["settings"])) or "none"
        found.setdefault((node["asset"], f"code {node['code']}, {line}"), []).append(_label(node))
    for (asset, line), names in found.items():
        yield (names[0] if len(names) == 1 else f"{asset} ({len(names)})"), line
