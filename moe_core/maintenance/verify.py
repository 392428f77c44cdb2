"""Whether every byte of a study's store is the one that was written. Reads all of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moe_core.engine.context import Context
from moe_core.errors import CorruptArtifact
from moe_core.serving import publication
from moe_core.stages.data.rows import DATA_SETS
from moe_core.stages.gate import current_partition
from moe_core.stages.trunk import frozen
from moe_core.store.artifact import Artifact


@dataclass(frozen=True)
class Damage:
    """What is wrong, and the folder of the artifact that has to be made again, or a file that is none's."""

    folder: Path
    why: str


def verify(context: Context) -> Iterator[Damage | Artifact]:
    """Every complete artifact in turn, or what is wrong with it: its files, and the rows that posts point at. Then what
    is wrong with files that say what the study lives with, and which mixture is published."""
    from moe_core.stages.graph import GRAPH

    checked: dict[str, dict[str, bool]] = {name: {} for name in DATA_SETS}
    for name in GRAPH:
        for manifest in sorted((context.root / name).rglob("artifact.json")):
            folder = manifest.parent
            if any(part.startswith(".") for part in folder.relative_to(context.root).parts):
                continue
            try:
                artifact = context.store.read(folder)
                assert artifact is not None
                for file in artifact.files:
                    artifact.file(file)
            except ValueError as error:
                yield Damage(folder, str(error))
                continue
            lost = _lost_rows(context, artifact, checked) if name == "posts" and has_rows(context, artifact) else []
            yield Damage(folder, f"{'; '.join(lost)}: delete {folder} and run again") if lost else artifact
    yield from damaged_files(context)


def damaged_files(context: Context) -> Iterator[Damage]:
    """Damaged pointers, of any settings that the study had, and a damaged log of what is published."""
    for asset, read in (("trunk", frozen.Snapshot.read), ("partition", current_partition.CurrentPartition.read)):
        for path in sorted((context.root / asset).glob("current.*.json")):
            try:
                read(path)
            except CorruptArtifact as error:
                yield Damage(path, _with_way_out(context, asset, path, error))
    try:
        publication.load(context.root)
    except ValueError as error:
        yield Damage(context.root / publication.FILE, str(error))


def _with_way_out(context: Context, asset: str, path: Path, error: CorruptArtifact) -> str:
    if path != frozen.pointer_file(context.planner.graph, context.study, context.root, asset):
        return f"{error}: with the settings that it belongs to, `hardmoe run` writes it again from the store"
    current = context.planner.state.pointers[asset]  # by the store, where the file is damaged
    if isinstance(current, Exception):
        return str(current)
    if current is None:  # of a trunk that is trained again in any case
        return f"{error}: `hardmoe run` writes it again"
    version = current.trunk if isinstance(current, frozen.Snapshot) else current.version
    return f"{error}: `hardmoe run` writes it again from the store, where {asset} {version} is the newest"


def has_rows(context: Context, posts: Artifact) -> bool:
    """Whether it has its rows still: where posts of its shard were forgotten since, only the record stays."""
    assert posts.key is not None
    return posts.inputs.get("forgotten", "") == context.takedowns.hash_of(posts.key)


def _lost_rows(context: Context, artifact: Artifact, checked: dict[str, dict[str, bool]]) -> list[str]:
    from moe_core.tables import damage, lance_tag_of

    assert artifact.key is not None
    found = []
    for name, said in zip(DATA_SETS, ("accepted", "rejected"), strict=True):
        lance_tag = lance_tag_of(artifact.key, artifact.version)
        found += damage(context.root / name, lance_tag, artifact.key, artifact.metadata[said], checked[name])
    return found
