"""What a shard's commit and its Lance tag cost when there are many shards, and what reading each by its tag costs.

Cost: 2 minutes, 200 MB of disk.
"""

import argparse
import tempfile
import time
from pathlib import Path

import pyarrow as pa

from moe_core.tables.lance_tags import advance_lance_tags, lance_tag_of
from moe_core.tables.location import LocalTable
from moe_core.tables.reading import read_rows
from moe_core.tables.shards import replace_rows

SCHEMA = pa.schema([("shard", pa.string()), ("position", pa.int64()), ("id", pa.string())])


def rows(shard: str) -> pa.RecordBatch:
    return pa.record_batch([pa.array([shard] * 2), pa.array([0, 1]), pa.array(["a", "b"])], schema=SCHEMA)


def measure(root: Path, shards: int) -> None:
    table, keys = LocalTable(root / "posts.lance"), [f"s{n:05d}" for n in range(shards)]
    said = []
    for part in range(10):
        began, processor = time.monotonic(), time.process_time()
        some = keys[part * shards // 10 : (part + 1) * shards // 10]
        for key in some:
            replace_rows(table, SCHEMA, key, [rows(key)], [lance_tag_of(key, "v")])
        said.append(((time.monotonic() - began) / len(some), (time.process_time() - processor) / len(some)))
    disk = sum(p.stat().st_size for p in table.location.rglob("*") if p.is_file())
    mean = sum(wall for wall, _ in said) / len(said)
    began = time.monotonic()
    advance_lance_tags(table)
    raised = time.monotonic() - began
    began = time.monotonic()
    for key in keys:
        assert len(read_rows(table, lance_tag_of(key, "v"), key, ["id"])) == 2
    read = time.monotonic() - began
    print(
        f"| {shards:,} | {1e3 * mean:.1f} | {1e3 * said[0][1]:.1f} | {1e3 * said[-1][1]:.1f} | "
        f"{1e3 * raised / shards:.2f} | {1e3 * read / shards:.2f} | {disk / 2**20:.0f} |",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=int, nargs="+", default=[200, 2000])
    print("| shards | commit, ms a shard | processor, first tenth | last tenth | advance tags | read by tag | MiB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for count in parser.parse_args().shards:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), count)
