"""Runs of the UI and the daemon as jobs of a Ray cluster: what they ask for, what is never shown, and how they end."""

import json
import os
import shlex
import sys
import textwrap
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest
from dagster._core.code_pointer import CodePointer
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher import WorkerStatus
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin

from helpers.command import hardmoe, write
from helpers.ui import free_port
from helpers.without_controls import quick_study
from moe_core.errors import BadSetting
from moe_core.stages.graph import GRAPH
from pipelines.instance.secrets import secrets_in_clear

pytest.importorskip("dagster_ray", reason="pip install 'hardmoe[ray]'")

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "ray.md"
LAUNCHER = "run_launcher: {module: pipelines.launcher, class: HardmoeRayLauncher, config: {ray: %s}}\n"
ADDRESS = {"address": "http://127.0.0.1:1"}
QUIET = "telemetry: {enabled: false}\n"


def example():
    """The dagster.yaml of the page."""
    lines = PAGE.read_text("utf-8").splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("    # dagster.yaml"))
    return textwrap.dedent("\n".join(lines[begin : lines.index("", begin)])) + "\n"


class Cluster:
    """In place of Ray's client: notes the jobs that it is given, and answers what a test wants."""

    def __init__(self):
        self.jobs, self.stopped, self.code = [], [], None

    def submit_job(self, **job):
        self.jobs.append(job)

    def stop_job(self, job):
        self.stopped.append(job)
        return True

    def get_job_status(self, job):
        from ray.job_submission import JobStatus

        if self.code:
            raise RuntimeError(f"Request failed with status code {self.code}: of {job}.")
        return JobStatus.FAILED

    def get_job_info(self, job):
        return SimpleNamespace(status="FAILED", message="its node was lost")


@pytest.fixture
def instance(tmp_path, monkeypatch):
    """Opens an instance with such a dagster.yaml, beside a study that HARDMOE_STUDY names."""
    monkeypatch.setenv("HARDMOE_STUDY", str(write(tmp_path / "it's cats", quick_study())))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    home, instances = tmp_path / "home", {}
    home.mkdir()
    with ExitStack() as opened:

        def open_it(settings):
            (home / "dagster.yaml").write_text(settings + QUIET)
            if settings not in instances:
                instances[settings] = opened.enter_context(dg.DagsterInstance.from_config(str(home)))
            return instances[settings]

        yield open_it


@pytest.fixture
def launch(instance):
    """Launches a run of a job, or of one asset of it, on a stub of the cluster: (launcher, run, the job for Ray)."""
    from pipelines.definitions import defs

    def launch_it(job, asset=None, tags=None, **config):
        dagster = instance(LAUNCHER % json.dumps(ADDRESS | config))
        assets = {dg.AssetKey(asset)} if asset else None
        definition = defs.resolve_job_def(job)
        definition = definition.get_subset(asset_selection=assets) if asset else definition
        code = RepositoryPythonOrigin(sys.executable, CodePointer.from_module("pipelines.definitions", "defs", None))
        run = dagster.create_run_for_job(
            definition, tags=tags, asset_selection=assets, job_code_origin=JobPythonOrigin(job, code)
        )
        launcher = dagster.run_launcher
        launcher.client = Cluster()
        dagster.launch_run(run.run_id, None)
        (job,) = launcher.client.jobs
        return launcher, dagster.get_run_by_id(run.run_id), job

    return launch_it


def gpus_of(job):
    hidden = job["runtime_env"]["env_vars"].get("CUDA_VISIBLE_DEVICES")
    return (job["entrypoint_num_cpus"], job["entrypoint_num_gpus"] or 0, hidden)


CPUS_ALONE, ONE_GPU = (1.0, 0, ""), (1.0, 1.0, None)


