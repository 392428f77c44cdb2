"""Which partition the study lives with, and what its next one is made from.

`<root>/partition/current.*.json` names it, one file for each choice of settings up to the trunk's, with the keys of its
experts in the order of the gate's numbers and the next key that was never used: a key is not given to another expert,
since Dagster shows one that comes back as materialised. A version is a hash of what an artefact is made from, so the
partition that another follows is one of its inputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from moe_core.stages.basis import current_file, read_json
from moe_core.store import Artefact, Plan, write_text

if TYPE_CHECKING:
    from moe_core.stages.context import Context

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
    def plan(self) -> Plan:
        return Plan("partition", None, self.code, self.settings, self.inputs)


def load(context: Context) -> Current | None:
    said = read_json(current_file(context, "partition"))
    return None if said is None else Current(**said)


def keys_for(now: Current | None, experts: int) -> list[str]:
    """Of the study's experts, known before they are fitted: new ones get new numbers, the smallest go first."""
    if now is None:
        return [f"e{number:03d}" for number in range(experts)]
    smallest_first = sorted(range(len(now.keys)), key=lambda number: (now.sizes[number], -number))
    gone = set(smallest_first[: max(0, len(now.keys) - experts)])
    keys = [key for number, key in enumerate(now.keys) if number not in gone]
    return keys + [f"e{now.next + more:03d}" for more in range(experts - len(keys))]


def plan(context: Context, code: str, read: Mapping[str, str]) -> Plan:
    """Of the partition, from what it would read of the posts.

    Fitted from scratch where there is none yet; the current one, or an earlier one of the same experts, where that was
    made from just this; else one that follows the current one. `how` says by what: "assign" by the frozen gate, or
    "refit" where that is asked for or the gate cannot be the same.
    """
    study, now = context.study, context.current
    settings = study.partition.model_dump()
    if now is None:
        return Plan("partition", None, code, settings, read)
    if not context.refit_is_asked:
        for earlier in _fitting(context, now, code, read):
            return earlier
    if context.store.read(context.root / "partition" / now.version) is None:  # such as after a takedown
        if context.experts != keys_for(None, len(context.experts)):
            settings["keys"] = context.experts
        return Plan("partition", None, code, settings, read)
    same_gate = now.code == code and _of_gate(now.settings) == settings and now.trunk == context.version("trunk")
    settings["how"] = "assign" if same_gate and not context.refit_is_asked else "refit"
    settings["retrain_share"] = study.repartition.retrain_share
    return Plan("partition", None, code, settings, {**read, "previous": now.version})


def _fitting(context: Context, now: Current, code: str, read: Mapping[str, str]) -> Iterator[Plan]:
    """Plans of the current partition and those before it, with the same experts, that are made from what is there."""
    share = context.study.repartition.retrain_share
    for plan, there in _line(context, now):
        before = plan.inputs.get("previous")
        can_be_made = there or before is None or context.store.read(context.root / "partition" / before) is not None
        if (
            plan.code == code
            and _of_gate(plan.settings) == context.study.partition.model_dump()
            and plan.settings.get("retrain_share", share) == share
            and {name: version for name, version in plan.inputs.items() if name != "previous"} == read
            and can_be_made
        ):
            yield plan


def _line(context: Context, now: Current) -> Iterator[tuple[Plan, bool]]:
    """(plan, whether it is made) of the current partition, then of each before it that is there with the same keys."""
    artefact = context.store.read(context.root / "partition" / now.version)
    yield now.plan, artefact is not None
    before = now.inputs.get("previous")
    while before is not None:
        artefact = context.store.read(context.root / "partition" / before)
        if artefact is None or list(artefact.metadata["members"]) != now.keys:
            return
        yield plan_of(artefact), True
        before = artefact.inputs.get("previous")


def _of_gate(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in ABOUT_HISTORY}


def plan_of(artefact: Artefact) -> Plan:
    said = json.loads((artefact.path / "artefact.json").read_text("utf-8"))
    return Plan(artefact.asset, artefact.key, said["code"], said["settings"], said["inputs"])


def settle(context: Context, artefact: Artefact) -> None:
    """The study lives with this partition from here on: said when it was made, and again whenever it is found."""
    plan, now = context.plan("partition"), load(context)
    keys = list(artefact.metadata["members"])
    numbers = [int(key[1:]) + 1 for key in keys]
    current = Current(
        version=artefact.version,
        code=plan.code,
        settings=plan.settings,
        inputs=dict(plan.inputs),
        trunk=context.version("trunk"),
        keys=keys,
        sizes=list(artefact.metadata["sizes"]),
        next=max(*numbers, now.next if now else 0),
    )
    if now != current:
        write_text(current_file(context, "partition"), json.dumps(asdict(current)))
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
