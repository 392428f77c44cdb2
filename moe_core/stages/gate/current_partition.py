"""Which partition the study lives with, and what its next one is made from.

`<root>/partition/current.*.json` names it, one file for each choice of settings up to the trunk's, with the keys of its
experts in the order of the gate's numbers and the next key that was never used: a key is not given to another expert,
since Dagster shows one that comes back as materialized. A version is a hash of what an artifact is made from, so the
partition that another follows is one of its inputs.

The file has a seal. One that is damaged or gone is written again from the store: the newest partition of these
settings, and for the next key one that no partition or expert in the store has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_core.stages.trunk.frozen import ABOVE, current_file, read_json, read_sealed, write_current
from moe_core.store.artifact import Artifact, Spec
from moe_core.store.files import write_text
from moe_core.store.hashing import content_hash

if TYPE_CHECKING:
    from moe_core.engine.context import Context

REQUEST = "partition/request.json"
ABOUT_HISTORY = {"retrain_share", "how", "keys"}  # settings that are not those of the gate


@dataclass(frozen=True)
class Current:
    """The partition of the study: what it was planned from, so that it can be made again, and its experts."""

    version: str
    code: str
    settings: Any
    inputs: Mapping[str, str]
    trunk: str
    keys: list[str]  # of experts 0, 1, ... of the gate
    sizes: list[int]  # training posts of each
    next: int  # number of the next new key

    @property
    def plan(self) -> Spec:
        return Spec("partition", None, self.code, self.settings, self.inputs)


def read_current(path: Path) -> Current | None:
    """None where there is no such file. Raises ValueError for one that is damaged."""
    said = read_sealed(path, [field.name for field in fields(Current)])
    if said is None:
        return None
    now = Current(**said)
    try:
        if now.plan.version == now.version:
            return now
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{path} is damaged (its version is not that of what it says)")


def load(context: Context) -> Current | None:
    """By the file, or by the store where that is damaged or gone; None where there is no partition yet.

    Raises ValueError for a damaged file where the store has no partition of these settings.
    """
    try:
        found, why = read_current(current_file(context, "partition")), ""
    except ValueError as error:
        found, why = None, str(error)
    found = found or _rebuilt(context)
    if found is None and why:
        raise ValueError(
            f"{why}, and no partition of these settings is left in the store: restore the file from a backup; without "
            "one, move it away: the gate is fitted from scratch, for experts e000, e001, ..., names used before"
        )
    return found


def _rebuilt(context: Context) -> Current | None:
    """Of the newest partition of the study's line that none follows."""
    everything = context.store.everything("partition")
    mine = [artifact for artifact in everything if _is_of_line(context, artifact)]
    if not mine:
        return None
    followed = {artifact.inputs.get("previous") for artifact in mine}
    newest = max((a for a in mine if a.version not in followed), key=lambda a: a.made_at)
    plan = plan_of(newest)
    return Current(
        version=newest.version,
        code=plan.code,
        settings=plan.settings,
        inputs=dict(plan.inputs),
        trunk=_trunk_of(newest, _features_of(context, newest)),
        keys=list(newest.metadata["members"]),
        sizes=list(newest.metadata["sizes"]),
        next=1 + max(_numbers_used(context, everything)),
    )


def _trunk_of(partition: Artifact, features: list[Artifact]) -> str:
    """Version of the trunk whose features it was fitted on."""
    if features:
        return features[0].inputs.get("trunk", "")
    if "gate.safetensors" not in partition.files:
        return ""
    from moe_core.weights import read_about

    return read_about(partition.file("gate.safetensors"))["trunk"]


def _features_of(context: Context, partition: Artifact) -> list[Artifact]:
    """Those that are in the store."""
    keys = [(name.removeprefix("features "), version) for name, version in _read(plan_of(partition)).items()]
    found = (context.store.read(context.root / "trunk_features" / key / version) for key, version in keys)
    return [artifact for artifact in found if artifact]


def _is_of_line(context: Context, partition: Artifact) -> bool:
    """Whether its trunk, and what is in the store of that which the two were made from, has the study's settings."""
    from moe_core.stages.graph import GRAPH

    features = _features_of(context, partition)
    trunk = context.store.read(context.root / "trunk" / _trunk_of(partition, features))
    if trunk is None:
        return False
    above = [context.store.read(context.root / name / trunk.inputs.get(name, "")) for name in ("splits", "vocabulary")]
    snapshot = above[0].metadata.get("snapshot", {}) if above[0] else {}
    above += [context.store.read(context.root / "posts" / key / version) for key, version in snapshot.items()]
    wanted = {name: (GRAPH[name].code, content_hash(GRAPH[name].settings(context.study))) for name in ABOVE}
    return all((one.code, content_hash(one.settings)) == wanted[one.asset] for one in (trunk, *features, *above) if one)


def _numbers_used(context: Context, partitions: list[Artifact]) -> Iterator[int]:
    """Of all experts that the store knows."""
    keys = [key for partition in partitions for key in partition.metadata["members"]]
    keys += [path.name for path in (context.root / "expert").glob("e*")]
    yield from (int(key[1:]) for key in keys if re.fullmatch(r"e\d+", key))


def keys_for(now: Current | None, experts: int) -> list[str]:
    """Of the study's experts, known before they are fitted: new ones get new numbers, the smallest go first."""
    if now is None:
        return [f"e{number:03d}" for number in range(experts)]
    smallest_first = sorted(range(len(now.keys)), key=lambda number: (now.sizes[number], -number))
    gone = set(smallest_first[: max(0, len(now.keys) - experts)])
    keys = [key for number, key in enumerate(now.keys) if number not in gone]
    return keys + [f"e{now.next + more:03d}" for more in range(experts - len(keys))]


