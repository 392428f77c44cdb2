"""What changes the plan while a run is under way: the rest is planned again, and nothing counts as failed."""

import json
import os
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from helpers.command import write
from helpers.formats import WRITERS, random_posts
from helpers.partitioned import hardmoe
from helpers.processes import until
from helpers.with_controls import small_study
from moe_core.stages.gate import current_partition
from moe_core.study_file import load_study, override
from moe_core.workspace import open_study
from pipelines.run.scheduler import run_study
from pipelines.run.task import TaskResult


def opened(file):
    return open_study(load_study(file), file.parent)


def request_refit(file):
    current_partition.request_refit(opened(file))


def forget_a_post(file):
    context = opened(file)
    ids = pl.read_parquet(context.need("splits").file("splits.parquet"))["id"].to_list()
    (file.parent / "ids.txt").write_text(f"{ids[0]}\n")
    done = hardmoe("forget", "--study", file, "--ids", file.parent / "ids.txt", "--apply")
    assert "the takedown is recorded" in done.output, done.output


def changed_meanwhile(file, started, change, *command, workers=1):
    """(exit code, output, errors) of a command while whose first experts train something changes."""
    epochs = 40 if workers == 1 else 200  # two are to train at once for a while
    process = started(*command, "--study", file, "--workers", workers, "--set", f"expert_training.epochs={epochs}")
    until(lambda: len(list(file.parent.glob("expert/*/.work-*/checkpoint.safetensors"))) == workers, process)
    change(file)
    out, errors = process.communicate(timeout=500)
    with dg.DagsterInstance.from_config(str(file.parent / "dagster")) as instance:
        assert "FAILURE" not in {run.status.value for run in instance.get_runs()}
    return process.returncode, out, errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "what", "workers"),
    [
        (request_refit, "request to refit", 1),
        (forget_a_post, "takedown", 1),
        pytest.param(forget_a_post, "takedown", 2, marks=pytest.mark.soak),
    ],
)
def test_a_request_or_a_takedown_is_planned_for_again(file, started, change, what, workers):
    """With two at once the other expert still trains when the rest is planned again."""
    code, out, errors = changed_meanwhile(file, started, change, "run", "--until", "expert", workers=workers)
    assert (code, f"Inputs changed ({what}); replanning the remaining tasks" in errors) == (0, True), out + errors
    assert " 0 failed, 0 not started" in out
    states = json.loads(hardmoe("status", "--json", "--study", file).output)["assets"]
    assert {s["state"] for s in states if s["asset"] in ("posts", "trunk", "partition", "expert")} == {"fresh"}


@pytest.mark.slow
@pytest.mark.parametrize("change", [request_refit, forget_a_post])
def test_a_backfill_leaves_what_waits_now_for_others_and_says_so(file, started, change):
    code, out, errors = changed_meanwhile(file, started, change, "backfill", "--all")
    assert code == 1
    assert "1 made, 0 fresh, 0 failed" in out
    left = [line for line in errors.splitlines() if line.startswith("Not started: expert:")]
    assert len(left) == 3, errors
    assert all("its inputs changed, and it waits for " in line for line in left)
    states = json.loads(hardmoe("status", "--json", "--study", file).output)["assets"]
    assert "failed" not in {s["state"] for s in states}


def set_to(*settings):
    return lambda file: override(file, settings).write()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "workers"),
    [
        (["run", "--until", "shared_decoder"], 1),
        pytest.param(["run", "--until", "shared_decoder"], 2, marks=pytest.mark.soak),
        pytest.param(["backfill", "--all"], 1, marks=pytest.mark.soak),
        pytest.param(["backfill", "--all"], 2, marks=pytest.mark.soak),
    ],
)
def test_other_settings_are_planned_for_again(file, started, command, workers):
    """With two at once the other expert, which trains as planned before, is trained again."""
    change = set_to("expert_training.lr=0.07", "expert_training.epochs=1")
    code, out, errors = changed_meanwhile(file, started, change, *command, workers=workers)
    assert code == 0, out + errors
    assert "Inputs changed (settings); replanning the remaining tasks" in errors
    assert " 0 failed, 0 not started" in out
    trained = [opened(file).need("expert", key) for key in opened(file).experts]
    assert {expert.settings["expert_training"]["lr"] for expert in trained} == {0.07}


@pytest.mark.slow
def test_settings_that_change_nothing_that_is_to_be_made_train_nothing_twice(file, started):
    code, out, errors = changed_meanwhile(file, started, set_to("evaluation.bootstrap=7"), "run", "--until", "expert")
    assert code == 0, out + errors
    assert out.count("done    expert:") == len(opened(file).experts)


class SourceGoes:
    """A pool whose first task finds that its inputs changed, when the source has gone away for good."""

    capacity, tries = 2, 1

    def __init__(self, source):
        self.source = source

    def load_ahead(self):
        pass

    def has_room(self, task, running):
        return len(running) < self.capacity

    def submit(self, task, run_id, log, study):
        self.source.unlink()
        future = Future()
        future.set_result(TaskResult("its input changed", inputs_changed=True))
        return future

    def close(self):
        pass


def test_a_source_that_goes_away_ends_what_cannot_be_planned_again(tmp_path, monkeypatch):
    source = WRITERS["parquet"](random_posts(20), tmp_path)
    file = write(tmp_path / "study", small_study(source=source))
    monkeypatch.setenv("HARDMOE_STUDY", str(file))
    monkeypatch.setenv("DAGSTER_HOME", str(file.parent / "dagster"))
    monkeypatch.setattr("pipelines.run.scheduler.pool_on", lambda *_: SourceGoes(Path(source.uri)))
    done = run_study(opened(file), until="splits", workers=1)
    (failed,) = done.failed
    assert failed.startswith("posts:")
    assert (done.skipped, done.made) == (["splits"], [])


STARTING = """
import sys
from pathlib import Path
from moe_core.study_file import override
from pipelines.cli.common import study_at
from pipelines.run.scheduler import run_study

if __name__ == "__main__":
    context = study_at(Path(sys.argv[1]))
    override(Path(sys.argv[1]), ["data.min_side=9"]).write()  # before the processes that work have read it
    done = run_study(context, until="posts", workers=1)
    print(done.made, sorted(done.failed))
"""


def test_settings_that_change_while_a_run_starts_are_those_that_are_used(tmp_path):
    file = write(tmp_path, small_study())
    (tmp_path / "run.py").write_text(STARTING)
    environment = {k: v for k, v in os.environ.items() if k != "DAGSTER_HOME"}
    command = [sys.executable, str(tmp_path / "run.py"), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout == "['posts:s0000', 'posts:s0001'] []\n", done.stdout + done.stderr
    assert {a.settings["data"]["min_side"] for a in opened(file).store.everything("posts")} == {9}
