"""`hardmoe ui` in a process of its own, and what its webserver is asked."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

from helpers.processes import until

LAUNCH = """mutation($run: ExecutionParams!) { launchRun(executionParams: $run) { __typename
  ... on LaunchRunSuccess { run { runId } } ... on Error { message } } }"""


def processes(folder):
    """Command lines, by process, of those that have the folder among their arguments or in their environment."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
        except OSError:
            continue
        if command and str(folder).encode() in command + environment:
            found[int(path.name)] = command.decode().split("\0")
    return found


def daemons(home):
    """Processes that are Dagster's daemon on an instance."""
    return sorted(pid for pid, words in processes(home).items() if "dagster._daemon" in words)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def started_ui(file, port, after=None):
    """`hardmoe ui`, once it answers and has a daemon that is not the one before."""
    environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}
    command = [sys.executable, "-m", "pipelines.cli.main", "ui", "--study", str(file), "--port", str(port)]
    with open(file.parent.parent / "ui.log", "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def answers():
        assert process.poll() is None, (file.parent.parent / "ui.log").read_text()
        if daemons(file.parent / "dagster") in ([], [after]):
            return False
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/server_info", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    until(answers, seconds=180)
    return process


def launch(address, job, asset, partition=None):
    """Id of a run of one asset partition, launched as the UI's pages do."""
    tags = [{"key": "dagster/partition", "value": partition}] if partition else []
    run = {
        "selector": {
            "repositoryLocationName": "hardmoe",
            "repositoryName": "__repository__",
            "jobName": job,
            "assetSelection": [{"path": [asset]}],
        },
        "executionMetadata": {"tags": tags},
    }
    launched = asked(address, LAUNCH, run=run)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    return launched["run"]["runId"]


def asked(address, query, **variables):
    """What the webserver answers to a GraphQL query."""
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"{address}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["data"]
