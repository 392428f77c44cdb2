"""Why an artifact is not what the study wants now, in words: which setting, which posts, which network changed."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from moe_core.engine.context import Context
from moe_core.errors import BadSource, MissingInput
from moe_core.maintenance.lineage import Lineage
from moe_core.settings import Study
from moe_core.stages.graph import GRAPH
from moe_core.store.artifact import Artifact, Spec
from moe_core.text import shown

MOST = 4  # reasons of one artifact that are named, and shards of a reason
RETRAINED = {name for name, stage in GRAPH.items() if stage.trains and not (stage.keys or stage.on_request)}
PARTS = {name for name, stage in GRAPH.items() if stage.trains and stage.keys}  # of which an artifact names several
OTHERS = {
    "takedowns": "posts taken down",
    "shard": "its source file changed",
    "previous": "it follows another partition",
    "baseline": "another mixture was published since",
    "start": "the file of trunk_setup.start changed",
    "stop_tags": "the file of data.stop_tags changed",
    "synonyms": "the file of data.synonyms changed",
    "from": "it continues from other weights",
    "vocabulary": "vocabulary changed",
    "splits": "splits changed",
    "partition": "partition changed",
    "mixture": "mixture changed",
    "evaluation": "evaluation changed",
    "pilot": "the pilot changed",
    "shared_decoder": "decoder changed",
    "random_decoder": "decoder of the random experts changed",
}


def why_stale(context: Context, old: Artifact, spec: Spec) -> str:
    """What differs between what an artifact was made from and what it would be made from now."""
    found = list(dict.fromkeys(_reasons(context, old, spec)))
    if len(found) > 1:
        found = [reason for reason in found if reason != OTHERS["previous"]]  # it follows
    return ", ".join(found[:MOST]) + (f" and {len(found) - MOST} more" if len(found) > MOST else "")


def _reasons(context: Context, old: Artifact, spec: Spec) -> Iterator[str]:
    yield from _settings(context.study, old.settings, spec.settings)
    names = sorted(set(old.inputs) | set(spec.inputs))
    yield from _inputs(context, old, spec, [n for n in names if old.inputs.get(n) != spec.inputs.get(n)])
    if old.code != spec.code:
        yield _code(old.code, spec.code)


def _settings(study: Study, old: Any, new: Any) -> Iterator[str]:
    """Settings that differ, by their names in study.toml; not those that follow from others."""
    changed = [one for one in _changed(old, new) if one[0] not in ("how", "keys")]  # of a partition, found by planning
    with_both = [one for one in changed if None not in one]
    came = [one for one in changed if one[0] != "repartition.retrain_share"]  # which a first partition has not
    for name, before, now in with_both or came:
        if name != "evaluation.topk" or now == study.evaluation.topk:  # else it follows the number of experts
            yield f"setting {name} changed{_values(before, now)}"


def _code(then: str, now: str) -> str:
    return f"this version of hardmoe computes it in another way (code {then} then, {now} now)"


def _inputs(context: Context, old: Artifact, spec: Spec, different: list[str]) -> Iterator[str]:
    parts: dict[str, list[str]] = {}
    experts = set(context.experts)
    for name in different:
        asset, _, key = name.rpartition(" ")
        if name == "posts":
            yield from ([f"posts of {shown(spec.key)} changed"] if spec.key else _posts(context, old))
        elif name in RETRAINED:
            yield f"{name} retrained"
        elif name == "members":
            if "trunk" not in different:
                yield _members(context, spec)
        elif name == "from":
            if not {"trunk", "members"} & set(different):
                yield OTHERS[name]
        elif asset == "features":
            yield from _features(context, old, spec, key)
        elif asset in PARTS or name in experts:
            parts.setdefault(asset or _part(spec.asset), []).append(key or name)
        elif (name == "splits" and "vocabulary" in different) or (name == "partition" and parts):
            continue  # it follows
        elif name in OTHERS:
            yield OTHERS[name]
        elif name.startswith("e") and name[1:].isdigit():
            parts.setdefault(_part(spec.asset), []).append(name)  # one that the study had
        else:
            yield f"{name} changed"
    for asset, keys in parts.items():
        several = f"{len(keys)} {asset}s" if len(keys) > MOST else f"{asset}s {', '.join(keys)}"
        yield f"{several if len(keys) > 1 else f'{asset} {keys[0]}'} retrained"


def _part(asset: str) -> str:
    return "random_expert" if asset == "random_decoder" else "expert"


def _members(context: Context, spec: Spec) -> str:
    """By how much the posts of an expert changed since it was trained, where the partition knows it."""
    partition = context.find("partition")
    if partition and "churn.json" in partition.files and spec.asset in ("expert", "separate_expert"):
        experts = json.loads(partition.file("churn.json").read_text("utf-8"))["experts"]
        if spec.key in experts:
            return f"{100 * experts[spec.key]['changed']:.1f} % of its posts changed"
    return "its posts changed"  # nothing was there before that partition


def _features(context: Context, old: Artifact, spec: Spec, shard: str) -> Iterator[str]:
    if f"features {shard}" not in old.inputs:
        yield f"shard {shown(shard)} added"
    elif f"features {shard}" not in spec.inputs:
        yield f"shard {shown(shard)} removed"
    else:
        before = context.store.get("trunk_features", shard, old.inputs[f"features {shard}"])
        with suppress(MissingInput):
            if before and before.inputs.get("trunk") != context.version("trunk"):
                yield "trunk retrained"
                return
        yield f"posts of {shown(shard)} changed"


def _posts(context: Context, splits: Artifact) -> Iterator[str]:
    """Which shards differ from those that splits were made from."""
    seen: Mapping[str, str] = splits.metadata.get("snapshot") or {}
    now = {shard.key: context.version("posts", shard.key) for shard in context.shards}
    if not seen:
        yield "posts changed"
        return
    if added := [key for key in now if key not in seen]:
        yield f"{_shards(added)} added"
    if removed := [key for key in seen if key not in now]:
        yield f"{_shards(removed)} removed"
    taken_down, changed, otherwise = list[str](), list[str](), list[str]()
    for key in (key for key in now if seen.get(key, now[key]) != now[key]):
        before = context.store.get("posts", key, seen[key])
        spec = context.spec("posts", key)
        same_file = before is None or before.inputs.get("shard") == spec.inputs["shard"]
        was = before.inputs.get("takedowns") if before else None
        newly = spec.inputs.get("takedowns") not in (None, was)
        (changed if not same_file else taken_down if newly else otherwise).append(key)
    if taken_down:
        yield f"posts of {_shards(taken_down)} taken down"
    if changed:
        yield f"{_shards(changed)} changed"
    if otherwise:  # the same files, by other settings
        yield f"posts of {_shards(otherwise)} changed"


def _shards(keys: list[str]) -> str:
    if len(keys) > MOST:
        return f"{len(keys)} shards"
    return f"shard{'s' if len(keys) > 1 else ''} {', '.join(map(shown, keys))}"


def _changed(old: Any, new: Any, at: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, value before, value now) of the settings that differ."""
    if isinstance(old, dict) or isinstance(new, dict):
        old, new = old or {}, new or {}
        names = sorted(set(old) | set(new))
        return [one for n in names for one in _changed(old.get(n), new.get(n), f"{at}.{n}" if at else n)]
    return [] if json.dumps(old) == json.dumps(new) else [(at, old, new)]