def test_a_run_asks_for_a_gpu_where_its_stage_computes_on_one(launch):
    assert gpus_of(launch("study_assets", "trunk")[2]) == ONE_GPU
    assert gpus_of(launch("study_assets", "vocabulary")[2]) == CPUS_ALONE
    assert gpus_of(launch("experts")[2]) == ONE_GPU, "a whole job selects no asset"
    assert gpus_of(launch("ingest")[2]) == CPUS_ALONE
    assert gpus_of(launch("repartition")[2]) == CPUS_ALONE, "it requests runs"
    assert {name for name, stage in GRAPH.items() if not stage.uses_gpu} >= {"posts", "splits", "vocabulary"}


def test_dagster_yaml_and_the_tag_of_a_run_say_how_much(launch):
    assert gpus_of(launch("experts", num_cpus=4, num_gpus=0)[2]) == (4.0, 0, ""), "of a cluster without GPUs"
    assert gpus_of(launch("ingest", num_cpus=4, num_gpus=2)[2]) == (4.0, 0, "")
    assert gpus_of(launch("experts", num_gpus=2)[2]) == (1.0, 2.0, None)
    tag = {"dagster-ray/config": json.dumps({"num_gpus": 8, "resources": {"big": 1}, "env_vars": ["A=1"]})}
    _, _, job = launch("experts", tags=tag, num_gpus=2, env_vars=["B=2"])
    assert gpus_of(job) == (1.0, 8.0, None)
    assert job["entrypoint_resources"] == {"big": 1.0}
    assert job["runtime_env"]["env_vars"].items() >= {("A", "1"), ("B", "2")}


def test_a_job_is_a_process_of_the_code_servers_python_and_knows_the_study(launch):
    _, run, job = launch("ingest")
    words = shlex.split(job["entrypoint"])
    assert words[:6] == ["exec", sys.executable, "-m", "dagster", "api", "execute_run"]
    assert json.loads(words[6])["pipeline_run_id"] == run.run_id
    variables = job["runtime_env"]["env_vars"]
    assert variables["HARDMOE_STUDY"] == os.environ["HARDMOE_STUDY"]
    assert run.tags["hardmoe/ray-job"] == job["submission_id"] == f"dagster-run-{run.run_id}"


def test_a_run_without_a_study_is_refused_for_it_would_make_the_demos(launch, monkeypatch):
    assert launch("ingest", env_vars=["HARDMOE_STUDY=/lustre/cats/study.toml"])
    monkeypatch.delenv("HARDMOE_STUDY")
    with pytest.raises(BadSetting, match="HARDMOE_STUDY is not set for Dagster's daemon"):
        launch("ingest")


CLEAR = "postgresql+psycopg2://dagster:hunter2@db/dagster"
STORAGE = "storage: {postgres: {postgres_db: {username: dagster, password: %s, hostname: db, db_name: dagster}}}\n"


@pytest.mark.parametrize(
    ("settings", "ray", "clear"),
    [
        (STORAGE % "{env: DAGSTER_PG_PASSWORD}", {"env_vars": ["A=1"], "headers": {"User-Agent": "us"}}, []),
        (STORAGE % "hunter2", {}, ["postgres_db.password"]),
        (f"storage: {{postgres: {{postgres_url: '{CLEAR}'}}}}\n", {}, ["postgres_url"]),
        ("", {"headers": {"Authorization": "Bearer hunter2"}}, ["ray.headers.Authorization"]),
        ("", {"runtime_env": {"env_vars": {"AWS_SECRET_ACCESS_KEY": "hunter2"}}}, ["AWS_SECRET_ACCESS_KEY"]),
        ("", {"env_vars": ["PGPASSWORD=hunter2"]}, ["ray.env_vars.PGPASSWORD"]),
    ],
)
def test_secrets_in_clear_are_found(tmp_path, settings, ray, clear):
    (tmp_path / "dagster.yaml").write_text(settings + LAUNCHER % json.dumps(ADDRESS | ray) + QUIET)
    found = secrets_in_clear(InstanceRef.from_dir(str(tmp_path)))
    assert [path.endswith(end) for path, end in zip(found, clear, strict=True)] == [True] * len(clear), found


