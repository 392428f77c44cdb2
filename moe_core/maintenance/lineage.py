"""Lineage: the exact versions that an artifact was made from, down to shards and settings, and what was made from it.

Read from the manifests in the store alone, so that it holds for old versions too, whatever the study says now. Versions
are unique, so an input that is the version of an artifact in the store is that artifact; of the others, two are digests
of something that an artifact here holds: members of a cluster (in a partition), and a snapshot of posts (in splits).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from moe_core.engine.context import Context
from moe_core.stages.mixture.promote import NONE
from moe_core.store.artifact import Artifact, full_version
from moe_core.store.store import Store

Kind = Literal["artifact", "members", "snapshot", "shard", "takedowns", "file", "nothing", "gone"]
LEAVES: dict[str, Kind] = {"shard": "shard", "forgotten": "takedowns", "start": "file"}  # inputs that are no artifacts
EXPERT = re.compile(r"e\d+")


@dataclass(frozen=True)
class Input:
    """One input of an artifact: `version` as its manifest has it, `of` the artifacts that it stands for.

    `gone` is what is no artifact in the store any more, nor anything else that is known here.
    """

    name: str
    kind: Kind
    version: str
    of: tuple[str, ...] = ()  # versions; those of a snapshot may be gone


@dataclass
class Lineage:
    """The manifests of a store, read as they are asked for."""

    store: Store
    _read: dict[str, Artifact] = field(default_factory=dict)
    _inputs: dict[str, list[Input]] = field(default_factory=dict)

    @cached_property
    def places(self) -> dict[str, Path]:
        """Folder of each version, by names alone: a manifest may be damaged still."""
        from moe_core.stages.graph import GRAPH

        found: dict[str, Path] = {}
        for name, stage in GRAPH.items():
            folders = [self.store.folder(name, None)]
            if stage.keys is not None:
                folders = _folders(folders[0])
            for folder in folders:
                found |= {path.name: path for path in _folders(folder) if (path / "artifact.json").is_file()}
        return found

    def artifact(self, version: str) -> Artifact:
        """Raises ValueError where it is not in the store, or damaged."""
        if version not in self._read:
            artifact = self.store.read(self.places[version]) if version in self.places else None
            if artifact is None:
                raise ValueError(f"no artifact of version {version} in {self.store.root}")
            self._read[version] = artifact
        return self._read[version]

    def inputs(self, version: str) -> list[Input]:
        """Of an artifact, by name."""
        if version not in self._inputs:
            artifact = self.artifact(version)
            self._inputs[version] = [self._input(artifact, name, said) for name, said in artifact.inputs.items()]
        return self._inputs[version]

    def parents(self, version: str) -> list[str]:
        """Versions in the store."""
        named = (parent for each in self.inputs(version) for parent in each.of)
        return [parent for parent in dict.fromkeys(named) if parent in self.places]

    def above(self, version: str) -> list[str]:
        """It and all that it was made from, each before what it was made from where that can be."""
        order: list[str] = []
        seen: set[str] = set()
        waiting = [(version, False)]
        while waiting:
            one, left = waiting.pop()
            if left:
                order.append(one)
            elif one not in seen:
                seen.add(one)
                waiting.append((one, True))
                waiting += [(parent, False) for parent in self.parents(one) if parent not in seen]
        return order[::-1]

    def below(self, version: str) -> list[tuple[str, bool]]:
        """(version, whether it names this one itself) of all in the store that was made from it, in the graph's order.

        Raises ValueError for a damaged manifest, which might be one of them.
        """
        children: dict[str, list[str]] = {}
        for one in self.places:
            for parent in self.parents(one):
                children.setdefault(parent, []).append(one)
        found, waiting = set[str](), list(children.get(version, []))
        while waiting:
            one = waiting.pop()
            if one not in found:
                found.add(one)
                waiting += children.get(one, [])
        return [(one, one in children.get(version, [])) for one in self.places if one in found]

    @cached_property
    def _partitions(self) -> list[Artifact]:
        """The oldest first."""
        return [
            self.artifact(v) for v, path in sorted(self.places.items(), key=_age) if path.parent.name == "partition"
        ]

    def _input(self, artifact: Artifact, name: str, said: str) -> Input:
        if said in self.places and said != artifact.version:
            return Input(name, "artifact", said, (said,))
        if said == NONE:
            return Input(name, "nothing", said)
        if name in LEAVES:
            return Input(name, LEAVES[name], said)
        members = name == "members" or (artifact.asset.endswith("joint_experts") and EXPERT.fullmatch(name))
        if members:
            key = artifact.key if name == "members" else name
            return Input(name, "members", said, self._with_members(artifact, str(key), said))
        if artifact.asset == "splits" and name == "posts":
            return Input(name, "snapshot", said, tuple(artifact.metadata["snapshot"].values()))
        return Input(name, "gone", said)

    def _with_members(self, artifact: Artifact, key: str, said: str) -> tuple[str, ...]:
        """The partition whose cluster it is. Where several have it, the first one on the artifact's own trunk: the
        expert was trained before there was another."""
        where = "random_members" if artifact.asset.startswith("random") else "members"
        holding = [p for p in self._partitions if p.metadata.get(where, {}).get(key) == said]
        trunk = artifact.inputs.get("trunk", "")
        own = [p for p in holding if trunk in self._trunks_of(p)]
        return tuple(p.version for p in (own or holding)[:1])

    def _trunks_of(self, partition: Artifact) -> set[str]:
        features = (v for v in partition.inputs.values() if v in self.places)
        return {self.artifact(v).inputs.get("trunk", "") for v in features}


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return [p for p in sorted(path.iterdir()) if not p.name.startswith(".") and p.is_dir()]


def _age(place: tuple[str, Path]) -> float:
    return (place[1] / "artifact.json").stat().st_mtime


@dataclass(frozen=True)
class Asked:
    """What a name on the command line stands for."""

    asset: str
    key: str | None
    version: str
    figure: str | None = None  # row of the comparison table


def place_of(name: str) -> tuple[str, str | None, str | None]:
    """(asset, key, row) that ASSET[:KEY] or a row of the table stands for. Raises ValueError where there is no such."""
    from moe_core.stages.evaluation.rows import ROWS
    from moe_core.stages.graph import GRAPH

    asset, _, rest = name.partition(":")
    key, figure = rest or None, None
    if asset == "evaluation" and key:
        asset, key, figure = "evaluation", None, key
    elif asset in ROWS and asset not in GRAPH:
        asset, key, figure = "evaluation", None, asset
    if figure is not None and figure not in ROWS:
        raise ValueError(f"the table has no row {figure!r}: wanted one of {', '.join(ROWS)}")
    if asset not in GRAPH:
        raise ValueError(f"no asset or row {asset!r}: wanted one of {', '.join(dict.fromkeys([*GRAPH, *ROWS]))}")
    stage = GRAPH[asset]
    if (key is None) != (stage.keys is None):
        wanted = asset if stage.keys is None else f"{asset}:KEY, with one of its {stage.keys}"
        raise ValueError(f"{name} names no artifact: wanted {wanted}")
    return asset, key, figure


def find(context: Context, name: str, version: str | None = None) -> Asked:
    """ASSET[:KEY] or a row of the table, at the version that the study names now or at another, by its beginning.

    Raises ValueError for a name or version that is not there, with those that are.
    """
    asset, key, figure = place_of(name)
    there = [a.version for a in context.store.versions(asset, key)]
    if version is None:
        return Asked(asset, key, _current(context, asset, key, there), figure)
    return Asked(asset, key, full_version(version, there, name), figure)


def _current(context: Context, asset: str, key: str | None, there: list[str]) -> str:
    try:
        now = context.version(asset, key)
    except ValueError as why:
        if not there:
            raise
        raise ValueError(f"{why}; of older ones (--version) there are {_listed(there)}") from None
    if now not in there:
        name = asset if key is None else f"{asset}:{key}"
        raise ValueError(f"{name} {now} is not made yet: `hardmoe run`, or --version with one of {_listed(there)}")
    return now


def _listed(there: list[str]) -> str:
    return ", ".join(there) or "none"


def report(context: Context, asked: Asked) -> dict[str, Any]:
    """The document of `hardmoe lineage --json` (docs/reference/json.md has its fields)."""
    from moe_core.serving.publication import load

    lineage = Lineage(context.store)
    book = load(context.root)
    mixtures = {book.published: "published", book.previous: "previous"}
    below = lineage.below(asked.version)
    return {
        "study": context.study.name,
        "asked": {"asset": asked.asset, "key": asked.key, "version": asked.version},
        "figure": None if asked.figure is None else figure(lineage.artifact(asked.version), asked.figure),
        "nodes": [_node(lineage, one) for one in lineage.above(asked.version)],
        "dependents": [_short(lineage.artifact(one)) | {"direct": direct} for one, direct in below],
        "publication": {v: mixtures[v] for v in (asked.version, *(one for one, _ in below)) if v and v in mixtures},
    }


def figure(evaluation: Artifact, row: str) -> dict[str, Any]:
    """A row of the table. Raises ValueError where this evaluation has it not."""
    import json

    rows = json.loads(evaluation.file("table.json").read_text("utf-8"))["rows"]
    for one in rows:
        if one["name"] == row:
            return dict(one)
    raise ValueError(f"this evaluation has no row {row!r}: it has {', '.join(one['name'] for one in rows)}")


def _short(artifact: Artifact) -> dict[str, Any]:
    return {"asset": artifact.asset, "key": artifact.key, "version": artifact.version}


def _node(lineage: Lineage, version: str) -> dict[str, Any]:
    artifact = lineage.artifact(version)
    made = datetime.fromtimestamp(_age((version, artifact.path)), UTC).isoformat(timespec="seconds")
    return _short(artifact) | {
        "digest": artifact.content_hash,
        "code": artifact.code,
        "settings": artifact.settings,
        "made_at": made,
        "path": str(artifact.path),
        "inputs": [
            {"name": i.name, "kind": i.kind, "version": i.version, "of": list(i.of)} for i in lineage.inputs(version)
        ],
    }


def label(artifact: Artifact) -> str:
    return artifact.asset if artifact.key is None else f"{artifact.asset}:{artifact.key}"


def flat(settings: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of settings."""
    if isinstance(settings, dict):
        for name, value in settings.items():
            yield from flat(value, f"{at}.{name}" if at else name)
    elif at:
        yield at, settings
