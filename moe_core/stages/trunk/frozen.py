"""The frozen trunk: what trunk and vocabulary were trained on stays their snapshot when other shards arrive.

`<root>/trunk/current.*.json` names the current trunk and its shards, one file for each choice of settings up to the
trunk's. As long as each of these shards is there as it was, the study's trunk is that of these shards alone. It is
retrained on all shards when that is requested (`<root>/trunk/request.json`), or when training posts exceed
`repartition.growth` times those of the snapshot.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import PurePath

from moe_core.data.takedowns import Takedowns
from moe_core.engine.context import Context
from moe_core.engine.planner import Planner
from moe_core.engine.stage import Graph
from moe_core.errors import CorruptArtifact
from moe_core.settings import Study
from moe_core.store import pointer
from moe_core.store.artifact import Artifact, Spec
from moe_core.store.documents import Documents
from moe_core.store.hashing import content_hash
from moe_core.store.layout import NAMES
from moe_core.store.protocols import ArtifactStore

ABOVE = ("posts", "splits", "vocabulary", "trunk", "trunk_features")  # whose settings begin a history of their own


@dataclass(frozen=True)
class Snapshot:
    """What the current trunk was trained on."""

    trunk: str  # its version
    shards: tuple[str, ...]
    train: int  # training posts

    @classmethod
    def read(cls, documents: Documents, name: PurePath) -> Snapshot | None:
        """None where there is no such pointer. Raises CorruptArtifact for one that is damaged."""
        content = pointer.read(documents, name, [field.name for field in fields(cls)])
        return cls(content["trunk"], tuple(content["shards"]), content["train"]) if content else None


def pointer_name(graph: Graph, study: Study, asset: str) -> PurePath:
    """The document that names the current trunk, or partition, with these settings."""
    line = content_hash({name: graph[name].code_version(study) for name in ABOVE})
    return NAMES.current(asset, line)


def load(name: PurePath, store: ArtifactStore, takedowns: Takedowns) -> Snapshot | None:
    """By the pointer, or by the newest trunk in the store where that is damaged or gone.

    Raises CorruptArtifact for a damaged pointer where the store does not tell on which shards a trunk was trained; one
    that saw posts which were taken down since is trained again in any case.
    """
    try:
        if snapshot := Snapshot.read(store.documents, name):
            return snapshot
        why = ""
    except CorruptArtifact as error:
        why = str(error)
    mine = [trunk for trunk in store.everything("trunk") if trunk.metadata.get("pointer") == name.name]
    for trunk in sorted(mine, key=lambda trunk: trunk.made_at, reverse=True):
        splits = store.get("splits", None, trunk.inputs["splits"])  # which name its shards
        if splits:
            return Snapshot(trunk.version, tuple(splits.metadata["snapshot"]), splits.metadata["splits"]["train"])
    if why and not all(trunk.label in takedowns.saw for trunk in mine):
        raise CorruptArtifact(
            f"{why}, and no splits in the store tell the shards of the trunk: restore the file from a backup; without "
            "one, move it away, and trunk and vocabulary are retrained on all shards",
            store.documents.where(name),
        )
    return None


def resolve(planner: Planner, spec: Spec) -> Spec:
    """Refuses to plan another trunk while nobody can tell whether there is one. Raises CorruptArtifact."""
    planner.state.pointer("trunk")
    return spec


def freeze(planner: Planner, growth: float) -> Planner:
    """The planner with the stages of the trunk frozen, where the study keeps its trunk; decided once a plan.

    While the splits of all shards are not built, nobody knows how much the study has grown: the trunk is kept until
    then, provisionally.
    """
    state, store = planner.state, planner.store
    snapshot = state.pointers["trunk"]
    known = isinstance(snapshot, Snapshot) and not isinstance(state.source, Exception)
    if not known or "renew" in state.requests or not set(snapshot.shards) < {shard.key for shard in state.shards}:
        return planner
    frozen = Planner(planner.graph, state.restricted(frozenset(snapshot.shards)), store)
    trunk = frozen.spec("trunk")
    if not isinstance(trunk, Spec) or trunk.version != snapshot.trunk:
        return planner
    if frozen.find("vocabulary") is None or frozen.find("trunk") is None:
        return planner
    splits = planner.find("splits")
    if splits is None:
        return Planner(planner.graph, state, store, frozen, frozenset({("splits", None)}))
    if splits.metadata["splits"]["train"] >= growth * max(snapshot.train, 1):
        return planner
    return Planner(planner.graph, state, store, frozen)


def on_commit(context: Context, trunk: Artifact) -> None:
    """The trunk of all the shards that there are now becomes the current one."""
    splits = context.find("splits")
    if context.planner.frozen or splits is None:
        snapshot = context.planner.state.pointer("trunk")
    else:
        snapshot = Snapshot(trunk.version, tuple(s.key for s in context.shards), splits.metadata["splits"]["train"])
        pointer.remove(context.store.documents, NAMES.request("trunk"))
    if snapshot:
        name = pointer_name(context.planner.graph, context.study, "trunk")
        pointer.write(context.store.documents, name, asdict(snapshot))


def request_renewal(context: Context) -> bool:
    """Requests a trunk and a vocabulary of all shards; False where those of the study are that already."""
    if context.planner.frozen is None:
        return False
    wanted = {"trunk": context.planner.state.pointer("trunk").trunk}
    pointer.write(context.store.documents, NAMES.request("trunk"), wanted)
    return True


def requested(documents: Documents, asset: str) -> str | None:
    """The version that a request wants replaced, which spends it once there is another; None where there is no request.

    Raises CorruptArtifact.
    """
    try:
        request = pointer.read(documents, NAMES.request(asset), [asset])
    except CorruptArtifact as error:
        raise CorruptArtifact(f"{error}: it is only a request, delete it and request again", error.path) from None
    return request[asset] if request else None
