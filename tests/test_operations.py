"""How a study is kept running: backup, several studies on one instance, alerts, one UI at a time."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import dagster as dg
import pytest
import yaml
from dagster._daemon.types import DaemonHeartbeat

from helpers.command import hardmoe, write
from helpers.without_controls import opened, quick_study
from moe_core.errors import LockHeld
from moe_core.settings import Alerts, Partition, Source
from moe_core.study_file import load_study
from pipelines.instance import opening
from pipelines.instance.home import prepare_home
from pipelines.instance.ui_lock import daemon_heartbeat_age, lock_ui
from pipelines.run.pools.choice import worker_count
from pipelines.run.status import states_of


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "storage: {postgres: {postgres_url: 'postgresql+psycopg2://nobody@127.0.0.1:1/none'}}\n",
            r"(?i)connection refused|pip install 'hardmoe\[postgres\]'",
        ),
        ("storage: {postgres: {postgres_url: 'postgresql://nobody@127.0.0.1:1/none'}}\n", "psycopg2|hardmoe.postgres"),
        ("storages: {}\n", "storages"),
        ("a: [\n", "dagster.yaml cannot be opened"),
    ],
)
def test_an_instance_that_cannot_be_opened_is_said_in_one_line(tmp_path, monkeypatch, text, why):
    (tmp_path / "dagster.yaml").write_text(text)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setattr("time.sleep", lambda _: None)  # between attempts
    with pytest.raises(ValueError, match=why) as error, opening.opened():
        pass
    assert "\n" not in str(error.value)
    assert f"{tmp_path}/dagster.yaml" in str(error.value)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A study up to its partition, whose assets have a prefix in Dagster."""
    file = write(tmp_path_factory.mktemp("begun"), quick_study(asset_prefix="cats"))
    hardmoe("run", "--study", file, "--until", "partition")
    return file


@pytest.mark.slow
def test_a_copy_of_the_root_goes_on_under_another_path(begun, tmp_path):
    shutil.copytree(begun.parent, tmp_path / "restored")
    file = tmp_path / "restored" / "study.toml"
    before = hashes(begun)
    assert " 6 fresh, 0 failed" in hardmoe("run", "--study", file).stdout
    assert hashes(file)[: len(before)] == before
    assert not (begun.parent / "expert").exists()


def hashes(file):
    """Of what is made up to the partition."""
    work = opened(file)
    names = ("splits", "vocabulary", "trunk", "partition")
    return [work.need("posts", work.shards[0].key).content_hash, *(work.need(name).content_hash for name in names)]


@pytest.mark.slow
def test_studies_that_share_an_instance_have_runs_assets_and_keys_apart(begun, tmp_path, monkeypatch):
    root, home = tmp_path / "cats", tmp_path / "cats" / "dagster"
    shutil.copytree(begun.parent, root)
    cats = root / "study.toml"
    other = {"source": Source(format="synthetic", posts=400, shards=2), "partition": Partition(experts=1)}
    dogs = write(tmp_path / "dogs", quick_study(name="dogs", asset_prefix="dogs", **other))
    assert "2 made" in hardmoe("run", "--study", dogs, "--until", "posts", DAGSTER_HOME=str(home)).stdout
    assert "6 fresh" in hardmoe("run", "--study", cats, "--until", "partition", DAGSTER_HOME=str(home)).stdout
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    with opening.opened() as dagster:
        known = {key.path[0] for key in dagster.all_asset_keys()}
        assert known == {"cats", "dogs"}
        assert dagster.get_dynamic_partitions("tiny_experts") == ["e000", "e001"]
        assert dagster.get_dynamic_partitions("dogs_experts") == ["e000"]
        assert sorted(dagster.get_dynamic_partitions("dogs_shards")) == ["s0000", "s0001"]
        tags = {"hardmoe/study": "dogs", "dagster/partition": "e000"}
        expert = frozenset([dg.AssetKey(["dogs", "expert"])])
        dagster.report_run_failed(dagster.add_run(dg.DagsterRun("__ASSET_JOB", tags=tags, asset_selection=expert)))
    assert [state.state for state in states_of(opened(cats), only="expert")] == ["missing", "missing"]


