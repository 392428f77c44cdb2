"""Peak memory of reading a source, above what its process had before, by format and number of rows.

Each reading is a process of its own. Cost: 3 minutes, 3 GB of disk.
"""

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq

from moe_core.data.sources.shards import find_shards, read_shard
from moe_core.settings import Source

SCHEMA = pa.schema([("id", pa.string()), ("image", pa.binary()), ("tags", pa.list_(pa.string()))])
MIB, KIB = 1 << 20, 1 << 10


def batches(rows: int, size: int) -> Iterator[pa.RecordBatch]:
    """Of about 16 MiB, of bytes that do not compress."""
    step = max(1, 16 * MIB // size)
    for first in range(0, rows, step):
        ids = [str(n) for n in range(first, min(first + step, rows))]
        columns = [
            pa.array(ids),
            pa.array([os.urandom(size) for _ in ids], pa.binary()),
            pa.array([["cat"]] * len(ids)),
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def arrow(path: Path, rows: int, size: int) -> None:
    with pa.ipc.new_stream(path / "x.arrow", SCHEMA) as file:
        for batch in batches(rows, size):
            file.write_batch(batch)


def webdataset(path: Path, rows: int, size: int) -> None:
    with tarfile.open(path / "x.tar", "w") as tar:
        for n in range(rows):
            for name, data in ((f"{n}.jpg", os.urandom(size)), (f"{n}.txt", b"cat")):
                about = tarfile.TarInfo(name)
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))


def lance_table(path: Path, rows: int, size: int) -> None:
    lance.write_dataset(pa.RecordBatchReader.from_batches(SCHEMA, batches(rows, size)), str(path / "x.lance"))


def parquet(path: Path, rows: int, size: int) -> None:
    """One row group, in pages as pyarrow makes them."""
    pq.write_table(pa.Table.from_batches(batches(rows, size)), path / "x.parquet", row_group_size=rows)


def parquet_of_one_page(path: Path, rows: int, size: int) -> None:
    table = pa.Table.from_batches(batches(rows, size))
    pq.write_table(table, path / "x.parquet", row_group_size=rows, write_batch_size=rows, data_page_size=1 << 31)


CASES: list[tuple[str, str, Callable[[Path, int, int], None], int, tuple[int, ...]]] = [
    ("arrow (stream)", "arrow", arrow, MIB, (100, 400)),
    ("webdataset", "webdataset", webdataset, MIB, (100, 400)),
    ("lance", "lance", lance_table, MIB, (400, 1000)),
    ("parquet, one row group", "parquet", parquet, 50 * KIB, (5_000, 20_000)),
    ("parquet, one page", "parquet", parquet_of_one_page, 50 * KIB, (5_000, 20_000)),
]


def peak() -> int:
    """MiB. Not of getrusage: that would begin with the peak of the process that started this one."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def read(kind: str, uri: str) -> None:
    source = Source.model_validate({"format": kind, "uri": uri})
    (shard,) = find_shards(source)
    before = peak()
    rows = sum(len(batch) for batch in read_shard(source, shard))
    print(rows, peak() - before)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.read:
        return read(*args.read)
    print("| source | image, KiB | rows | peak above the start, MiB |\n| --- | ---: | ---: | ---: |")
    for name, kind, write, size, counts in CASES:
        for rows in counts:
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder), rows, size)
                command = [sys.executable, __file__, "--read", kind, folder]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                seen, grown = map(int, done.stdout.split())
                assert seen == rows
                print(f"| {name} | {size // KIB:,} | {rows:,} | {grown:,} |", flush=True)


if __name__ == "__main__":
    main()
