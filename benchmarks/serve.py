"""`hardmoe serve` against `routed` on the same stream of images, in the same run.

The mixture is that of benchmarks/routed.py: a tiny network, 64 experts on disk, memory for eight. Clients on loopback,
in a process of their own on the same cores, each send their next request when the last one is answered. `routed` gets
the same images in batches of 256, files decoded by threads ahead as `hardmoe predict` does. Both take turns; the ratio
is that of the sums of their times. On a machine with other load also that of processor time, of the server and of its
clients, says something. Then, under the same load: the other mixture is published, and rolled back. With --memory-over
N requests of one image are sent, and the server's memory is printed now and then.

Example: nice python benchmarks/serve.py --images-a-request 1 16 256 --bodies npy jpeg
"""

import argparse
import asyncio
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import routed as bench
import torch
from PIL import Image

from moe_core import threads
from moe_core.models.cost import multiply_adds
from moe_core.service.bodies import TOGETHER, decoded
from moe_core.serving import publication
from moe_core.serving.bundle import Bundle
from moe_core.serving.publication import Decision
from moe_core.serving.routed import routed
from moe_core.settings import Study
from moe_core.store.documents import FolderDocuments
from moe_core.study_file import dump_study
from moe_core.training.batches import ahead

BATCH = 256
VERSIONS = ("a" * 20, "b" * 20)
TICK = os.sysconf("SC_CLK_TCK")


# The clients: `python benchmarks/serve.py --as-client FILE`, which names the port and what to send.


@dataclass
class Load:
    """What the clients did."""

    seconds: float = 0.0
    busy: float = 0.0  # seconds of processor time of their process
    images: int = 0
    latencies: list[float] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)  # requests by status or error
    versions: dict[str, int] = field(default_factory=dict)  # requests by the mixture that answered


class Client(asyncio.Protocol):
    """One connection, which sends the next request when the last one is answered."""

    def __init__(self, requests: Iterator[tuple[bytes, int]], load: Load, done: "asyncio.Future[None]") -> None:
        self.requests, self.load, self.done = requests, load, done
        self.received, self.wanted, self.images, self.began = bytearray(), 0, 0, 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self.send()

    def send(self) -> None:
        request, self.images = next(self.requests, (b"", 0))
        if not request:
            self.transport.close()
            self.done.set_result(None)
            return
        self.received, self.wanted, self.began = bytearray(), 0, time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if not self.wanted:
            head = self.received.find(b"\r\n\r\n")
            if head < 0:
                return
            length = re.search(rb"content-length: (\d+)", self.received[:head])
            assert length, self.received[:head]
            self.wanted = head + 4 + int(length[1])
        if len(self.received) < self.wanted:
            return
        self.load.latencies.append(time.perf_counter() - self.began)
        status = self.received[9:12].decode()
        if status == "200":
            self.load.images += self.images
            version = re.search(rb'"mixture":"(.)', self.received)
            assert version
            self.load.versions[version[1].decode()] = self.load.versions.get(version[1].decode(), 0) + 1
        else:
            self.load.failures[status] = self.load.failures.get(status, 0) + 1
        self.send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            name = f"connection lost: {error}"
            self.load.failures[name] = self.load.failures.get(name, 0) + 1
            self.done.set_result(None)


async def clients(port: int, bodies: list[tuple[bytes, int]], kind: str, count: int, at_once: int) -> Load:
    """`at_once` connections send `count` requests between them."""
    load, loop = Load(), asyncio.get_running_loop()
    head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {kind}\r\nContent-Length: "
    whole = [(f"{head}{len(body)}\r\n\r\n".encode() + body, images) for body, images in bodies]
    stream = (whole[number % len(whole)] for number in range(count))
    began, busy = time.perf_counter(), time.process_time()
    ends = []
    for _ in range(at_once):
        done = loop.create_future()
        ends.append(done)
        await loop.create_connection(lambda done=done: Client(stream, load, done), "127.0.0.1", port)  # type: ignore[misc]
    await asyncio.gather(*ends)
    load.seconds, load.busy = time.perf_counter() - began, time.process_time() - busy
    return load


def client_main(order: Path) -> None:
    """Reads bodies once; each line of standard input is (requests, connections), each line of output a Load."""
    import uvloop

    with np.load(order, allow_pickle=False) as file:
        data, ends, images = file["data"].tobytes(), file["ends"].tolist(), file["images"].tolist()
        port, kind = int(file["port"]), str(file["kind"])
    bodies = [(data[begin:end], count) for begin, end, count in zip([0, *ends], ends, images, strict=False)]
    for line in sys.stdin:
        count, at_once = map(int, line.split())
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            print(json.dumps(asdict(runner.run(clients(port, bodies, kind, count, at_once)))), flush=True)


