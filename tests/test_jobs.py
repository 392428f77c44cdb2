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
from moe_core.settings import Evaluation
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


def test_a_request_for_an_asset_that_the_settings_have_left_out_since_is_dropped(tmp_path):
    study = small_study()
    file = write(tmp_path / "cats", study)
    assert everything(file, "random_expert")["success"]
    write(file.parent, study.model_copy(update={"evaluation": Evaluation(controls=False)}))
    environment = os.environ | {"HARDMOE_STUDY": str(file), "DAGSTER_HOME": str(file.parent / "dagster")}
    launched, end = carry_out(environment)
    assert (launched, end.partition(" is ")[2]) == ([], "dropped: the study has no random_expert any more")


WAITING = """
import json, sys
import dagster as dg
from assets.study import root, study
from moe_core.store.layout import MANIFEST
from moe_core.workspace import open_study
from pipelines.definitions import defs
from pipelines import requests
from pipelines.requests import launch_requested
if __name__ == "__main__":
    requests.REPLAN_SECONDS = 1e12
    opened, ticks, cursor = [], [], None
    sys.addaudithook(lambda event, said: event == "open" and str(said[0]).endswith(MANIFEST) and opened.append(said[0]))

    def tick():
        global cursor
        opened.clear()
        done = launch_requested(dg.build_sensor_context(instance=instance, cursor=cursor))
        cursor = done.cursor
        said = done.skip_reason.skip_message if done.skip_reason else None
        ticks.append([len(set(opened)), said, [run.run_key.split("-")[1] for run in done.run_requests or ()]])
        return done.run_requests or ()

    def launch(job_name, assets, tags):
        job = defs.resolve_job_def(job_name).get_subset(asset_selection=set(assets))
        return instance.create_run_for_job(
            job, tags=tags, asset_selection=frozenset(assets), status=dg.DagsterRunStatus.STARTED)

    with dg.DagsterInstance.get() as instance:
        first, second = tick()
        defs.resolve_job_def(first.job_name).execute_in_process(
            instance=instance, partition_key=first.partition_key, asset_selection=first.asset_selection,
            tags=first.tags)
        # a run of the other shard that goes on, and one that a user started too early
        run = launch(second.job_name, second.asset_selection, second.tags | {"dagster/partition": second.partition_key})
        launch("study_assets", [dg.AssetKey("splits")], {})
        tick(), tick(), tick()
        instance.report_run_canceled(run)
        tick()
    print(json.dumps(ticks))
"""


def test_a_tick_that_only_waits_for_runs_plans_nothing(tmp_path):
    file = write(tmp_path / "cats", small_study())
    assert everything(file, "splits")["success"]
    environment = os.environ | {"HARDMOE_STUDY": str(file), "DAGSTER_HOME": str(file.parent / "dagster")}
    done = subprocess.run([sys.executable, "-c", WAITING], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    read, said, launched = zip(*json.loads(done.stdout.splitlines()[-1]), strict=True)
    assert [bool(files) for files in read] == [True, True, False, False, True]  # manifests that it looked for
    assert said[1:] == ("2 runs are under way", *["nothing changed; runs are under way"] * 2, "1 runs are under way")
    assert launched == (["posts:s0000", "posts:s0001"], [], [], [], []), "what was canceled is not tried again"
