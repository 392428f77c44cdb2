"""One job makes everything, and each run of an asset belongs to a job, on whose page it is listed."""

import json
import os
import subprocess
import sys

import dagster as dg
import pytest

from helpers.command import write
from helpers.requests import carry_out
from helpers.with_controls import small_study
from moe_core.stages.graph import GRAPH

SCRIPT = """
import json, sys
from pathlib import Path
import dagster as dg
from assets.study import key_of, study
from moe_core.stages.graph import GRAPH
from pipelines.instance.home import prepare_home
from pipelines.instance.opening import opened
from pipelines.definitions import defs
from pipelines.jobs import job_of
if __name__ == "__main__":
    prepare_home(Path(sys.argv[1]), 1)
    stages = list(GRAPH.for_study(study()))
    for name in stages:
        assert key_of(name) in defs.resolve_job_def(job_of(name)).asset_layer.executable_asset_keys, name
    config = {"ops": {"request_everything": {"config": {"until": sys.argv[2]}}}}
    with opened() as instance:
        done = defs.resolve_job_def("everything").execute_in_process(config, instance, raise_on_error=False)
        failed = [event.step_failure_data.user_failure_data.description for event in done.all_events
                  if event.is_step_failure]
    print(json.dumps({"stages": stages, "success": done.success, "failed": failed}))
"""


def everything(file, until):
    command = [sys.executable, "-c", SCRIPT, str(file.parent), until]
    environment = {k: v for k, v in os.environ.items() if k != "DAGSTER_HOME"} | {"HARDMOE_STUDY": str(file)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("prefix", ["", "cats"])
def test_one_job_makes_what_is_stale_each_asset_partition_in_a_run_of_its_own(tmp_path, prefix):
    file = write(tmp_path / "cats", small_study(asset_prefix=prefix))
    done = everything(file, "splits")
    assert done["success"], done
    assert set(done["stages"]) <= set(GRAPH)
    environment = os.environ | {"HARDMOE_STUDY": str(file), "DAGSTER_HOME": str(file.parent / "dagster")}
    launched, end = carry_out(environment)
    assert (len(launched), end.endswith("all of it is made")) == (3, True)
    with dg.DagsterInstance.from_config(str(file.parent / "dagster")) as instance:
        runs = {(run.job_name, run.tags.get("dagster/partition")): run for run in instance.get_runs()}
    assert set(runs) == {("ingest", "s0000"), ("ingest", "s0001"), ("study_assets", None), ("everything", None)}
    assert {key.path[-1] for key in runs["study_assets", None].asset_selection} == {"splits"}
    assert {len(run.tags["hardmoe/request"]) for key, run in runs.items() if key[0] != "everything"} == {12}
    assert all("hardmoe/process" in run.tags for run in runs.values())
    assert {run.status for run in runs.values()} == {dg.DagsterRunStatus.SUCCESS}
    wrong = everything(file, "nothing")
    assert (wrong["success"], len(wrong["failed"])) == (False, 1)
    assert wrong["failed"][0].startswith("no asset 'nothing' in this study: wanted one of posts, ")


def test_a_request_ends_with_what_failed_and_tries_nothing_twice(tmp_path):
    study = small_study()
    rare = study.data.model_copy(update={"min_posts_per_tag": 100_000})
    file = write(tmp_path / "cats", study.model_copy(update={"data": rare}))
    assert everything(file, "trunk")["success"]
    environment = os.environ | {"HARDMOE_STUDY": str(file), "DAGSTER_HOME": str(file.parent / "dagster")}
    launched, end = carry_out(environment)
    assert [key.split("-")[1] for key in launched] == ["posts:s0000", "posts:s0001", "splits", "vocabulary"]
    assert end.endswith("failed: vocabulary")
