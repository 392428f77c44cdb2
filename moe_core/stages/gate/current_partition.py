"""The study's current partition, and what its next one is made from.

`<root>/partition/current.*.json` names it, one file for each choice of settings up to the trunk's, with the keys of its
experts in the order of the gate's numbers and the next key that was never used: a key is not given to another expert,
since Dagster shows one that comes back as materialized. A version is a hash of what an artifact is made from, so the
partition that another follows is one of its inputs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import PurePath
from typing import Any

from moe_core.engine.context import Context
from moe_core.engine.planner import Planner
from moe_core.engine.state import StudyState
from moe_core.errors import CorruptArtifact, MissingInput
from moe_core.stages.trunk.frozen import pointer_name, requested
from moe_core.store import pointer
from moe_core.store.artifact import Artifact, Spec
from moe_core.store.documents import Documents
from moe_core.store.layout import NAMES
from moe_core.store.protocols import ArtifactStore

NO_PARTITION = "there is no partition in the store to begin from: `hardmoe run` fits one from scratch"


@dataclass(frozen=True)
class CurrentPartition:
    """What it was made from, so that it can be made again, and its experts."""

    version: str
    code: str
    settings: Any
    inputs: Mapping[str, str]
    trunk: str
    keys: list[str]  # of experts 0, 1, ... of the gate
    sizes: list[int]  # training posts of each
    next: int  # number of the next new key

    @property
    def spec(self) -> Spec:
        return Spec("partition", None, self.code, self.settings, self.inputs)

    @classmethod
    def read(cls, documents: Documents, name: PurePath) -> CurrentPartition | None:
        """None where there is no such pointer. Raises CorruptArtifact for one that is damaged."""
        content = pointer.read(documents, name, [field.name for field in fields(cls)])
        return cls(**content) if content else None


def load(name: PurePath, store: ArtifactStore) -> CurrentPartition | None:
    """By the pointer, or by the newest partition in the store where that is damaged or gone.

    Raises CorruptArtifact for a damaged pointer where the store has no partition of these settings.
    """
    try:
        current, why = CurrentPartition.read(store.documents, name), ""
    except CorruptArtifact as error:
        current, why = None, str(error)
    current = current or _newest(store, name.name)
    if current is None and why:
        raise CorruptArtifact(
            f"{why}, and no partition of these settings is left in the store: restore the file from a backup; without "
            "one, move it away: the gate is fitted from scratch, for experts e000, e001, ..., names used before",
            store.documents.where(name),
        )
    return current


def _newest(store: ArtifactStore, file: str) -> CurrentPartition | None:
    """The newest partition that was built with these settings and that none follows."""
    partitions = store.everything("partition")
    followed = {artifact.inputs.get("previous") for artifact in partitions}
    last = [a for a in partitions if a.metadata.get("pointer") == file and a.version not in followed]
    if not last:
        return None
    keys = [key for partition in partitions for key in partition.metadata["members"]] + list(store.keys("expert"))
    used = [int(key[1:]) for key in keys if re.fullmatch(r"e\d+", key)]
    return _current(max(last, key=lambda a: a.made_at), 1 + max(used))


def _current(artifact: Artifact, following: int) -> CurrentPartition:
    return CurrentPartition(
        version=artifact.version,
        code=artifact.code,
        settings=artifact.settings,
        inputs=dict(artifact.inputs),
        trunk=artifact.metadata["trunk"],
        keys=list(artifact.metadata["members"]),
        sizes=list(artifact.metadata["sizes"]),
        next=following,
    )


def keys_for(current: CurrentPartition | None, experts: int) -> tuple[str, ...]:
    """Keys of the experts, known before they are fitted: new ones get new numbers, the smallest go first."""
    if current is None:
        return tuple(f"e{number:03d}" for number in range(experts))
    smallest_first = sorted(range(len(current.keys)), key=lambda number: (current.sizes[number], -number))
    gone = set(smallest_first[: max(0, len(current.keys) - experts)])
    keys = [key for number, key in enumerate(current.keys) if number not in gone]
    return (*keys, *(f"e{current.next + more:03d}" for more in range(experts - len(keys))))


def current_of(state: StudyState) -> CurrentPartition | None:
    """Raises CorruptArtifact where the pointer is damaged."""
    current: CurrentPartition | None = state.pointer("partition")
    return current


def resolve(planner: Planner, spec: Spec) -> Spec:
    """What the partition is to be made from, given what it would read of the posts.

    Fitted from scratch where there is none yet; the current one where that was made from just this; else one that
    follows the current one. `how` says by what: "assign" by the fitted gate, or "refit" where that is requested or the
    gate cannot be the same.
    """
    current, study = current_of(planner.state), planner.state.study
    if current is None:
        return spec
    refit, gate = "refit" in planner.state.requests, dict(spec.settings)
    built = planner.store.get("partition", None, current.version)
    trunk = planner.known("trunk").version
    same_gate = current.code == spec.code and current.settings["partition"] == gate["partition"]
    if not refit and same_gate and _is_made_from(planner, current, spec, built is not None):
        return current.spec
    if built is None:  # such as after a takedown
        experts = planner.state.experts
        keys = {"keys": list(experts)} if experts != keys_for(None, len(experts)) else {}
        return Spec("partition", None, spec.code, gate | keys, spec.inputs)
    how = "assign" if same_gate and current.trunk == trunk and not refit else "refit"
    settings = gate | {"how": how, "repartition": {"retrain_share": study.repartition.retrain_share}}
    return Spec("partition", None, spec.code, settings, {**spec.inputs, "previous": current.version})


def _is_made_from(planner: Planner, current: CurrentPartition, spec: Spec, built: bool) -> bool:
    """Whether the current partition was made from just this, and is there or can be made again."""
    read = {name: version for name, version in current.inputs.items() if name != "previous"}
    share = {"retrain_share": planner.state.study.repartition.retrain_share}
    previous = current.inputs.get("previous")
    if read != dict(spec.inputs) or current.settings.get("repartition", share) != share:
        return False
    return built or previous is None or planner.store.get("partition", None, previous) is not None


def on_commit(context: Context, artifact: Artifact) -> None:
    """Makes a partition the current one: when it was built, and again whenever it is found."""
    current = current_of(context.planner.state)
    numbers = [int(key[1:]) + 1 for key in artifact.metadata["members"]]
    following = _current(artifact, max(*numbers, current.next if current else 0))
    documents, name = context.store.documents, pointer_name(context.planner.graph, context.study, "partition")
    pointer.write(documents, name, asdict(following))
    if requested(documents, "partition") not in (None, following.version):
        pointer.remove(documents, NAMES.request("partition"))


def request_refit(context: Context) -> None:
    """Requests a new fit. Raises MissingInput where no partition is there to begin from: `run` makes one."""
    current = current_of(context.planner.state)
    if current is None or context.store.get("partition", None, current.version) is None:
        raise MissingInput(NO_PARTITION, "partition")
    pointer.write(context.store.documents, NAMES.request("partition"), {"partition": current.version})
