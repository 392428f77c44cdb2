"""Readers of what users have: each gives its shards, and for each shard batches of one schema, as written.

A shard is one input file (or one slice of the synthetic posts); it is ingested, versioned and ingested again by itself.
One module a format; `reader.py` says what it gives, `registry.py` collects them.
"""

from moe_core.data.sources.files import ContentHashes, Shard, Unready
from moe_core.data.sources.guessing import absolute, guess_format
from moe_core.data.sources.raw import RAW
from moe_core.data.sources.shards import find_shards, read_shard

__all__ = ["RAW", "ContentHashes", "Shard", "Unready", "absolute", "find_shards", "guess_format", "read_shard"]
