"""Sources that change or go away while they are read."""

import lance

from helpers import hostile
from helpers.formats import random_posts
from moe_core.data.ingest import ingest
from moe_core.data.sources.scan import ContentHashes
from moe_core.data.sources.shards import find_shards, read_shard
from moe_core.settings import Data
from moe_core.tables.location import tables_in

JOINED = ["folder_csv", "folder_jsonl", "parquet_hugging_face_paths", "yfcc_23", "yfcc_25_bz2"]
DATA = Data(image_size=16, max_reject_rate=1)
PICTURE = hostile.file_of(hostile.picture())


def posts(user):
    """All of them good; a run of rejects is what a lost folder would add."""
    return [post | {"user": user, "image": PICTURE, "tags": ["cat"]} for post in random_posts(60)]


def ingested(source, root, meanwhile=None):
    """What lies in posts.lance afterwards. `meanwhile(n)` is called when batch n was read, and no more."""
    hashes = ContentHashes()
    (shard,) = find_shards(source, hashes)

    def batches():
        for number, batch in enumerate(read_shard(source, shard, root / ".sources", hashes)):
            yield batch
            if meanwhile:
                meanwhile(number)

    ingest(tables_in(root), shard.key, batches(), DATA, lambda _: None)
    return stored(root)


def stored(root):
    return lance.dataset(str(root / "posts.lance")).to_table(columns=["id", "user"]).to_pylist()