def plan(context: Context, code: str, read: Mapping[str, str]) -> Spec:
    """Of the partition, from what it would read of the posts.

    Fitted from scratch where there is none yet; the current one, or an earlier one of the same experts, where that was
    made from just this (`_taken_up`); else one that follows the current one. `how` says by what: "assign" by the
    frozen gate, or "refit" where that is asked for or the gate cannot be the same.
    """
    study, now = context.study, context.current
    settings = study.partition.model_dump()
    if now is None:
        return Spec("partition", None, code, settings, read)
    if not context.refit_is_asked and (found := _taken_up(context, now, code, read)):
        return found
    if context.store.read(context.root / "partition" / now.version) is None:  # such as after a takedown
        if context.experts != keys_for(None, len(context.experts)):
            settings["keys"] = context.experts
        return Spec("partition", None, code, settings, read)
    same_gate = now.code == code and _of_gate(now.settings) == settings and now.trunk == context.version("trunk")
    settings["how"] = "assign" if same_gate and not context.refit_is_asked else "refit"
    settings["retrain_share"] = study.repartition.retrain_share
    return Spec("partition", None, code, settings, {**read, "previous": now.version})


def _taken_up(context: Context, now: Current, code: str, read: Mapping[str, str]) -> Spec | None:
    """Of the current partition and those before it with the same experts, the latest that is made from what is there.

    Looked for no further back than the first that differs in nothing but the threshold, and the first that was fitted
    again because somebody asked: that is not undone by the way.
    """
    share, gate = context.study.repartition.retrain_share, context.study.partition.model_dump()
    for plan, there in _line(context, now):
        before = plan.inputs.get("previous")
        artifact = None if before is None else context.store.read(context.root / "partition" / before)
        same_gate = plan.code == code and _of_gate(plan.settings) == gate
        if same_gate and _read(plan) == dict(read) and (there or before is None or artifact is not None):
            if plan.settings.get("retrain_share", share) == share:
                return plan
            if there:
                return None
        if artifact is None or _was_asked_for(plan, plan_of(artifact)):
            return None
    return None


def _read(plan: Spec) -> dict[str, str]:
    """What it read of the posts."""
    return {name: version for name, version in plan.inputs.items() if name != "previous"}


def _was_asked_for(plan: Spec, before: Spec) -> bool:
    """Whether it was fitted again although code, settings of the gate and the trunk (by features) were the same."""
    same_gate = plan.code == before.code and _of_gate(plan.settings) == _of_gate(before.settings)
    same_trunk = any(before.inputs.get(name) == version for name, version in _read(plan).items() if name != "splits")
    return plan.settings.get("how") == "refit" and same_gate and same_trunk


def goes_back(context: Context) -> str:
    """Says so where the study takes up an earlier partition in the current one's place; else ""."""
    try:
        return _said_back(context, context.current, context.version("partition"))
    except ValueError:  # something must be made first
        return ""


def went_back(context: Context, before: Current | None) -> str:
    """The same after a run, by the partition that was the current one `before` it."""
    return _said_back(context, before, context.current.version if context.current else "")


def _said_back(context: Context, now: Current | None, version: str) -> str:
    if now is None or version == now.version or version not in {plan.version for plan, _ in _line(context, now)}:
        return ""
    return f"goes back to partition {version} from {now.version}: it was made from just these posts and settings"


def _line(context: Context, now: Current) -> Iterator[tuple[Spec, bool]]:
    """(plan, whether it is made) of the current partition, then of each before it that is there with the same keys."""
    artifact = context.store.read(context.root / "partition" / now.version)
    yield now.plan, artifact is not None
    before = now.inputs.get("previous")
    while before is not None:
        artifact = context.store.read(context.root / "partition" / before)
        if artifact is None or list(artifact.metadata["members"]) != now.keys:
            return
        yield plan_of(artifact), True
        before = artifact.inputs.get("previous")


def _of_gate(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in ABOUT_HISTORY}


def plan_of(artifact: Artifact) -> Spec:
    said = json.loads((artifact.path / "artifact.json").read_text("utf-8"))
    return Spec(artifact.asset, artifact.key, said["code"], said["settings"], said["inputs"])


def settle(context: Context, artifact: Artifact) -> None:
    """The study lives with this partition from here on: said when it was made, and again whenever it is found."""
    plan, now = context.plan("partition"), load(context)
    keys = list(artifact.metadata["members"])
    numbers = [int(key[1:]) + 1 for key in keys]
    current = Current(
        version=artifact.version,
        code=plan.code,
        settings=plan.settings,
        inputs=dict(plan.inputs),
        trunk=context.version("trunk"),
        keys=keys,
        sizes=list(artifact.metadata["sizes"]),
        next=max(*numbers, now.next if now else 0),
    )
    write_current(current_file(context, "partition"), asdict(current))
    asked = read_json(context.root / REQUEST)
    if asked and asked["partition"] != current.version:
        (context.root / REQUEST).unlink(missing_ok=True)


def ask_to_refit(context: Context) -> None:
    """Asks for a new fit. Raises ValueError where there is no partition yet, so that `run` makes the first."""
    now = load(context)
    if now is None:
        raise ValueError("there is no partition yet to begin from: `hardmoe run` makes the first")
    write_text(context.root / REQUEST, json.dumps({"partition": now.version}))


def is_refit_asked(context: Context) -> bool:
    """A request names the partition that it is to replace, so that it is spent when there is another."""
    asked, now = read_json(context.root / REQUEST), context.current
    return now is not None and ("refit" in context.asked or (asked is not None and asked["partition"] == now.version))
