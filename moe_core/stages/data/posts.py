"""posts: one shard of the source, decoded and canonicalized, in posts.lance; the rest in rejects.lance."""

import json
from pathlib import Path

from moe_core.data.ingest import ingest
from moe_core.data.sources.scan import ContentHashes
from moe_core.data.sources.shards import read_shard
from moe_core.engine.context import Context
from moe_core.errors import BadSource, HardmoeError
from moe_core.stages.data.rows import stored_counts
from moe_core.store.artifact import Spec, StageOutput
from moe_core.tables.lance_tags import lance_tag_of
from moe_core.tables.location import tables_of
from moe_core.text import utf8
from moe_core.threads import threads_for


def make(context: Context, spec: Spec, folder: Path) -> StageOutput:
    key = spec.key
    assert key is not None
    shard = context.planner.state.by_key[key]
    beside = min(len(context.shards), context.study.partition.experts)  # shards that `hardmoe run` ingests at once
    tables = tables_of(context.store)
    hashes = ContentHashes(context.store.layout.content_hashes)
    try:
        done = ingest(
            tables,
            key,
            read_shard(context.study.source, shard, context.store.layout.source_cache, hashes),
            context.study.data,
            lambda read: context.report({"posts": read}),
            source=utf8(shard.path) or "synthetic",
            threads=threads_for(parallel=len(context.shards) > 1, experts=beside),
            lance_tags=[lance_tag_of(key, context.version("posts", key))],
            taken_down=context.takedowns.holds if context.takedowns.entries else None,
        )
    except MemoryError:
        raise HardmoeError(
            f"shard {key} ({shard.path or 'synthetic'}) needs more memory than this process may use: ingest fewer "
            "shards at once (--workers), or raise the limit (ulimit -v, the container's)"
        ) from None
    count = done.count
    if not count.read:
        raise BadSource(f"shard {key} ({shard.path or 'synthetic'}) holds no post: remove the file, or fill it")
    stored = stored_counts(tables, shard.key, done.posts_version, done.rejects_version)
    if stored != (count.accepted, count.rejected):
        raise RuntimeError(
            f"shard {key}: {count.accepted} accepted and {count.rejected} rejected, but posts.lance and rejects.lance "
            f"hold {stored[0]} and {stored[1]}: a row was lost"
        )
    counts = {
        "read": count.read,
        "accepted": count.accepted,
        "rejected": count.rejected,
        "reasons": dict(sorted(count.reasons.items())),
        "given_splits": dict(sorted(count.splits.items())),
        # rows alone: ids and details, which may quote them, are in rejects.lance, where a takedown finds them
        "examples": dict(sorted(count.examples.items())),
    }
    (folder / "counts.json").write_text(json.dumps(counts, indent=1))
    return StageOutput(counts)
