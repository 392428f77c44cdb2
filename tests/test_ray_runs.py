"""A real Ray cluster, PostgreSQL and `hardmoe ui`: runs of its daemon and its pages are jobs of the cluster."""

import json
import os
import secrets
import signal
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import dagster as dg
import pytest

from assets.runs import process_of
from helpers.command import write
from helpers.plain import make_plainly
from helpers.processes import until
from helpers.ray_head import ray_head
from helpers.ui import asked, free_port, launch, started_ui
from helpers.without_controls import QUICK, opened, quick_study
from moe_core.processes import pid_of
from moe_core.settings import Repartition
from moe_core.store.documents import FolderDocuments
from moe_core.store.layout import Layout
from pipelines.requests import request_run

pytestmark = pytest.mark.filterwarnings("ignore:lance is not fork-safe")  # a cluster starts its processes by forks

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
        self.until(lambda: self.job_of(run.run_id)["status"] in ("SUCCEEDED", "FAILED", "STOPPED"))
        return run

    def job_of(self, run):
        return self.head.jobs()[f"dagster-run-{run}"]

    def process(self, run):
        """Id of the process that builds the artifact of a run, once there is a checkpoint to resume from."""
        self.until(lambda: list(self.file.parent.rglob(".work-*/checkpoint.safetensors")))
        return pid_of(self.until(lambda: process_of(self.dagster.get_run_by_id(run))))


@pytest.fixture
def started_on(postgres, tmp_path, monkeypatch):
    """Starts all of it on a study: (services, the password)."""
    password = secrets.token_hex(16)
    monkeypatch.setenv("HARDMOE_PG", postgres.replace("hardmoe@", f"hardmoe:{password}@"))
    with ExitStack() as ends:

        def start(file):
            head = ends.enter_context(ray_head(cpus=2, gpus=1))
            for name, value in head.environment.items():
                monkeypatch.setenv(name, value)
            home = Layout(file.parent).dagster_home
            home.mkdir()
            (home / "dagster.yaml").write_text(SETTINGS % head.address)
            port = free_port()
            ui = started_ui(file, port)
            ends.callback(ui.wait, 120)
            ends.callback(ui.terminate)
            return Services(file, head, port, ends.enter_context(dg.DagsterInstance.from_config(str(home)))), password

        yield start


def files_with(folder, text):
    return [path for path in Path(folder).rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


@pytest.mark.slow
def test_runs_of_daemon_and_pages_are_jobs_of_the_cluster_and_no_password_is_seen(started_on, tmp_path):
    file = write(tmp_path / "cats", quick_study())
    request_run(FolderDocuments(file.parent), until="posts")
    services, password = started_on(file)
    launch(services.address, "study_assets", "trunk")
    posts = services.run("posts", STATES.SUCCESS)
    trunk = services.run("trunk", STATES.FAILURE)  # its inputs are missing
    ids = [run.tags["hardmoe/ray-job"] for run in (posts, trunk)]
    assert ids == [f"dagster-run-{run.run_id}" for run in (posts, trunk)]
    assert "hardmoe/request" in posts.tags, "of the sensor"
    assert len(opened(services.file).store.versions("posts", "s0000")) == 1
    jobs, resources = services.head.jobs(), services.head.resources()
    assert [jobs[job]["status"] for job in ids] == ["SUCCEEDED", "FAILED"]
    assert [resources[job] for job in ids] == [{"CPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}]
    assert password in os.environ["HARDMOE_PG"]
    assert password not in json.dumps(jobs)
    assert len([words for words in services.words if b"execute_run" in words]) >= 2
    assert not any(password.encode() in words for words in services.words)
    assert len(files_with(services.head.folder, posts.run_id)) > 0, "the logs of Ray"
    for folder in (services.head.folder, services.file.parent.parent):
        assert files_with(folder, password) == []


SCHEDULE = """mutation($schedule: ScheduleSelector!) { startSchedule(scheduleSelector: $schedule) { __typename } }"""
TERMINATE = """mutation($run: String!) { terminateRun(runId: $run) { __typename } }"""


@pytest.mark.soak
def test_runs_end_on_request_start_again_where_they_were_killed_and_the_schedule_fits_the_gate_again(
    started_on, tmp_path
):
    long = QUICK.model_copy(update={"epochs": 5000, "checkpoint_seconds": 0.1})
    again = Repartition(cron="* * * * *", then="partition")
    file = write(tmp_path / "cats", quick_study(expert_training=long, repartition=again))
    make_plainly(file, "posts", "splits", "vocabulary", "trunk", "trunk_features", "partition")
    services, _ = started_on(file)
    dagster = services.dagster

    first = launch(services.address, "experts", "expert", "e000")
    services.process(first)
    assert asked(services.address, TERMINATE, run=first)["terminateRun"]["__typename"] == "TerminateRunSuccess"
    services.until(lambda: dagster.get_run_by_id(first).status == STATES.CANCELED)
    assert services.run("expert", STATES.CANCELED).run_id == first
    assert services.job_of(first)["status"] == "STOPPED"

    second = launch(services.address, "experts", "expert", "e000")
    os.kill(services.process(second), signal.SIGKILL)
    assert services.run("expert", STATES.FAILURE).run_id == second
    (failed,) = dagster.all_logs(second, of_type=dg.DagsterEventType.RUN_FAILURE)
    assert f"Ray job dagster-run-{second}: FAILED" in failed.message
    third = services.until(lambda: [r for r in dagster.get_runs() if r.parent_run_id == second])[0].run_id
    assert services.process(third)
    asked(services.address, TERMINATE, run=third)
    services.until(lambda: dagster.get_run_by_id(third).status == STATES.CANCELED)

    names = {"repositoryLocationName": "hardmoe", "repositoryName": "__repository__"}
    asked(services.address, SCHEDULE, schedule={**names, "scheduleName": "weekly_repartition"})
    services.until(lambda: [r for r in dagster.get_runs() if r.job_name == "repartition" and r.is_success])
    partition = services.run("partition", STATES.SUCCESS)
    assert partition.tags["hardmoe/ray-job"] == f"dagster-run-{partition.run_id}"
    assert len(opened(file).store.versions("partition", None)) == 2