# What is sent


def file_of(pixels_HWC: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels_HWC).save(file, kind.upper(), **({"quality": 90} if kind == "jpeg" else {}))
    return file.getvalue()


def body_of(images_NHWC: np.ndarray, files: list[bytes], kind: str) -> tuple[bytes, str]:
    """(body, Content-Type) of a request with these images."""
    if kind == "npy":
        file = io.BytesIO()
        np.save(file, images_NHWC)
        return file.getvalue(), "application/x-npy"
    if len(files) == 1:
        return files[0], f"image/{kind}"
    parts = [
        b'--xyz\r\nContent-Disposition: form-data; name="images"; filename="%d"\r\n\r\n%s\r\n' % (number, data)
        for number, data in enumerate(files)
    ]
    return b"".join(parts) + b"--xyz--\r\n", "multipart/form-data; boundary=xyz"


# The server


class Server:
    """`hardmoe serve` on a study with two mixtures, of which the first one is published."""

    def __init__(self, root: Path, expert_bytes: int, options: list[str]) -> None:
        command = [sys.executable, "-m", "pipelines.cli.main", "serve", "--study", str(root), "--port", "0"]
        command += ["--memory", str(expert_bytes / 2**20), "--poll", "0.2", "--time-limit", "900", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        found = re.search(r"http://[^ ]*:(\d+) ", self.process.stdout.readline())
        assert found
        self.port = int(found[1])

    def busy(self) -> float:
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def mib(self) -> float:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class Clients:
    """A process with the clients, which sends the same bodies over and over."""

    def __init__(self, folder: Path, port: int, bodies: list[tuple[bytes, int]], kind: str) -> None:
        order, lengths = folder / "order.npz", [len(body) for body, _ in bodies]
        data = np.frombuffer(b"".join(body for body, _ in bodies), np.uint8)
        images = [count for _, count in bodies]
        np.savez(order, data=data, ends=np.cumsum(lengths), images=images, port=port, kind=kind)
        command = [sys.executable, __file__, "--as-client", str(order)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, requests: int, at_once: int) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{requests} {at_once}\n")
        self.process.stdin.flush()

    def result(self) -> Load:
        assert self.process.stdout
        return Load(**json.loads(self.process.stdout.readline()))

    def end(self) -> None:
        self.process.communicate()


def study_at(root: Path, experts: int, branch_at: int) -> Path:
    """A study's folder with two mixtures, the first one published; the folder of that one."""
    network, side = bench.NETWORKS["tiny"]
    (root / "mixture").mkdir(parents=True)
    for version in VERSIONS:
        (root / version).mkdir()
        bench.bundle_of(root / version, network, side, experts, branch_at)
        (root / version / "bundle").rename(root / "mixture" / version)
    (root / "study.toml").write_text(dump_study(Study(name="served")), "utf-8")
    publish(root, VERSIONS[0])
    return root / "mixture" / VERSIONS[0]


def publish(root: Path, version: str) -> None:
    decision = Decision("published", version, "", version, "benchmark", "benchmark")
    publication.change(FolderDocuments(root), lambda log: log.adding(decision))


# Measuring


def routed_pass(bundle: Bundle, batches: list[np.ndarray], files: list[bytes], kind: str) -> int:
    """Answers to all images by `routed`."""
    size = bundle.image_size

    def of_files(group: list[bytes]) -> bytes:
        return b"".join(pixels for pixels, _ in decoded(group, size))

    def stream() -> Iterator[np.ndarray]:
        for first in range(0, len(files), BATCH):
            groups = [files[at : at + TOGETHER] for at in range(first, min(first + BATCH, len(files)), TOGETHER)]
            data = bytearray().join(ahead(of_files, groups, threads.share()))
            yield np.frombuffer(data, np.uint8).reshape(-1, size, size, 3)

    return sum(len(answer.experts) for answer in routed(bundle, batches if kind == "npy" else stream()))


def measure(args: argparse.Namespace, root: Path, bundle: Bundle, kind: str, count: int) -> None:
    """A table of one kind of body and one number of images a request."""
    images_NHWC = bench.drawn(args.images, bundle.image_size, 2)
    files = [file_of(image, kind) for image in images_NHWC] if kind != "npy" else []
    batches = [images_NHWC[first : first + BATCH] for first in range(0, len(images_NHWC), BATCH)]
    starts = range(0, args.images, count)
    made = [body_of(images_NHWC[at : at + count], files[at : at + count], kind) for at in starts]
    bodies = [(body, len(images_NHWC[at : at + count])) for (body, _), at in zip(made, starts, strict=True)]
    server = Server(root, bundle.experts.most_bytes, args.serve)
    sent = Clients(root, server.port, bodies, made[0][1])

    def served(requests: int) -> Load:
        sent.start(requests, args.clients)
        return sent.result()

    routed_pass(bundle, batches[:4], files[: 4 * BATCH], kind)
    served(min(len(bodies), 8))
    walls, busies, loads = [], [], []
    for _ in range(args.repeats):
        began, busy = time.perf_counter(), time.process_time()
        assert routed_pass(bundle, batches, files, kind) == args.images
        walls.append(time.perf_counter() - began)
        busies.append(time.process_time() - busy)
        of_server = server.busy()
        load = served(len(bodies))
        loads.append((load, server.busy() - of_server))
        assert load.images == args.images, load.failures
    total = args.images * args.repeats
    wall, busy = sum(walls), sum(busies)
    wall_served, busy_server = sum(load.seconds for load, _ in loads), sum(used for _, used in loads)
    busy_clients = sum(load.busy for load, _ in loads)
    latencies = np.sort(np.concatenate([load.latencies for load, _ in loads]))
    p50, p99 = np.quantile(latencies, [0.5, 0.99])
    print(
        f"{kind}, {count} a request, {args.clients} clients: routed {total / wall:,.0f} images/s "
        f"({total / busy:,.0f} a second of processor time), served {total / wall_served:,.0f}: "
        f"ratio {wall / wall_served:.3f}, of each pass "
        + ", ".join(f"{one / load.seconds:.3f}" for one, (load, _) in zip(walls, loads, strict=True))
        + f" (target 0.85); of processor time {busy / busy_server:.3f}, with the clients' "
        f"{busy / (busy_server + busy_clients):.3f}; p50 {p50 * 1e3:,.0f} ms, p99 {p99 * 1e3:,.0f} ms; "
        f"server {server.mib():,.0f} MiB",
        flush=True,
    )
    if args.swaps and count == args.images_a_request[-1]:
        swap(args, root, server, sent, len(bodies))
    if args.memory_over and count == 1:
        for _ in range(10):
            load = served(args.memory_over // 10)
            print(
                f"  after {len(load.latencies):,} more: {server.mib():,.1f} MiB, failures {load.failures}", flush=True
            )
    sent.end()
    server.process.terminate()
    assert server.process.wait(120) == 0


def swap(args: argparse.Namespace, root: Path, server: Server, sent: Clients, requests: int) -> None:
    """Publishes the other mixture, and goes back, while requests come."""
    sent.start(requests * args.swaps, args.clients)
    for number in range(2 * args.swaps):
        time.sleep(args.swap_seconds)
        publish(root, VERSIONS[(number + 1) % 2])
    load = sent.result()
    print(
        f"  {2 * args.swaps} publications and rollbacks under load: {len(load.latencies):,} requests, failures "
        f"{load.failures or 'none'}, answered by {load.versions}; server {server.mib():,.0f} MiB",
        flush=True,
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--as-client", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--experts", type=int, default=64)
    options.add_argument("--held", type=int, default=8)
    options.add_argument("--branch-at", type=int, default=0)
    options.add_argument("--images", type=int, default=8192, help="of a pass")
    options.add_argument("--images-a-request", type=int, nargs="+", default=[1, 16, 256])
    options.add_argument("--bodies", nargs="+", choices=["npy", "jpeg", "png"], default=["npy", "jpeg"])
    options.add_argument("--clients", type=int, default=32)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--swaps", type=int, default=2, help="there and back, with the last number a request")
    options.add_argument("--swap-seconds", type=float, default=2.0)
    options.add_argument("--memory-over", type=int, default=0, help="requests of one image")
    options.add_argument("--serve", nargs="*", default=[], help="more options of hardmoe serve")
    args = options.parse_args()
    if args.as_client:
        client_main(args.as_client)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "study"
        mixture = study_at(root, args.experts, args.branch_at)
        largest = max(path.stat().st_size for path in (mixture / "experts").iterdir())
        bundle = Bundle(mixture, args.held * largest)
        threads.use(multiply_adds(bundle.router, bundle.image_size) * BATCH)
        print(
            f"{args.experts} experts of {largest / 2**20:.2f} MiB, memory for {args.held}; passes of {args.images:,} "
            f"images; {threads.cores()} cores, {torch.get_num_threads()} threads compute; load before "
            f"{os.getloadavg()[0]:.1f}",
            flush=True,
        )
        for kind in args.bodies:
            for count in args.images_a_request:
                measure(args, root, bundle, kind, count)


if __name__ == "__main__":
    main()
