"""How long the code location takes to load: by import, and as the code server that webserver and daemon start.

Each beside the least that Dagster needs: `import dagster`, and a server of one asset. A server is ready when it has
told its repositories. Processes are fresh, files are in the page cache; printed are medians of the wall clock and of
the processor's time, which other work on the machine does not lengthen. Target: below 3 s.
Example: python benchmarks/code_location.py --repeats 5
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from dagster._grpc.client import DagsterGrpcClient

ONE_ASSET = "import dagster as dg\n@dg.asset\ndef one() -> None: ...\ndefs = dg.Definitions([one])\n"


def imported(module: str) -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.monotonic() - began


def served(*what: str) -> float:
    """Seconds until a code server has told what it holds."""
    with tempfile.TemporaryDirectory() as folder:
        socket = f"{folder}/socket"
        command = [sys.executable, "-m", "dagster", "api", "grpc", "--socket", socket, *what]
        began = time.monotonic()
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            client = DagsterGrpcClient(socket=socket)
            while True:
                try:
                    client.ping("")
                    client.list_repositories()
                    return time.monotonic() - began
                except Exception:
                    if server.poll() is not None:
                        raise
                    time.sleep(0.01)
        finally:
            server.terminate()
            server.wait()


def measured(load: Callable[[], float]) -> tuple[float, float]:
    """(seconds, processor seconds) of the processes that `load` starts and waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = load()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repeats", type=int, default=3)
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HARDMOE_STUDY"] = f"{folder}/study.toml"
        Path(folder, "study.toml").write_text("")
        Path(folder, "one.py").write_text(ONE_ASSET)
        pairs = {
            "import": (lambda: imported("pipelines.definitions"), lambda: imported("dagster")),
            "code server": (lambda: served("-m", "pipelines.definitions"), lambda: served("-f", f"{folder}/one.py")),
        }
        for name, (ours, least) in pairs.items():
            times = [(*measured(ours), *measured(least)) for _ in range(args.repeats + 1)][
                1:
            ]  # the first fills the cache
            wall, work, bare_wall, bare_work = (statistics.median(column) for column in zip(*times, strict=True))
            print(
                f"{name:12} {wall:5.2f} s ({work:.2f} s of processor), Dagster alone {bare_wall:5.2f} s "
                f"({bare_work:.2f} s): {wall / bare_wall:.2f} and {work / bare_work:.2f} times as long",
                flush=True,
            )


if __name__ == "__main__":
    main()
