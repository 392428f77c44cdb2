"""What comes while a run is under way and changes its plan: it is planned again, and nothing counts as failed."""

import json
import os
import subprocess
import sys

import dagster as dg
import polars as pl
import pytest

from helpers.command import write
from helpers.partitioned import hardmoe, until
from helpers.with_controls import small_study
from moe_core.engine.build import build
from moe_core.overrides import override
from moe_core.settings import load_study
from moe_core.stages.gate import current_partition
from moe_core.workspace import open_study
from pipelines.run.scheduler import Meanwhile, Summary
from pipelines.run.task import Task


def opened(file):
    return open_study(load_study(file), file.parent)


def ask_to_refit(file):
    current_partition.request_refit(opened(file))


def forget_a_post(file):
    context = opened(file)
    ids = pl.read_parquet(context.need("splits").file("splits.parquet"))["id"].to_list()
    (file.parent / "ids.txt").write_text(f"{ids[0]}\n")
    done = hardmoe("forget", "--study", file, "--ids", file.parent / "ids.txt", "--apply")
    assert "the takedown is written down" in done.output, done.output


def overtaken(file, started, come, *command):
    """What a command said in whose first expert something came."""
    settings = ("--set", "expert_training.epochs=40")
    process = started(*command, "--study", file, "--workers", "1", *settings)
    until(lambda: len(list(file.parent.glob("expert/*/.work-*/checkpoint.safetensors"))) == 1, process)
    come(file)
    out, errors = process.communicate(timeout=500)
    with dg.DagsterInstance.from_config(str(file.parent / "dagster")) as instance:
        assert "FAILURE" not in {run.status.value for run in instance.get_runs()}
    return process.returncode, out, errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("come", "what"),
    [(ask_to_refit, "a new fit of the gate was asked for"), (forget_a_post, "posts taken down")],
)
def test_a_run_plans_again_what_was_overtaken(file, started, come, what):
    code, out, errors = overtaken(file, started, come, "run", "--until", "expert")
    assert (code, f"Meanwhile {what}: what is left is planned again" in errors) == (0, True), out + errors
    assert " 0 failed, 0 not started" in out
    states = json.loads(hardmoe("status", "--json", "--study", file).output)["assets"]
    assert {s["state"] for s in states if s["asset"] in ("posts", "trunk", "partition", "expert")} == {"fresh"}


@pytest.mark.slow
def test_a_backfill_that_was_overtaken_says_what_goes_on(file, started):
    code, out, errors = overtaken(file, started, ask_to_refit, "backfill", "--all")
    assert code == 1
    assert "1 made, 0 fresh, 0 failed" in out
    assert "Stopped: meanwhile a new fit of the gate was asked for; 2 not begun. `hardmoe run` goes on" in errors
    states = json.loads(hardmoe("status", "--json", "--study", file).output)["assets"]
    assert "failed" not in {s["state"] for s in states}


def test_a_run_that_was_planned_again_is_summed_up_as_one():
    first = Summary(made=["a", "b"], fresh=["c"], failed={"d": "why"}, left=["e"], overtaken="it", seconds=1.0)
    second = Summary(made=["b", "d", "e"], fresh=["a", "c"], seconds=2.0)
    assert first.followed_by(second) == Summary(made=["a", "b", "d", "e"], fresh=["c"], seconds=3.0)


def test_what_overtakes_a_task_is_what_changes_its_plan(file):
    meanwhile, expert = Meanwhile(opened(file)), Task("expert", "e000")
    assert meanwhile.overtook(expert, surely=True) == ""
    ask_to_refit(file)
    assert meanwhile.overtook(Task("trunk", None)) == "", "a trunk is the same for every gate"
    assert meanwhile.overtook(expert) == "a new fit of the gate was asked for"
    (file.parent / current_partition.REQUEST).unlink()
    assert meanwhile.overtook(expert) == ""
    another = opened(file)
    build(another, "posts", another.shards[0].key, force=True)
    assert meanwhile.overtook(expert, surely=True) == "", "what another made is the same"
    (file.parent / "forgotten.parquet").write_bytes(b"damaged")
    assert meanwhile.overtook(expert, surely=True) == "", "the task itself says what is wrong"


def test_a_gate_that_another_command_fitted_meanwhile_overtakes_the_experts(file):
    planned = opened(file)
    meanwhile, _ = Meanwhile(planned), planned.version("mixture")
    ask_to_refit(file)
    build(opened(file), "partition")
    assert not (file.parent / current_partition.REQUEST).exists()
    assert meanwhile.overtook(Task("mixture", None)) == "the gate was fitted again"
    assert meanwhile.overtook(Task("expert", "e000")) == "", "no post moved"
    assert Meanwhile(opened(file)).overtook(Task("mixture", None)) == ""


def change(*settings):
    return lambda file: override(file, settings).write()


@pytest.mark.slow
def test_other_settings_are_planned_again_with(file, started):
    code, out, errors = overtaken(file, started, change("expert_training.lr=0.07"), "run", "--until", "expert")
    assert code == 0, out + errors
    assert "Meanwhile study.toml changed: what is left is planned again" in errors
    assert " 0 failed, 0 not started" in out
    assert {opened(file).need("expert", key).settings["training"]["lr"] for key in opened(file).experts} == {0.07}


@pytest.mark.slow
def test_other_settings_stop_what_was_asked_for_by_name(file, started):
    code, out, errors = overtaken(file, started, change("expert_training.lr=0.07"), "backfill", "--all")
    assert code == 1, out + errors
    assert "Stopped: meanwhile study.toml changed; 2 not begun. `hardmoe run` goes on from here." in errors
    assert "planned again" not in errors
    done = started("run", "--until", "expert", "--study", file, "--set", "expert_training.epochs=1")
    assert "0 failed" in done.communicate(timeout=300)[0]
    settings = [opened(file).need("expert", key).settings["training"] for key in opened(file).experts]
    assert {(one["lr"], one["epochs"]) for one in settings} == {(0.07, 1.0)}


@pytest.mark.slow
def test_settings_that_change_nothing_that_is_under_way_are_only_told(file, started):
    code, out, errors = overtaken(file, started, change("evaluation.bootstrap=7"), "run", "--until", "expert")
    assert code == 0, out + errors
    assert "Meanwhile study.toml changed: what was made has the settings from before; `hardmoe run` makes" in errors


STARTING = """
import sys
from pathlib import Path
from moe_core.overrides import override
from pipelines.cli.common import open_study
from pipelines.run.scheduler import run_study

context = open_study(Path(sys.argv[1]))
override(Path(sys.argv[1]), ["data.min_side=9"]).write()  # before the processes that work have read it
done = run_study(context, until="posts", workers=1)
print(done.overtaken, done.made, sorted(done.failed))
"""


def test_settings_that_change_while_a_run_starts_are_not_mixed(tmp_path):
    file = write(tmp_path, small_study())
    environment = {k: v for k, v in os.environ.items() if k != "DAGSTER_HOME"}
    command = [sys.executable, "-c", STARTING, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout == "study.toml changed [] []\n", done.stderr
    assert not list(tmp_path.glob("posts/*/*/artifact.json"))
