"""A real Ray cluster, PostgreSQL and `hardmoe ui`: runs of its daemon and its pages are jobs of the cluster."""

import json
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

import dagster as dg
import pytest

from helpers.command import write
from helpers.processes import until
from helpers.ray_head import ray_head
from helpers.ui import free_port, launch, started_ui
from helpers.without_controls import opened, quick_study
from moe_core.store.layout import Layout
from pipelines.requests import request_run

pytest.importorskip("dagster_ray", reason="pip install 'hardmoe[ray]'")

STATES = dg.DagsterRunStatus
SETTINGS = """
storage: {postgres: {postgres_url: {env: HARDMOE_PG}}}
run_launcher:
  module: pipelines.launcher
  class: HardmoeRayLauncher
  config: {ray: {address: "%s"}}
concurrency: {runs: {max_concurrent_runs: 2}, pools: {granularity: run, default_limit: 1}}
run_monitoring: {enabled: true, poll_interval_seconds: 5, start_timeout_seconds: 1200}
run_retries: {enabled: true, max_retries: 3, retry_on_asset_or_op_failure: false}
telemetry: {enabled: false}
"""


class Services:
    """A study, its instance in PostgreSQL, a Ray head and `hardmoe ui`; and what all processes were called."""

    def __init__(self, file, head, port, dagster):
        self.file, self.head, self.address, self.dagster = file, head, f"http://127.0.0.1:{port}", dagster
        self.words = set()

    def until(self, true, seconds=400):
        """Waits, and notes the command lines of all processes meanwhile."""

        def is_true():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    self.words.add(path.read_bytes())
            time.sleep(0.3)
            return true()

        return until(is_true, seconds=seconds)

    def run(self, asset, status):
        """The newest run of an asset, once it has the status and its job has ended."""

        def found():
            runs = self.dagster.get_runs(dg.RunsFilter(statuses=[status]))
            return [run for run in runs if asset in {key.path[-1] for key in run.asset_selection or ()}]

        run = self.until(found)[0]
        self.until(lambda: self.head.jobs()[run.tags["hardmoe/ray-job"]]["status"] in ("SUCCEEDED", "FAILED"))
        return run


@pytest.fixture
def services(postgres, tmp_path, monkeypatch):
    """Starts all of it for a study: (services, the password)."""
    password = secrets.token_hex(16)
    monkeypatch.setenv("HARDMOE_PG", postgres.replace("hardmoe@", f"hardmoe:{password}@"))
    file = write(tmp_path / "cats", quick_study())
    with ray_head(cpus=2, gpus=1) as head:
        for name, value in head.environment.items():
            monkeypatch.setenv(name, value)
        home = Layout(file.parent).dagster_home
        home.mkdir()
        (home / "dagster.yaml").write_text(SETTINGS % head.address)
        request_run(root=file.parent, until="posts")
        port = free_port()
        ui = started_ui(file, port)
        try:
            with dg.DagsterInstance.from_config(str(home)) as dagster:
                yield Services(file, head, port, dagster), password
        finally:
            ui.terminate()
            ui.wait(120)


def files_with(folder, text):
    return [path for path in Path(folder).rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


@pytest.mark.slow
def test_runs_of_daemon_and_pages_are_jobs_of_the_cluster_and_no_password_is_seen(services):
    hardmoe_ui, password = services
    launch(hardmoe_ui.address, "study_assets", "trunk")
    posts = hardmoe_ui.run("posts", STATES.SUCCESS)
    trunk = hardmoe_ui.run("trunk", STATES.FAILURE)  # its inputs are missing
    ids = [run.tags["hardmoe/ray-job"] for run in (posts, trunk)]
    assert ids == [f"dagster-run-{run.run_id}" for run in (posts, trunk)]
    assert "hardmoe/request" in posts.tags, "of the sensor"
    assert len(opened(hardmoe_ui.file).store.versions("posts", "s0000")) == 1
    jobs, resources = hardmoe_ui.head.jobs(), hardmoe_ui.head.resources()
    assert [jobs[job]["status"] for job in ids] == ["SUCCEEDED", "FAILED"]
    assert [resources[job] for job in ids] == [{"CPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}]
    assert password in os.environ["HARDMOE_PG"]
    assert password not in json.dumps(jobs)
    assert len([words for words in hardmoe_ui.words if b"execute_run" in words]) >= 2
    assert not any(password.encode() in words for words in hardmoe_ui.words)
    assert len(files_with(hardmoe_ui.head.folder, posts.run_id)) > 0, "the logs of Ray"
    for folder in (hardmoe_ui.head.folder, hardmoe_ui.file.parent.parent):
        assert files_with(folder, password) == []
