"""Mark: which artifacts a study still needs, by its graph and by what it names now. `sweep` removes the others.

May be killed at any point and started again.
"""

from collections.abc import Collection, Iterator
from contextlib import ExitStack

from moe_core.engine.context import Context
from moe_core.engine.planner import Blocked
from moe_core.errors import BadSetting, LockHeld
from moe_core.maintenance.lineage import Lineage
from moe_core.maintenance.sweep import Freed, sweep
from moe_core.serving import publication
from moe_core.stages.gate.current_partition import current_of
from moe_core.stages.graph import GRAPH
from moe_core.store.artifact import Artifact
from moe_core.store.blobs import Folder
from moe_core.store.layout import BUNDLE_MANIFEST
from moe_core.store.leftovers import Leftover
from moe_core.store.locks import not_open
from moe_core.tables.lance_tags import lance_tag_of


def collect(context: Context, superseded: bool = False, keep: int | None = None, *, dry_run: bool = False) -> Freed:
    """Removes what nothing can want: leftovers of interrupted processes, rows and files that no artifact refers to.

    With `superseded` also artifacts of single posts that the study as it is now does not read, but for embeddings of
    the published mixture and the previous one. With `keep` also old versions of all artifacts. These stay: what the
    study names now; the published mixture, the previous one and their embeddings; mixtures that a process has open; the
    `keep` newest versions of each partition that the study has; whatever one of these was made from. Where it is not
    known yet what the study names, all versions stay.

    Raises LockHeld while an artifact is built, and CorruptArtifact for a damaged manifest or published.json where it
    would have to tell what is needed.
    """
    if keep is not None and keep < 0:
        raise BadSetting(f"--keep {keep}: wanted 0 or more")
    store = context.store
    with store.deleting(wait=False), ExitStack() as removing:
        left = list(store.leftovers(GRAPH))
        if not dry_run:
            store.remove_locks(GRAPH)
        unneeded = {a.base: a for a in _superseded(context)} if superseded else {}
        in_use: list[str] = []
        if keep is not None:
            left += _abandoned(context)
            old, in_use = _old(context, keep, removing)
            unneeded |= {artifact.base: artifact for artifact in old}
        order = list(GRAPH)  # backwards: an artifact goes before what it was made from
        artifacts = sorted(unneeded.values(), key=lambda a: (order.index(a.asset), a.made_at), reverse=True)
        shards = [shard.key for shard in context.shards]
        freed = sweep(store, left, artifacts, current_rows(context), shards, dry_run)
        freed.open = in_use
        return freed


def collect_unless_busy(context: Context) -> Freed | None:
    """What `hardmoe run` does by itself after posts changed; None while others build, who will do it later."""
    try:
        return collect(context)
    except LockHeld:
        return None


def current_rows(context: Context) -> list[tuple[str, str]]:
    """(shard, tag) of the posts that the study reads, built or not."""
    return [(shard.key, lance_tag_of(shard.key, context.version("posts", shard.key))) for shard in context.shards]


def _superseded(context: Context) -> Iterator[Artifact]:
    """Artifacts that hold single posts and that the study as it is now does not name."""
    served, needed = _served(context), _followed(context)
    for name, stage in GRAPH.items():
        for artifact in context.store.everything(name) if stage.post_ids is not None else ():
            current = _version_now(context, name, artifact.key) in (None, artifact.version)
            if not current and artifact.inputs.get("mixture") not in served and artifact.version not in needed:
                yield artifact


def _old(context: Context, keep: int, removing: ExitStack) -> tuple[list[Artifact], list[str]]:
    """(artifacts that nothing which is kept was made from; mixtures that are kept only because they are open).

    Other mixtures cannot be opened until the end of `removing`.
    """
    lineage = Lineage(context.store)
    versions: dict[tuple[str, str | None], list[Artifact]] = {}
    for version in lineage.places:
        artifact = lineage.artifact(version)
        versions.setdefault((artifact.asset, artifact.key), []).append(artifact)
    served = _served(context)
    roots = served | _followed(context)
    for (name, key), artifacts in versions.items():
        if key in _keys(context, name):
            newest = sorted(artifacts, key=lambda a: a.made_at, reverse=True)
            roots |= {artifact.version for artifact in newest[:keep]}
            now = _version_now(context, name, key)
            roots |= {artifact.version for artifact in artifacts} if now is None else {now}
        if name in ("embeddings", "search_index"):
            roots |= {artifact.version for artifact in artifacts if artifact.inputs.get("mixture") in served}
    in_use = [
        mixture.version
        for mixture in versions.get(("mixture", None), ())
        if mixture.version not in roots and _is_open(mixture, removing)
    ]
    start = [version for version in [*roots, *in_use] if version in lineage.places]
    kept = set(lineage.above(*start))
    return [lineage.artifact(version) for version in lineage.places if version not in kept], in_use


def _is_open(mixture: Artifact, removing: ExitStack) -> bool:
    """Whether a process has a mixture open; none can open it until the end of `removing`.

    Those of a bucket are open as copies of a machine, which need the bucket no more.
    """
    return isinstance(mixture.place, Folder) and not not_open(mixture.unchecked(BUNDLE_MANIFEST), removing)


def _abandoned(context: Context) -> Iterator[Leftover]:
    """Checkpoints of artifacts that the study as it is now does not make."""
    for name, stage in GRAPH.items():
        for work, key, version in context.store.works(name):
            if (key is None) != (stage.keys is None):
                continue
            finished = context.store.exists(name, key, version)  # then it is a leftover
            if not finished and _version_now(context, name, key) not in (None, version):
                yield work


def _followed(context: Context) -> set[str]:
    """What the next partition follows, and the splits that the frozen trunk was made from."""
    current = current_of(context.planner.state)
    return {context.frozen.version("splits")} | ({current.version} if current else set())


def _served(context: Context) -> set[str]:
    """Mixtures that are published, or were before. Raises CorruptArtifact for a damaged published.json."""
    log = publication.read_log(context.store.documents)
    return {log.published, log.previous} - {publication.UNPUBLISHED}


def _version_now(context: Context, name: str, key: str | None) -> str | None:
    """What the study names now, "" where it has no such artifact; None where another must be built to know it."""
    if key not in _keys(context, name):
        return ""
    spec = context.planner.spec(name, key)
    return None if isinstance(spec, Blocked) else spec.version


def _keys(context: Context, name: str) -> Collection[str | None]:
    """Partition keys that the study has of a stage now."""
    return context.planner.keys(name) if name in context.planner.graph else ()
