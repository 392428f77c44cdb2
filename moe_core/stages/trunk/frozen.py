"""The basis: the shards that the trunk and its vocabulary were made from, which are kept when other shards arrive.

`<root>/trunk/current.*.json` names the trunk and its shards, one file for each choice of settings up to the trunk's:
who goes back to earlier settings finds what was kept with them. As long as each shard is there as it was, the study's
trunk is that of these shards alone. It is made anew from all shards when that is asked for (`<root>/trunk/renew.json`),
or when the study has outgrown it: [repartition] growth and new_tags.

The file has a seal. One that is damaged or gone is written again from the store, where the store tells what it said.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_core.store.artifact import Artifact
from moe_core.store.files import write_text
from moe_core.store.hashing import content_hash, with_checksum, without_checksum

if TYPE_CHECKING:
    from moe_core.engine.context import Context

RENEW, GROWTH = "trunk/renew.json", "trunk/growth.json"
FIELDS = ("trunk", "shards", "train")  # of the file
ABOVE = ("posts", "splits", "vocabulary", "trunk", "trunk_features")  # whose settings begin a history of their own


@dataclass(frozen=True)
class Growth:
    """What came since the basis."""

    posts: float  # training posts of all shards, as a multiple of those of the basis
    new_tags: float  # hashtags that all shards would add to the vocabulary, as a share of it


def current_file(context: Context, asset: str) -> Path:
    """Where it is written which trunk, or partition, the study lives with."""
    from moe_core.stages.graph import GRAPH

    line = content_hash({name: GRAPH[name].code_version(context.study) for name in ABOVE})
    return context.root / asset / f"current.{line}.json"


def read_current(path: Path) -> dict[str, Any] | None:
    """What it says of the trunk; None where there is no such file. Raises ValueError for one that is damaged."""
    return read_sealed(path, FIELDS)


def read_sealed(path: Path, names: Collection[str]) -> dict[str, Any] | None:
    """Values of these names; None where there is no such file. One of before there were seals is read, too.

    Raises ValueError for one that is damaged.
    """
    try:
        said = json.loads(path.read_text("utf-8"))
        if "checksum" in said:
            said = without_checksum(said)
        if set(said) != set(names):
            raise ValueError(f"it has {', '.join(said)}; wanted {', '.join(names)}")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error})") from None
    return dict(said)


def write_current(path: Path, said: Mapping[str, Any]) -> None:
    """Replaces a file that says something else, or has no seal, in one move."""
    text = json.dumps(with_checksum(said))
    with suppress(OSError, UnicodeDecodeError):
        if path.read_text("utf-8") == text:
            return
    write_text(path, text)


def load(context: Context) -> dict[str, Any] | None:
    """What the study is based on: by the file, or by the store where that is damaged or gone; None: on nothing yet.

    Raises ValueError for a damaged file where the store does not tell which shards a trunk was made from.
    """
    path = current_file(context, "trunk")
    try:
        said, why = read_current(path), ""
    except ValueError as error:
        said, why = None, str(error)
    return said or _rebuilt(context, why)


def _rebuilt(context: Context, why: str) -> dict[str, Any] | None:
    """By the newest trunk that the study would make of shards which are there."""
    from moe_core.maintenance.takedown import network_name
    from moe_core.stages.graph import GRAPH

    like = content_hash(GRAPH["trunk"].settings(context.study))
    newest_first = sorted(context.store.everything("trunk"), key=lambda a: a.made_at, reverse=True)
    unclear = []
    for artifact in newest_first:
        splits = context.store.read(context.root / "splits" / artifact.inputs.get("splits", ""))
        seen = splits.metadata.get("snapshot", {}) if splits else {}
        shards = [shard for shard in context.shards if shard.key in seen]
        if splits and seen and len(shards) == len(seen):
            with suppress(ValueError):  # such as weights to start from that are gone
                if context.view(shards).version("trunk") == artifact.version:
                    train = splits.metadata["splits"]["train"]
                    return {"trunk": artifact.version, "shards": list(seen), "train": train}
        saw_forgotten = network_name("trunk", None, artifact.version) in context.forgotten.saw
        if not seen and not saw_forgotten and content_hash(artifact.settings) == like:
            unclear.append(artifact.version)
    if why and unclear:
        raise ValueError(
            f"{why}, and splits of trunk {unclear[0]}, which would tell its shards, are not in the store: restore the "
            "file from a backup; without one, move it away, and trunk and vocabulary are made anew"
        )
    return None


def view_of(context: Context) -> Context | None:
    """The study with only the shards that its trunk was made from; None where there is no such trunk to be kept."""
    said = load(context)
    shards = [shard for shard in context.shards if said and shard.key in said["shards"]]
    if said is None or len(shards) < len(said["shards"]) or len(shards) == len(context.shards):
        return None
    if is_renewal_asked(context):
        return None
    view = context.view(shards)
    try:
        if view.version("trunk") != said["trunk"] or any(view.find(name) is None for name in ("vocabulary", "trunk")):
            return None
    except ValueError:  # such as a file of weights to start from that is gone: the study itself will say so
        return None
    return view


def keeps(context: Context, view: Context) -> bool | None:
    """Whether the study still lives with the trunk of `view`; None as long as its splits are not made."""
    if context.find("splits") is None:
        return None
    grown, limits = growth(context, view), context.study.repartition
    return grown.posts < limits.growth and grown.new_tags <= limits.new_tags


def growth(context: Context, view: Context) -> Growth:
    """Counts once what came, and remembers it."""
    from moe_core.stages.data.vocabulary import choose
    from moe_core.stages.reading import vocabulary

    of = content_hash([view.version("trunk"), context.version("splits")])
    with suppress(ValueError, KeyError):  # damaged: counted again
        if (memo := read_json(context.root / GROWTH)) and memo["of"] == of:
            return Growth(memo["posts"], memo["new_tags"])
    said = load(context)
    assert said is not None
    train = context.need("splits").metadata["splits"]["train"]
    there = set(vocabulary(view).lookup())
    with tempfile.TemporaryDirectory() as scratch:
        now, _, _, _ = choose(context, Path(scratch))
    new = [tag for tag in now["tag"].to_list() if tag not in there]
    found = Growth(train / max(said["train"], 1), len(new) / max(view.need("vocabulary").metadata["hashtags"], 1))
    write_text(context.root / GROWTH, json.dumps({"of": of} | asdict(found)))
    return found


def settle(context: Context, artifact: Artifact) -> None:
    """The trunk of all the shards that there are now is what the study is based on from here on."""
    splits = context.find("splits")
    if context.basis is not context or splits is None:
        if said := load(context):
            write_current(current_file(context, "trunk"), said)
        return
    said = {
        "trunk": artifact.version,
        "shards": [shard.key for shard in context.shards],
        "train": splits.metadata["splits"]["train"],
    }
    write_current(current_file(context, "trunk"), said)
    (context.root / RENEW).unlink(missing_ok=True)


def ask_to_renew(context: Context) -> bool:
    """Asks for a trunk and a vocabulary of all shards; False where those of the study are that already."""
    view = view_of(context)
    if view is None:
        return False
    write_text(context.root / RENEW, json.dumps({"trunk": view.version("trunk")}))
    return True


def is_renewal_asked(context: Context) -> bool:
    """A request names the trunk that it is to replace, so that it is spent when there is another."""
    if "renew" in context.asked:
        return True
    asked, said = read_json(context.root / RENEW), load(context)
    return asked is not None and said is not None and asked["trunk"] == said["trunk"]


def read_json(path: Path) -> dict[str, Any] | None:
    """A request; None where there is no such file. Raises ValueError for one that is damaged."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not what was written there: it is but a request, delete it and ask again")
    return found
