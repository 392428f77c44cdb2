"""Posts that a seed makes (moe_core/data/synthetic.py), in as many shards as the settings say."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from moe_core.data import synthetic
from moe_core.data.sources.reader import Reader
from moe_core.data.sources.scan import Scan, Shard
from moe_core.settings import Source
from moe_core.store.hashing import content_hash


def find(source: Source, scan: Scan) -> list[Shard]:
    made_by = {"posts": source.posts, "shards": source.shards, "seed": source.seed, "code": synthetic.VERSION}
    return [Shard(f"s{n:04d}", "", content_hash(made_by | {"shard": n})) for n in range(source.shards)]


def read(source: Source, shard: Shard, cache: Path | None) -> Iterator[pa.RecordBatch]:
    return synthetic.synthetic_posts(int(shard.key[1:]), source.shards, source.posts, source.seed)


def count(source: Source, shards: Sequence[Shard]) -> tuple[int, bool]:
    return source.posts, True


READERS = {"synthetic": Reader(find, read, count, splits_by_name=False)}
