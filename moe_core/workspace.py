"""Opens a study: settings, graph and state become a planner, and that a context to work with.

The only place that composes them. It reads the study's files once and writes nothing.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from moe_core.data.sources.scan import ContentHashes, Shard, Unready
from moe_core.data.sources.shards import find_shards
from moe_core.data.takedowns import Takedowns
from moe_core.engine.context import Context, Report, silent
from moe_core.engine.planner import Planner
from moe_core.engine.stage import Graph
from moe_core.engine.state import StudyState
from moe_core.errors import HardmoeError
from moe_core.serving import publication
from moe_core.settings import Study
from moe_core.stages.gate import current_partition
from moe_core.stages.gate.current_partition import CurrentPartition
from moe_core.stages.graph import GRAPH
from moe_core.stages.trunk import frozen
from moe_core.store.documents import Documents
from moe_core.store.files import stamp_of
from moe_core.store.hashing import content_hash
from moe_core.store.layout import NAMES
from moe_core.store.protocols import ArtifactStore, open_store

Source = tuple[Shard, ...] | HardmoeError | OSError


def open_study(
    study: Study,
    root: Path,
    report: Report = silent,
    by: str = "a plain call",
    requests: Iterable[str] = (),
    graph: Graph = GRAPH,
    remember: bool = False,
) -> Context:
    """The study as it is now. `requests`: also "refit" or "renew", to see what they would do.

    A source or a pointer that cannot be read raises its error where it is needed, not here. Nothing is written, but
    with `remember` hashes of the source's files, so that the next one who opens the study need not read them again.
    """
    store = open_store(study, root)
    hashes = ContentHashes(store.layout.content_hashes, autosave=remember)
    state = _load_state(study, store, graph, hashes)
    if remember:
        hashes.save()
    state = replace(state, requests=state.requests | frozenset(requests))
    return Context(frozen.freeze(Planner(graph.for_study(study), state, store), study.repartition.growth), report, by)


def reopened(context: Context, study: Study | None = None) -> Context:
    """The study as it is now, opened as `context` was."""
    return open_study(study or context.study, context.root, context.report, context.by, remember=True)


def _load_state(study: Study, store: ArtifactStore, graph: Graph, hashes: ContentHashes) -> StudyState:
    """Reads the world once; `hashes`, of the source's files, learn what they may save."""
    documents, names = store.documents, _pointers(study, graph)
    now = token(study, documents, graph)  # before the rest: what comes meanwhile is read again
    takedowns = Takedowns.load(documents)
    snapshot = _or_error(lambda: frozen.load(names["trunk"], store, takedowns))
    current = _or_error(lambda: current_partition.load(names["partition"], store))
    shards, unready = _source(study, hashes)
    requests = set()
    if isinstance(snapshot, frozen.Snapshot) and frozen.requested(documents, "trunk") == snapshot.trunk:
        requests.add("renew")
    known = current if isinstance(current, CurrentPartition) else None
    if known and frozen.requested(documents, "partition") == known.version:
        requests.add("refit")
    return StudyState(
        study=study,
        token=now,
        takedowns=takedowns,
        pointers={"trunk": snapshot, "partition": current},
        requests=frozenset(requests),
        publication=_or_error(lambda: publication.read_log(documents)),
        experts=current_partition.keys_for(known, study.partition.experts),
        source=shards,
        unready=unready,
    )


def token(study: Study, documents: Documents, graph: Graph = GRAPH) -> str:
    """Changes with anything but the source's files that could change a plan; costs a few calls of the system, and one
    request of a bucket."""
    names = [NAMES.takedowns, NAMES.request("trunk"), NAMES.request("partition"), NAMES.publication]
    files = [Path(name) for name in (study.data.stop_tags, study.data.synonyms, study.trunk_setup.start) if name]
    stamps = documents.stamps([*names, *_pointers(study, graph).values()])
    return content_hash([*stamps, *(stamp_of(file) for file in files)])


def _pointers(study: Study, graph: Graph) -> dict[str, PurePath]:
    return {asset: frozen.pointer_name(graph, study, asset) for asset in ("trunk", "partition")}


def _source(study: Study, hashes: ContentHashes) -> tuple[Source, tuple[Unready, ...]]:
    unready: list[Unready] = []
    try:
        return tuple(find_shards(study.source, hashes, unready)), tuple(unready)
    except (HardmoeError, OSError) as error:
        return error, ()


def _or_error(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except HardmoeError as error:
        return error
