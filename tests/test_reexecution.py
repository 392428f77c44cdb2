"""Dagster's own ways to run a part of the graph: from the failure on, and one expert with what comes after it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.two_mixtures import GOOD, made
from moe_core.engine.build import build
from moe_core.workspace import open_study

FROM_FAILURE = """
import json, sys
from pathlib import Path
import dagster as dg
from helpers.finish_job import finish
from pipelines.instance.home import prepare_home

root = Path(sys.argv[1])
prepare_home(root, 1)
job = dg.reconstructable(finish)

def steps(result):
    with result as done:
        events = done.all_events
        return {
            "success": done.success,
            "made": [e.step_key for e in events if e.event_type_value == "STEP_SUCCESS"],
            "failed": [e.step_key for e in events if e.event_type_value == "STEP_FAILURE"],
            "run": done.run_id,
        }

with dg.DagsterInstance.get() as instance:
    (root / "evaluation").write_text("in the way of the folder")
    first = steps(dg.execute_job(job, instance=instance))
    (root / "evaluation").unlink()
    again = dg.ReexecutionOptions.from_failure(first["run"], instance)
    second = steps(dg.execute_job(job, instance=instance, reexecution_options=again))
print(json.dumps([first, second]))
"""

ONE_EXPERT = """
import json, sys
from pathlib import Path
import dagster as dg
from assets.study import root, study
from moe_core.workspace import open_study
from pipelines.definitions import defs
from pipelines.instance.home import prepare_home
from assets.study import project_keys

context = open_study(study(), root())
prepare_home(context.root, 1)
with dg.DagsterInstance.get() as instance:
    project_keys(instance, study().name, [s.key for s in context.shards], context.experts)
    chosen = [dg.AssetKey(name) for name in ("expert", "shared_decoder", "mixture", "published")]
    done = defs.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance, partition_key="e001", asset_selection=chosen, raise_on_error=False
    )
failed = [e for e in done.all_events if e.is_step_failure]
print(json.dumps({
    "made": [e.step_key for e in done.all_events if e.event_type_value == "STEP_SUCCESS"],
    "failed": {e.step_key: e.step_failure_data.user_failure_data.description for e in failed},
}))
"""


def said_by(code, root):
    tests = Path(__file__).parent
    environment = {k: v for k, v in os.environ.items() if k != "DAGSTER_HOME"}
    environment |= {"HARDMOE_STUDY": str(root / "study.toml"), "PYTHONPATH": f"{tests}:{tests.parent}"}
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def partitioned(tmp_path_factory):
    return made(tmp_path_factory.mktemp("partitioned"), "partition")


def test_one_expert_with_the_decoder_after_it_is_refused_while_others_are_missing_and_nothing_is_published(partitioned):
    said = said_by(ONE_EXPERT, partitioned)
    assert said["made"] == ["expert"]
    assert said["failed"] == {"shared_decoder": "expert:e000 is missing: materialize expert first (`hardmoe run`)"}
    assert open_study(GOOD, partitioned).find("expert", "e001") is not None
    for name in ("shared_decoder", "mixture"):
        assert open_study(GOOD, partitioned).store.everything(name) == []
    assert not (partitioned / "published.json").exists()


def test_from_the_failure_on_only_what_failed_and_what_follows_is_run(partitioned):
    context = open_study(GOOD, partitioned)
    for key in context.experts:
        build(context, "expert", key)
    first, second = said_by(FROM_FAILURE, partitioned)
    assert (first["success"], first["failed"]) == (False, ["evaluation"])
    assert set(first["made"]) == {"shared_decoder", "mixture", "published"}
    assert second["success"]
    assert second["made"] == ["evaluation", "report"]
    published = json.loads((partitioned / "published.json").read_text())
    assert len(published["history"]) == 1
    assert published["history"][0]["by"] == f"run {first['run']}"
