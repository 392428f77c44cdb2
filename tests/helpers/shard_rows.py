"""Rows of small shards, written by this process or by others."""

import multiprocessing
import sys
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from helpers import seaweed
from moe_core import failpoints
from moe_core.errors import Overtaken
from moe_core.store.cache import Cache
from moe_core.store.leases import Pace
from moe_core.store.places import place_of
from moe_core.tables.bucket import BucketTable
from moe_core.tables.reading import read_rows
from moe_core.tables.shards import replace_rows

SCHEMA = pa.schema([("shard", pa.string()), ("position", pa.int64()), ("id", pa.string())])
PROCESS = multiprocessing.get_context("spawn").Process
OVERTAKEN = 3  # exit code of a process that another one took for dead
PACE = Pace(beat=0.5, ttl=10, wait=0.1)


def batch(shard, ids, first=0):
    columns = [[shard] * len(ids), list(range(first, first + len(ids))), list(ids)]
    return pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def put(table, shard, ids, lance_tag=None):
    return replace_rows(table, SCHEMA, shard, [batch(shard, ids)], [lance_tag] if lance_tag else ())


def ids(table, version, shard):
    return read_rows(table, version, shard, ["id"])["id"].to_pylist()


def run_all(processes):
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


@contextmanager
def running(processes):
    """Starts processes; none of them is left after the block, also of those that are stopped."""
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def bucket_table(endpoint, uri, folder, pace=PACE):
    """posts.lance at a uri of a server, with a cache and scratch of its own in a folder."""
    options = {"endpoint": endpoint, "access_key_id": seaweed.KEY, "secret_access_key": seaweed.SECRET}
    place = place_of(uri, options, Cache(Path(folder) / "cache"), seaweed.PATIENCE)
    return BucketTable(place, "posts.lance", Path(folder) / "scratch", pace)


def put_in_bucket(endpoint, uri, folder, writes, fault=""):
    """Writes (shard, ids, tag) one after the other, in another process, with a fault such as "kill rows.written"."""
    table = bucket_table(endpoint, uri, folder)
    failpoints.armed = failpoints.parse(fault) if fault else None
    try:
        for shard, some, lance_tag in writes:
            put(table, shard, some, lance_tag)
    except Overtaken:
        sys.exit(OVERTAKEN)
