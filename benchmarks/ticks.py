"""Memory of webserver, daemon and code server over ticks of every schedule and sensor; each tick's cost when idle.

The study has --shards small Parquet files, all of them ingested as far as the store says (manifests without posts), so
the sensors find nothing to do. The daemon is this process: it calls what Dagster's daemon calls for a tick, one after
the other, with a week between two ticks of a schedule; code server and webserver are processes of their own, and the
webserver answers the queries of its overview and a sensor's page between ticks. Runs that a schedule asks for are
queued and not started. Printed is the resident memory in MiB at --at ticks, and the last over the first.
Example: python benchmarks/ticks.py --ticks 200 --shards 1000
"""

import argparse
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
from dagster._core.remote_representation.external import RemoteSchedule, RemoteSensor
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import GrpcServerTarget
from dagster._daemon import sensor as sensor_daemon
from dagster._scheduler.scheduler import launch_scheduled_runs

from assets.study import project_keys
from moe_core.engine.context import Context
from moe_core.recipes import demo
from moe_core.settings import Source
from moe_core.store.artifact import StageOutput
from moe_core.study_file import dump_study, load_study
from moe_core.workspace import open_study
from pipelines.instance.home import prepare_home

QUERY = """{ repositoriesOrError { ... on RepositoryConnection { nodes {
  assetNodes { assetKey { path } assetMaterializations(limit: 1) { timestamp } }
  schedules { name scheduleState { ticks(limit: 20) { status timestamp } } }
  sensors { name sensorState { ticks(limit: 20) { status timestamp skipReason } } } } } } }"""


def resident(pid: int) -> float:
    """MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def make_study(root: Path, shards: int) -> Context:
    (root / "source").mkdir()
    for number in range(shards):
        row = {"id": [str(number)], "image": [b""], "tags": [["a"]]}
        pq.write_table(pa.table(row), root / "source" / f"{number:05d}.parquet")
    source = Source(format="parquet", uri=str(root / "source"))
    (root / "study.toml").write_text(dump_study(demo().model_copy(update={"name": "ticks", "source": source})))
    context = open_study(load_study(root / "study.toml"), root)
    for shard in context.shards:
        context.store.make(context.spec("posts", shard.key), lambda _: StageOutput({"read": 1}))
    return context


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def started(port: int, *command: str) -> subprocess.Popen[bytes]:
    """A process, once its port answers."""
    arguments = [sys.executable, "-m", *command]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        assert process.poll() is None, f"{command} ended with {process.returncode}"
        time.sleep(0.1)


def ask(port: int) -> None:
    body = json.dumps({"query": QUERY}).encode()
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        said = json.load(answer)
    assert said["data"]["repositoriesOrError"]["nodes"], said


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--ticks", type=int, default=200)
    options.add_argument("--at", type=int, nargs="+", default=[20, 100, 200])
    options.add_argument("--shards", type=int, default=1000)
    said = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        context = make_study(root, said.shards)
        os.environ["HARDMOE_STUDY"] = str(root / "study.toml")
        os.environ.pop("DAGSTER_HOME", None)
        prepare_home(root, 1)
        with dg.DagsterInstance.get() as instance:
            project_keys(instance, "ticks", [shard.key for shard in context.shards], context.experts)
            code, web = free_port(), free_port()
            server = started(code, "dagster", "api", "grpc", "-p", str(code), "-m", "pipelines.definitions")
            page = started(
                web, "dagster_webserver", "-p", str(web), "--grpc-port", str(code), "--grpc-host", "127.0.0.1"
            )
            try:
                measure(
                    instance, said, {"daemon": os.getpid(), "code server": server.pid, "webserver": page.pid}, code, web
                )
            finally:
                for process in (page, server):
                    process.terminate()
                    process.wait()


def measure(
    instance: dg.DagsterInstance, said: argparse.Namespace, processes: dict[str, int], code: int, web: int
) -> None:
    sensor_daemon.is_under_min_interval = lambda *_: False  # a tick at each call
    logger = logging.getLogger("ticks")
    target = GrpcServerTarget(host="127.0.0.1", port=code, socket=None, location_name="hardmoe")
    found: dict[str, dict[int, float]] = {name: {} for name in processes}
    seconds: dict[str, float] = {}
    with WorkspaceProcessContext(instance, target) as workspace:
        (location,) = workspace.create_request_context().code_locations
        (repository,) = location.get_repositories().values()
        sensors, schedules = repository.get_sensors(), repository.get_schedules()
        for sensor in sensors:
            instance.start_sensor(sensor)
        for schedule in schedules:
            instance.start_schedule(schedule)
        clock, times = datetime.now(UTC), dict[str, Any]()
        steps: dict[str, Callable[[], object]] = {
            "sensors": lambda: list(sensor_daemon.execute_sensor_iteration(workspace, logger, None, None)),
            "schedules": lambda: list(launch_scheduled_runs(workspace, logger, clock, times)),
            "webserver": lambda: ask(web),
        }
        for tick in range(1, said.ticks + 1):
            clock += timedelta(weeks=1)
            for name, step in steps.items():
                began = time.monotonic()
                step()
                seconds[name] = seconds.get(name, 0.0) + time.monotonic() - began
            if tick in said.at:
                for name, pid in processes.items():
                    found[name][tick] = resident(pid)
                print(tick, {name: round(at[tick]) for name, at in found.items()}, flush=True)
        started: list[RemoteSensor | RemoteSchedule] = [*sensors, *schedules]
        for kind in started:
            ticks = instance.get_ticks(kind.get_remote_origin_id(), kind.selector_id)
            print(f"{kind.name}: {len(ticks)} ticks, {sum(t.status.value == 'FAILURE' for t in ticks)} failed")
    for name, at in found.items():
        grown = at[said.at[-1]] / at[said.at[0]]
        print(f"{name}: {', '.join(f'{mib:.0f} MiB at {tick}' for tick, mib in at.items())}; ratio {grown:.3f}")
    for name, total in seconds.items():
        print(f"{name}: {1000 * total / said.ticks:.0f} ms a tick")


if __name__ == "__main__":
    main()