@pytest.mark.parametrize(("name", "value"), [("DAGSTER_PG_PASSWORD", "hunter2"), ("HARDMOE_PG", CLEAR)])
def test_a_secret_is_not_sent_to_the_cluster(launch, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    for where in ({"env_vars": [name]}, {"tags": {"dagster-ray/config": json.dumps({"env_vars": [name]})}}):
        with pytest.raises(BadSetting, match=f"env_vars of the launcher has {name}, which Ray would show") as refused:
            launch("ingest", **where)
        assert "hunter2" not in str(refused.value)


def test_the_ui_does_not_start_with_a_secret_in_clear(tmp_path):
    file = write(tmp_path / "cats", quick_study())
    settings = file.parent / "dagster" / "dagster.yaml"
    settings.parent.mkdir()
    settings.write_text(LAUNCHER % json.dumps(ADDRESS | {"env_vars": ["PGPASSWORD=hunter2"]}) + QUIET)
    refused = hardmoe("ui", "--study", file, "--port", str(free_port()), check=False)
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert line.startswith("Error: dagster.yaml has a secret in clear, which Ray would show in the command line of")
    assert "hunter2" not in line


def test_the_example_of_the_page_is_one_that_dagster_takes(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_PG_PASSWORD", "hunter2")
    (tmp_path / "dagster.yaml").write_text(example())
    ref = InstanceRef.from_dir(str(tmp_path))
    assert secrets_in_clear(ref) == []
    launcher = ref.run_launcher
    assert type(launcher).__name__ == "HardmoeRayLauncher"
    assert (launcher.address, launcher.cpus, launcher.gpus) == ("http://127.0.0.1:8265", 4, 1)
    assert {"run_monitoring", "run_retries", "concurrency", "telemetry"} <= set(ref.settings)
    (tmp_path / "dagster.yaml").write_text(example().replace("poll_interval", "pol_interval"))
    with pytest.raises(dg.DagsterInvalidConfigError, match="pol_interval_seconds"):
        InstanceRef.from_dir(str(tmp_path))


def test_a_setting_that_is_none_is_told(instance):
    with pytest.raises(dg.DagsterInvalidConfigError, match='unexpected config entry "num_gpu"'):
        _ = instance(LAUNCHER % json.dumps(ADDRESS | {"num_gpu": 1})).run_launcher


def test_runs_of_commands_have_no_job_and_are_left_alone(launch):
    launcher, run, _ = launch("ingest")
    with dg.DagsterInstance.get() as dagster:
        command = dagster.add_run(dg.DagsterRun("study_assets", status=dg.DagsterRunStatus.STARTED))
        again = dagster.add_run(dg.DagsterRun("ingest", status=dg.DagsterRunStatus.STARTED, tags=run.tags))
        for theirs in (command, again):
            assert launcher.check_run_worker_health(theirs).status is WorkerStatus.RUNNING
            assert not launcher.terminate(theirs.run_id)
            assert dagster.get_run_by_id(theirs.run_id).status == dg.DagsterRunStatus.STARTED
    assert launcher.client.stopped == []


def test_a_run_whose_job_died_is_told_from_one_of_which_the_cluster_says_nothing(launch):
    launcher, run, job = launch("ingest")
    assert launcher.check_run_worker_health(run).status is WorkerStatus.FAILED
    assert launcher.get_run_worker_debug_info(run) == f"Ray job {job['submission_id']}: FAILED, its node was lost"
    launcher.client.code = 500
    assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING, "the head is under load"
    launcher.client.code = 404
    assert launcher.check_run_worker_health(run).status is WorkerStatus.UNKNOWN, "another cluster: it is lost"
    assert launcher.terminate(run.run_id)
    assert launcher.client.stopped == [job["submission_id"]]
