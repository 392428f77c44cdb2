"""Lineage: the exact versions that an artifact was made from, down to shards and settings, and what was made from it.

Read from the manifests in the store alone, so that it holds for old versions too, whatever the study is now. Versions
are unique, so an input that is the version of an artifact in the store is that artifact. Two other kinds of inputs are
hashes of what an artifact records: members of a cluster (in a partition), and a snapshot of posts (in splits).
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

from moe_core.engine.context import Context
from moe_core.errors import BadSetting, MissingInput
from moe_core.serving import publication
from moe_core.stages.evaluation.rows import ROWS
from moe_core.stages.graph import GRAPH
from moe_core.stages.mixture.promotion import NONE
from moe_core.store.artifact import Artifact, full_version, name_of
from moe_core.store.protocols import ArtifactStore

Kind = Literal["artifact", "members", "snapshot", "shard", "takedowns", "file", "nothing", "gone"]
LEAVES: dict[str, Kind] = {  # inputs that are no artifacts
    **{"shard": "shard", "takedowns": "takedowns"},
    **dict.fromkeys(("start", "stop_tags", "synonyms"), "file"),
}
EXPERT = re.compile(r"e\d+")


@dataclass(frozen=True)
class Input:
    """One input of an artifact: `version` as its manifest has it, `of` the artifacts that it stands for.

    Kind "gone": no artifact in the store has that version any more.
    """

    name: str
    kind: Kind
    version: str
    of: tuple[str, ...] = ()  # versions; those of a snapshot may be gone


@dataclass
class Lineage:
    """The manifests of a store, read when they are needed.

    Most inputs tell by their names where their artifacts lie; all folders are listed only for the others.
    """

    store: ArtifactStore
    read: dict[str, Artifact] = field(default_factory=dict)  # by version
    _inputs: dict[str, list[Input]] = field(default_factory=dict)
    _named: dict[str, tuple[str, str | None]] = field(default_factory=dict)  # asset and key of a version, built or gone

    @cached_property
    def places(self) -> dict[str, tuple[str, str | None]]:
        """Asset and key of each version, by names alone: a manifest may be damaged."""
        return {version: (name, key) for name in GRAPH for key, version in self.store.listed(name)}

    def exists(self, version: str) -> bool:
        """Whether the store has an artifact of that version; its manifest may be damaged."""
        if version in self._named:
            return self.store.exists(*self._named[version], version)
        return version in self.read or version in self.places

    def artifact(self, version: str) -> Artifact:
        """Raises MissingInput where it is not in the store, CorruptArtifact where it is damaged."""
        if version not in self.read:
            place = self._named.get(version) or self.places.get(version)
            artifact = self.store.get(*place, version) if place else None
            if artifact is None:
                raise MissingInput(f"no artifact of version {version} in {self.store.uri}")
            self.read[version] = artifact
        return self.read[version]

    def inputs(self, version: str) -> list[Input]:
        """Inputs of an artifact, in the order of its manifest."""
        if version not in self._inputs:
            artifact = self.artifact(version)
            self._inputs[version] = [self._input(artifact, name, given) for name, given in artifact.inputs.items()]
        return self._inputs[version]

    def parents(self, version: str) -> list[str]:
        """Versions that it was made from, as far as they are in the store."""
        return [parent for parent in self._inputs_of(version) if self.exists(parent)]

    def _inputs_of(self, version: str) -> list[str]:
        return list(dict.fromkeys(parent for each in self.inputs(version) for parent in each.of))

    def above(self, *versions: str, most: int = sys.maxsize) -> list[str]:
        """They and all that they were made from, each before what it was made from where an order exists.

        `most`: of each asset at most, where only the first of perhaps 10,000 shards are shown.
        """
        order: list[str] = []
        seen: set[str] = set()
        of_asset = Counter[str]()
        waiting = [(version, False) for version in versions]
        while waiting:
            current, expanded = waiting.pop()
            if expanded:
                order.append(current)
            elif current not in seen and of_asset[self._asset(current)] < most and self.exists(current):
                seen.add(current)
                of_asset[self._asset(current)] += 1
                waiting.append((current, True))
                waiting += [(parent, False) for parent in self._inputs_of(current) if parent not in seen]
        return order[::-1]

    def _asset(self, version: str) -> str:
        return self._named[version][0] if version in self._named else self.artifact(version).asset

    def below(self, version: str) -> list[tuple[str, bool]]:
        """(version, whether this is a direct input of it) of all in the store that was made from it, in graph order.

        Raises CorruptArtifact for a damaged manifest, which might be one of them.
        """
        children: dict[str, list[str]] = {}
        for child in self.places:
            for parent in self.parents(child):
                children.setdefault(parent, []).append(child)
        below, waiting = set[str](), list(children.get(version, []))
        while waiting:
            child = waiting.pop()
            if child not in below:
                below.add(child)
                waiting += children.get(child, [])
        return [(child, child in children.get(version, [])) for child in self.places if child in below]

    @cached_property
    def _partitions(self) -> list[Artifact]:
        """The oldest first."""
        found = sorted(self.store.everything("partition"), key=lambda partition: partition.made_at)
        self.read |= {partition.version: partition for partition in found}
        return found

    def _input(self, artifact: Artifact, name: str, given: str) -> Input:
        if given == NONE:
            return Input(name, "nothing", given)
        if name in LEAVES:
            return Input(name, LEAVES[name], given)
        members = name == "members" or (artifact.asset.endswith("joint_experts") and EXPERT.fullmatch(name))
        if members:
            key = artifact.key if name == "members" else name
            return Input(name, "members", given, self._with_members(artifact, str(key), given))
        if artifact.asset == "splits" and name == "posts":
            snapshot = artifact.metadata["snapshot"]
            self._named |= {version: ("posts", key) for key, version in snapshot.items()}
            return Input(name, "snapshot", given, tuple(snapshot.values()))
        if self._is_built(artifact, name, given):
            return Input(name, "artifact", given, (given,))
        return Input(name, "gone", given)

    def _is_built(self, artifact: Artifact, name: str, given: str) -> bool:
        """Looks first where the name tells, such as "trunk", "features s0", or "posts" of the same shard."""
        prefix, _, key = name.rpartition(" ")
        asset = {"features": "trunk_features", "from": artifact.asset, "previous": "partition"}.get(prefix or name)
        asset = asset or prefix or name
        if asset in GRAPH:
            own = artifact.key if GRAPH[asset].keys else None
            self._named[given] = asset, key if prefix else own
            if self.exists(given):
                return True
            del self._named[given]
        return given in self.places and given != artifact.version

    def _with_members(self, artifact: Artifact, key: str, members: str) -> tuple[str, ...]:
        """The partition that has the cluster. Of several, the first one on the artifact's own trunk: the expert was
        trained before the others existed."""
        where = "random_members" if artifact.asset.startswith("random") else "members"
        holding = [p for p in self._partitions if p.metadata.get(where, {}).get(key) == members]
        if len(holding) > 1:
            trunk = artifact.inputs.get("trunk", "")
            holding = [p for p in holding if self._trunk_of(p) == trunk] or holding
        return tuple(p.version for p in holding[:1])

    def _trunk_of(self, partition: Artifact) -> str:
        """Of its features, which all have the same; "" where none is left."""
        parents = map(self.artifact, self.parents(partition.version))
        return next((p.inputs["trunk"] for p in parents if p.asset == "trunk_features"), "")


@dataclass(frozen=True)
class Target:
    """What a name on the command line stands for."""

    asset: str
    key: str | None
    version: str
    figure: str | None = None  # row of the comparison table


def place_of(name: str) -> tuple[str, str | None, str | None]:
    """(asset, key, row) that ASSET[:KEY] or a row of the table stands for. Raises BadSetting for another name."""
    asset, _, rest = name.partition(":")
    key, figure = rest or None, None
    if asset == "evaluation" and key:
        asset, key, figure = "evaluation", None, key
    elif asset in ROWS and asset not in GRAPH:
        asset, key, figure = "evaluation", None, asset
    if figure is not None and figure not in ROWS:
        raise BadSetting(f"the table has no row {figure!r}: wanted one of {', '.join(ROWS)}")
    if asset not in GRAPH:
        raise BadSetting(f"no asset or row {asset!r}: wanted one of {', '.join(dict.fromkeys([*GRAPH, *ROWS]))}")
    stage = GRAPH[asset]
    if (key is None) != (stage.keys is None):
        wanted = asset if stage.keys is None else f"{asset}:KEY, with one of its {stage.keys}"
        raise BadSetting(f"{name} names no artifact: wanted {wanted}")
    return asset, key, figure


def find(context: Context, name: str, version: str | None = None) -> Target:
    """ASSET[:KEY] or a row of the table, at the version that the study names now or at another, by its beginning.

    Raises BadSetting for a name that is none, MissingInput for a version that is not built, with those that are.
    """
    asset, key, figure = place_of(name)
    built = [a.version for a in context.store.versions(asset, key)]
    if version is None:
        return Target(asset, key, _current(context, asset, key, built), figure)
    return Target(asset, key, full_version(version, built, name), figure)


def _current(context: Context, asset: str, key: str | None, built: list[str]) -> str:
    try:
        now = context.version(asset, key)
    except MissingInput as why:
        if not built:
            raise
        raise MissingInput(f"{why}; older versions (--version): {', '.join(built)}", why.asset, why.key) from None
    if now not in built:
        raise MissingInput(
            f"{name_of(asset, key)} {now} is not built yet: `hardmoe run`, or --version with one of "
            f"{', '.join(built) or 'none'}",
            asset,
            key,
        )
    return now


def report(context: Context, target: Target) -> dict[str, Any]:
    """The document of `hardmoe lineage --json` (docs/reference/json.md has its fields)."""
    lineage = Lineage(context.store)
    log = publication.read_log(context.store.documents)
    mixtures = {log.published: "published", log.previous: "previous"}
    below = lineage.below(target.version)
    named = [target.version, *(version for version, _ in below)]
    return {
        "study": context.study.name,
        "requested": {"asset": target.asset, "key": target.key, "version": target.version},
        "figure": None if target.figure is None else figure(lineage.artifact(target.version), target.figure),
        "nodes": [_node(lineage, version) for version in lineage.above(target.version)],
        "dependents": [_short(lineage.artifact(version)) | {"direct": direct} for version, direct in below],
        "publication": {version: mixtures[version] for version in named if version and version in mixtures},
    }


def figure(evaluation: Artifact, row: str) -> dict[str, Any]:
    """A row of the table. Raises BadSetting where this evaluation has no such row."""
    rows = {r["name"]: r for r in json.loads(evaluation.file("table.json").read_text("utf-8"))["rows"]}
    if row not in rows:
        raise BadSetting(f"this evaluation has no row {row!r}: it has {', '.join(rows)}")
    return dict(rows[row])


def _short(artifact: Artifact) -> dict[str, Any]:
    return {"asset": artifact.asset, "key": artifact.key, "version": artifact.version}


def _node(lineage: Lineage, version: str) -> dict[str, Any]:
    artifact = lineage.artifact(version)
    made = datetime.fromtimestamp(artifact.made_at, UTC).isoformat(timespec="seconds")
    return _short(artifact) | {
        "content_hash": artifact.content_hash,
        "code": artifact.code,
        "settings": artifact.settings,
        "made_at": made,
        "path": artifact.uri,
        "inputs": [
            {"name": i.name, "kind": i.kind, "version": i.version, "of": list(i.of)} for i in lineage.inputs(version)
        ],
    }


def flat(settings: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of settings."""
    if isinstance(settings, dict):
        for name, value in settings.items():
            yield from flat(value, f"{at}.{name}" if at else name)
    elif at:
        yield at, settings
