"""posts: one shard of the source, decoded, canonicalised and split, in posts.lance; the rest in rejects.lance."""

import json
from pathlib import Path

from moe_core.stages.context import Context
from moe_core.stages.stage import Stage
from moe_core.store import Written


def _make(context: Context, key: str | None, folder: Path) -> Written:
    from moe_core.data.ingest import ingest
    from moe_core.data.sources import read_shard

    shard = next(s for s in context.shards if s.key == key)
    batches = read_shard(context.study.source, shard, context.root / ".sources")
    done = ingest(context.root, shard.key, batches, context.study.data, lambda read: context.report({"posts": read}))
    if not done.count.read:
        raise ValueError(f"shard {key} ({shard.path or 'drawn'}) holds no post: remove the file, or fill it")
    count = done.count
    said = {
        "read": count.read,
        "accepted": count.accepted,
        "rejected": count.rejected,
        "reasons": dict(sorted(count.reasons.items())),
        "splits": dict(sorted(count.splits.items())),
    }
    (folder / "counts.json").write_text(json.dumps(said, indent=1))
    return Written(said | {"posts_version": done.posts_version, "rejects_version": done.rejects_version})


POSTS = Stage(
    name="posts",
    keys="shards",
    code="1",
    reads=(),
    settings=lambda study: study.data.model_dump(
        include={"image_size", "validation", "test", "split_by", "max_reject_rate"}
    ),
    inputs=lambda context, key: {"shard": next(s.digest for s in context.shards if s.key == key)},
    make=_make,
)