def _values(before: Any, now: Any) -> str:
    """from 0.1 to 0.3, where both are short."""
    texts = [json.dumps(value) for value in (before, now)]
    return f" from {texts[0]} to {texts[1]}" if None not in (before, now) and max(map(len, texts)) <= 24 else ""


def older_than(context: Context, artifact: Artifact) -> list[str]:
    """What changed since an artifact was made: takedowns, shards, and settings and code of all that it was made from.

    Empty where nothing is known to have.
    """
    above = _above(context, artifact)
    since = [entry for entry in context.takedowns.entries.values() if entry.at.timestamp() > artifact.made_at]
    keys = sorted({key for entry in since for key in entry.shards})
    found = [f"posts of {_shards(keys)} taken down"] if keys else []
    if "splits" not in above and (new := [s.key for s in context.shards if not context.store.versions("posts", s.key)]):
        found.append(f"{_shards(new)} added")
    for name, stage in GRAPH.items():
        for old in above.get(name, []):
            with suppress(MissingInput, BadSource, OSError):  # the source is away
                if name == "splits" and old.inputs.get("posts") != context.planner.posts_snapshot:
                    found += _posts(context, old)
                now = stage.settings(context.study)
                of_stage = {table: settings for table, settings in old.settings.items() if table in now}
                found += _settings(context.study, of_stage, now)
                found += [f"{name}: {_code(old.code, stage.code)}"] if old.code != stage.code else []
    return list(dict.fromkeys(found))


def _above(context: Context, artifact: Artifact) -> dict[str, list[Artifact]]:
    """All that an artifact was made from and that is in the store, itself too, by asset."""
    lineage = Lineage(context.store)
    found: dict[str, list[Artifact]] = {}
    for version in lineage.above(artifact.version):
        one = lineage.artifact(version)
        found.setdefault(one.asset, []).append(one)
    return found
