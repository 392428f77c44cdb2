"""The asset `posts` in a process of its own: its check, its table of rejects, and what a failed check leaves."""

import json
import os
import subprocess
import sys

import pytest

from moe_core.recipes import demo
from moe_core.settings import Data, Source
from moe_core.study_file import dump_study

SCRIPT = """
import json
import dagster as dg
from assets import data as asset
from assets.materialize import definition
from assets.study import shards

def run(instance):
    done = dg.materialize([definition("posts")], instance=instance, partition_key="s0000", raise_on_error=False)
    checks = [e.asset_check_evaluation_data for e in done.all_events if e.event_type_value == "ASSET_CHECK_EVALUATION"]
    made = done.asset_materializations_for_node("posts")
    errors = [e.step_failure_data.error.message for e in done.all_events if e.is_step_failure]
    return {
        "success": done.success,
        "passed": [check.passed for check in checks],
        "counts": [{k: v.value for k, v in check.metadata.items()} for check in checks],
        "table": made[0].metadata["rejects by reason"].value if made else "",
        "reused": made[0].metadata["reused"].value if made else None,
        "errors": errors,
    }

with dg.DagsterInstance.ephemeral() as instance:
    instance.add_dynamic_partitions(shards().name, ["s0000"])
    right = asset.stored_counts
    out = [run(instance)]
    asset.stored_counts = lambda *_: (1, 0)
    out.append(run(instance))
    asset.stored_counts = right
    out.append(run(instance))
print("\\n" + json.dumps(out))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("posts")
    source = Source(format="synthetic", posts=600, shards=1)
    study = demo().model_copy(update={"source": source, "data": Data(image_size=16)})
    (folder / "study.toml").write_text(dump_study(study), "utf-8")
    environment = {k: v for k, v in os.environ.items() if k != "DAGSTER_HOME"}
    environment |= {"HARDMOE_STUDY": str(folder / "study.toml")}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_the_check_counts_the_rows_of_both_tables(runs):
    first = runs[0]
    assert (first["success"], first["passed"]) == (True, [True])
    (counts,) = first["counts"]
    assert counts["read"] == 600 == counts["rows in posts.lance"] + counts["rows in rejects.lance"]
    assert counts["rows in rejects.lance"] > 0


def test_rejects_are_a_table_by_reason_with_examples(runs):
    lines = runs[0]["table"].splitlines()
    assert lines[0] == "| reason | rows | for example |"
    assert any(line.startswith(("| not_an_image |", "| truncated |", "| empty |", "| no_tags |")) for line in lines[2:])
    assert "| row " in lines[2]
    assert "d00000" not in runs[0]["table"]  # Dagster keeps what it is told: an id would outlive a takedown


def test_a_shard_whose_rows_do_not_add_up_fails_its_run_and_is_made_again_by_the_next(runs):
    _, second, third = runs
    assert (second["success"], second["passed"]) == (False, [False])
    assert "blocking asset check failed" in second["errors"][0]
    assert (third["success"], third["passed"], third["reused"]) == (True, [True], False)
