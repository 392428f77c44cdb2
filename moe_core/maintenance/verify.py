"""Whether every byte of a study's store is the one that was written. Reads all of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

from moe_core.engine.context import Context
from moe_core.errors import CorruptArtifact
from moe_core.serving import publication
from moe_core.stages.gate import current_partition
from moe_core.stages.graph import GRAPH
from moe_core.stages.trunk import frozen
from moe_core.store.artifact import Artifact
from moe_core.store.layout import NAMES
from moe_core.tables.lance_tags import lance_tag_of
from moe_core.tables.location import Table, tables_of
from moe_core.tables.versions import damage


@dataclass(frozen=True)
class Damage:
    """What is wrong, and where: an artifact, by its folder, that must be built again, or a pointer."""

    where: str
    why: str
    is_artifact: bool = True


def verify(context: Context) -> Iterator[Damage | Artifact]:
    """Every complete artifact in turn, or what is wrong with it: its files, and the rows that posts refer to. Then what
    is wrong with the pointers."""
    checked: dict[Table, dict[str, bool]] = {table: {} for table in tables_of(context.store)}
    for name, key, version in [(asset, *found) for asset in GRAPH for found in context.store.listed(asset)]:
        folder = f"{context.store.uri}/{NAMES.artifact(name, key, version).as_posix()}"
        try:
            artifact = context.store.get(name, key, version)
            assert artifact is not None
            for file in artifact.files:
                artifact.check(file)
        except CorruptArtifact as error:
            yield Damage(folder, str(error))
            continue
        lost = _lost_rows(artifact, checked) if artifact.asset == "posts" and has_rows(context, artifact) else []
        yield Damage(folder, f"{'; '.join(lost)}: delete {folder} and run again") if lost else artifact
    yield from damaged_pointers(context)


def damaged_pointers(context: Context) -> Iterator[Damage]:
    """Damaged pointers, of any settings that the study had, and a damaged log of what is published."""
    documents = context.store.documents
    for asset, read in (("trunk", frozen.Snapshot.read), ("partition", current_partition.CurrentPartition.read)):
        for name in documents.names(NAMES.asset(asset)):
            if name == NAMES.request(asset):
                continue
            try:
                read(documents, name)
            except CorruptArtifact as error:
                yield Damage(documents.where(name), _with_way_out(context, asset, name, error), False)
    try:
        publication.read_log(documents)
    except CorruptArtifact as error:
        yield Damage(documents.where(NAMES.publication), str(error), False)


def _with_way_out(context: Context, asset: str, name: PurePath, error: CorruptArtifact) -> str:
    if name != frozen.pointer_name(context.planner.graph, context.study, asset):
        return f"{error}: with the settings that it belongs to, `hardmoe run` writes it again from the store"
    current = context.planner.state.pointers[asset]  # by the store, where the file is damaged
    if isinstance(current, Exception):
        return str(current)
    if current is None:  # of a trunk that is trained again in any case
        return f"{error}: `hardmoe run` writes it again"
    version = current.trunk if isinstance(current, frozen.Snapshot) else current.version
    return f"{error}: `hardmoe run` writes it again from the store, where {asset} {version} is the newest"


def has_rows(context: Context, posts: Artifact) -> bool:
    """Whether it still has its rows: after a takedown in its shard only the record stays."""
    assert posts.key is not None
    return posts.inputs.get("takedowns", "") == context.takedowns.hash_of(posts.key)


def _lost_rows(posts: Artifact, checked: dict[Table, dict[str, bool]]) -> list[str]:
    assert posts.key is not None
    tag, counts = lance_tag_of(posts.key, posts.version), (posts.metadata["accepted"], posts.metadata["rejected"])
    return [
        why
        for (table, known), rows in zip(checked.items(), counts, strict=True)
        for why in damage(table, tag, posts.key, rows, known)
    ]
