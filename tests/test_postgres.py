"""All of Dagster in PostgreSQL, where dagster.yaml says so."""

import socket
import subprocess

import dagster as dg
import pytest

from assets.runs import HOST, PROCESS
from helpers.command import hardmoe, write
from helpers.without_controls import opened, quick_study
from moe_core.data.traces import Traces
from moe_core.processes import process_name
from moe_core.settings import Partition
from pipelines.instance import opening
from pipelines.instance.reap import reap
from pipelines.instance.search import find_runs
from pipelines.run.status import states_of

GONE = "post-that-was-forgotten"


@pytest.mark.slow
def test_all_of_dagster_lies_in_postgresql_where_dagster_yaml_says_so(postgres, tmp_path, monkeypatch):
    file, home = write(tmp_path / "cats", quick_study()), tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text(
        "storage: {postgres: {postgres_url: {env: HARDMOE_PG}}}\n"
        "concurrency: {pools: {granularity: run, default_limit: 2}}\ntelemetry: {enabled: false}\n"
    )
    variables = {"DAGSTER_HOME": str(home), "HARDMOE_PG": postgres}
    done = hardmoe("run", "--study", file, **variables)
    assert not (file.parent / "dagster").exists()
    assert list(home.rglob("*.db")) == []
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert {state.state for state in states_of(opened(file))} == {"fresh"}
    with opening.opened() as dagster:
        runs = dagster.get_runs()
        assert f"{len(runs)} made, 0 fresh, 0 failed" in done.stdout
        assert {run.tags["hardmoe/study"] for run in runs} == {"tiny"}
        assert dagster.get_dynamic_partitions("tiny_experts") == ["e000", "e001"]
        dead = subprocess.Popen(["sleep", "60"])
        tags = {PROCESS: f"12345678.{process_name(dead.pid)}", HOST: socket.gethostname()}
        dead.kill()
        dead.wait()
        run = dg.DagsterRun("__ASSET_JOB", "12345678" + "0" * 24, status=dg.DagsterRunStatus.STARTED, tags=tags)
        dagster.add_run(run)
        (left,) = dagster.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        dagster.event_log_storage.set_concurrency_slots("trainer", 1)
        assert dagster.event_log_storage.claim_concurrency_slot("trainer", left.run_id, "expert").is_claimed
        assert reap(dagster, file.parent, "tiny") == [left.run_id]
        assert dagster.get_run_by_id(left.run_id).status == dg.DagsterRunStatus.FAILURE
        assert dagster.event_log_storage.get_concurrency_info("trainer").active_slot_count == 0
        assert find_runs(dagster, Traces([GONE])) == []
        dagster.report_engine_event(f"{GONE}: no_tags", dagster.get_run_by_id(left.run_id))
        assert find_runs(dagster, Traces([GONE])) == [left.run_id]
    write(file.parent, quick_study(partition=Partition(experts=5000)))
    failed = hardmoe("run", "--study", file, "--until", "partition", check=False, **variables)
    assert "Error: partition: partition.experts = 5000, but only" in failed.stderr
    (state,) = states_of(opened(file), only="partition")
    assert (state.state, "only" in state.why) == ("failed", True)