TICK = """
import json, sys
import dagster as dg
from dagster._core.definitions.run_status_sensor_definition import RunStatusSensorCursor
from pipelines.definitions import defs
from pipelines.sensors import alert

begin = RunStatusSensorCursor(record_id=0, update_timestamp="2000-01-01T00:00:00+00:00").to_json()
with dg.DagsterInstance.get() as instance:
    other = instance.add_run(dg.DagsterRun("__ASSET_JOB", tags={"hardmoe/study": "dogs"}))
    instance.report_run_failed(other)
    context = dg.build_sensor_context(instance, cursor=begin, repository_def=defs.get_repository_def())
    said = alert.evaluate_tick(context)
    print(json.dumps([reaction.error and str(reaction.error) for reaction in said.dagster_run_reactions]))
"""
NOTE = "import sys; open('alerts.jsonl', 'a').write(sys.stdin.read() + chr(10))"


@pytest.mark.slow
def test_a_failed_run_is_told_to_the_command_as_json_and_a_failing_command_fails_the_tick(begun, tmp_path):
    root = tmp_path / "cats"
    shutil.copytree(begun.parent, root)
    wrong = {"partition": Partition(experts=5000)}
    file = write(root, quick_study(alerts=Alerts(command=(sys.executable, "-c", NOTE)), asset_prefix="cats", **wrong))
    assert hardmoe("run", "--study", file, "--until", "partition", check=False).returncode == 1
    (run,) = tick(file)[1]
    assert run["study"] == "tiny"
    assert (run["root"], run["assets"], run["partition"]) == (str(root), ["partition"], None)
    assert run["error"].startswith("partition.experts = 5000, but only")
    (root / "alerts.jsonl").unlink()
    write(root, quick_study(alerts=Alerts(command=("/no/such; touch wicked",)), asset_prefix="cats", **wrong))
    errors, told = tick(file)
    assert "No such file or directory" in str(errors)
    assert told == []
    assert not list(tmp_path.rglob("wicked"))


def tick(file):
    """Errors and what the command was told, of one tick of the sensor that begins with the first run."""
    environment = os.environ | {"HARDMOE_STUDY": str(file), "DAGSTER_HOME": str(file.parent / "dagster")}
    done = subprocess.run([sys.executable, "-c", TICK], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    told = file.parent / "alerts.jsonl"
    lines = told.read_text().splitlines() if told.exists() else []
    return json.loads(done.stdout), [json.loads(line) for line in lines]


def test_a_taken_port_and_a_second_ui_are_said_in_one_line(tmp_path):
    file = write(tmp_path / "cats", quick_study())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = hardmoe("ui", "--study", file, "--port", port, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error: port {port} is in use; choose another with --port\n"


HOLD = """
import sys
from pipelines.instance.ui_lock import lock_ui
lock_ui(int(sys.argv[1]))
print("held", flush=True)
input()
"""


def test_one_instance_has_one_ui_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockHeld, match=rf"already runs on .*: http://127.0.0.1:{port}, process {holder.pid}; stop"):
            lock_ui(port)
        holder.communicate("\n")
    os.close(lock_ui(port))


def test_a_daemon_that_reports_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(prepare_home(tmp_path, 1)))
    with opening.opened() as dagster:
        assert daemon_heartbeat_age(dagster) is None
        for seconds, noticed in ((3600, False), (10, True)):
            dagster.add_daemon_heartbeat(DaemonHeartbeat(time.time() - seconds, "SENSOR", "elsewhere", []))
            assert (daemon_heartbeat_age(dagster) is not None) == noticed


def test_the_workers_of_a_command_are_no_limit_of_the_daemon(file):
    hardmoe("run", "--study", file, "--until", "splits", "--workers", "1")
    said = yaml.safe_load((file.parent / "dagster" / "dagster.yaml").read_text())
    assert said["concurrency"]["pools"]["default_limit"] == worker_count(None, load_study(file))
