"""The graph of other studies: with an asset that fails, a mistake, leaks, other decoders, another branch."""

import json
import os
import signal
import subprocess
import sys
import time

import dagster as dg
import pytest
import torch

from assets.runs import process_of
from helpers.command import hardmoe, status, write
from helpers.plain import make_plainly
from helpers.with_controls import QUICK, small_study
from moe_core.engine.build import build_all
from moe_core.settings import Expert, Partition, Source
from moe_core.study_file import load_study
from moe_core.weights import load_weights
from moe_core.workspace import open_study

FAILING_CHECK = """
import sys
from pathlib import Path
import dagster as dg
from dagster._core.utils import make_new_run_id
from moe_core.study_file import load_study
from moe_core.stages.data import split_check
from moe_core.workspace import open_study
from moe_core.engine.build import build, build_all
from moe_core.stages.graph import GRAPH
from pipelines.instance.home import prepare_home
from pipelines.run.worker import materialize
from pipelines.run.task import Task
file = Path(sys.argv[1])
context = open_study(load_study(file), file.parent)
prepare_home(context.root, 1)
instance = dg.DagsterInstance.get()
for key in context.planner.keys("posts"):
    build(context, "posts", key)
for given, violations in ((3, {}), (0, {"near_duplicates": 1})):
    split_check.check = lambda _: split_check.Checked(violations, given, 5, ["a in train is b in test"])
    error = materialize(Task("splits", None), make_new_run_id(), instance).error
    print(error or "no error", context.find("splits") is not None, sep=" | ")
"""


def test_leaks_of_the_source_are_a_warning_and_ours_stop_the_run_and_leave_nothing(tmp_path):
    file = write(tmp_path, small_study(source=Source(format="synthetic", posts=100, shards=1)))
    environment = {k: v for k, v in os.environ.items() if k != "DAGSTER_HOME"} | {"HARDMOE_STUDY": str(file)}
    command = [sys.executable, "-c", FAILING_CHECK, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    warned, failed = done.stdout.splitlines()
    assert warned == "no error | True"
    assert failed == 'check no_picture_in_two_splits failed: {"near_duplicates": 1}; a in train is b in test | False'


def test_a_failing_asset_stops_what_needs_it_and_is_named(tmp_path):
    file = write(tmp_path, small_study(partition=Partition(experts=5000)))
    done = hardmoe("run", "--study", file, "--until", "expert", check=False)
    assert done.returncode == 1
    assert "Error: partition: partition.experts = 5000, but only" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    rows = {row["asset"]: row for row in status(file)["assets"]}
    assert rows["partition"]["state"] == "failed"
    assert rows["trunk"]["state"] == "fresh"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[trunk]\nlrr = 1\n", "unknown setting 'trunk.lrr'"),
        ("[trunk]\nlr = -1\n", "trunk.lr = -1"),
        ("not toml", "is not valid TOML"),
        ("[source]\nformat = 'parquet'\nuri = '/nowhere/x.parquet'\n", "no Parquet file at /nowhere/x.parquet"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, text, why):
    (tmp_path / "study.toml").write_text(text)
    done = hardmoe("run", "--study", tmp_path / "study.toml", check=False)
    assert done.returncode == 1
    assert why in done.stderr
    assert done.stderr.count("\n") == 1


def test_init_explains_and_does_not_overwrite(tmp_path):
    import polars as pl

    from moe_core.data.synthetic import synthetic_posts

    pl.concat([pl.from_arrow(b) for b in synthetic_posts(0, 1, 50, 0)]).write_parquet(tmp_path / "x.parquet")
    done = hardmoe("init", tmp_path / "cats", "--source", tmp_path / "x.parquet")
    assert "Found 1 shard of format parquet" in done.stdout
    assert load_study(tmp_path / "cats" / "study.toml").name == "cats"
    again = hardmoe("init", tmp_path / "cats", "--source", tmp_path / "x.parquet", check=False)
    assert again.returncode == 1
    assert "exists: edit it" in again.stderr
    nothing = hardmoe("init", tmp_path / "dogs", "--source", tmp_path / "none.parquet", check=False)
    assert "no Parquet file at" in nothing.stderr


def test_refit_scratch_and_two_levels_run_too(tmp_path):
    study = small_study(
        partition=Partition(experts=2, pca=8, fine=6),
        decoder=small_study().decoder.model_copy(update={"mode": "refit"}),
        expert=small_study().expert.model_copy(update={"start": "scratch"}),
        evaluation=small_study().evaluation.model_copy(update={"controls": False}),
    )
    context = open_study(study, tmp_path)
    build_all(context)
    assert context.need("shared_decoder").metadata["loss"] > 0
    assert context.need("partition").metadata["centroids"] == 6


def test_a_worker_makes_many_runs_and_its_death_fails_only_the_one_it_was_at(tmp_path):
    study = small_study(
        expert_training=QUICK.model_copy(update={"epochs": 25, "checkpoint_seconds": 0.1}),
        evaluation=small_study().evaluation.model_copy(update={"controls": False}),
    )
    file = write(tmp_path, study)
    hardmoe("run", "--study", file, "--until", "partition", "--workers", "1")
    with dg.DagsterInstance.from_config(str(tmp_path / "dagster")) as instance:
        runs = instance.get_runs()
        assert len(runs) == 8
        assert len({process_of(run) for run in runs}) == 1
    environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}
    command = [sys.executable, "-m", "pipelines.cli.main", "run", "--study", str(file), "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("expert/e000/.work-*/checkpoint.safetensors")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(json.loads((tmp_path / ".progress" / "expert.e000.json").read_text())["pid"], signal.SIGKILL)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Error: expert:e000: its process ended: killed by signal 9" in errors
    assert "1 made, 8 fresh, 1 failed, 8 not started" in said  # the other expert, by another worker
    assert " 0 failed" in hardmoe("run", "--study", file, "--workers", "1").stdout


def test_an_expert_that_branches_late_has_the_trunks_early_stages_and_the_table_counts_them_once(tmp_path):
    study = small_study(expert=Expert(branch_at=1))
    make_plainly(write(tmp_path, study))
    context = open_study(study, tmp_path)
    trunk, _ = load_weights(context.need("trunk").file("weights.safetensors"))
    for name in ("expert", "random_expert", "separate_expert"):
        expert, _ = load_weights(context.need(name, "e000").file("weights.safetensors"))
        changed = {tensor.split(".")[0] for tensor in trunk if not torch.equal(trunk[tensor], expert[tensor])}
        assert changed - {"fc"} == {"layer2", "conv_embed", "bn_embed"}
    rows = {row["name"]: row for row in json.loads(context.need("evaluation").file("table.json").read_text())["rows"]}
    early = 3 * 4 * 9 + 2 * 4 * 4 * 9 + 3 * 2 * 4  # stem, two convolutions, three batch norms
    body = rows["trunk"]["parameters"] - (16 + 1) * len(trunk["fc.bias"])
    extra = rows["mixture_top1"]["parameters"] - rows["trunk"]["parameters"] - 2 * (body - early)
    assert extra == 17 * len(trunk["fc.bias"])  # the refitted decoder
    early = 16 * 16 * (3 * 4 * 9 + 2 * 4 * 4 * 9)  # multiply-adds of stem and first stage
    twice = 2 * rows["trunk"]["multiply_adds"]
    assert rows["mixture_top1"]["multiply_adds"] == twice - early
    assert 0.8 * twice < rows["dense_same_cost"]["multiply_adds"] <= twice


def test_files_of_the_current_folder_are_not_taken_for_our_packages(tmp_path):
    for name in ("assets.py", "pipelines.py", "moe_core.py"):
        (tmp_path / name).write_text("raise RuntimeError('a user has a file of this name')")
    file = write(tmp_path / "study", small_study())
    script = "import sys; sys.path.pop(0); from pipelines.cli.main import main; main()"  # as the installed command does
    command = [sys.executable, "-c", script, "run", "--until", "posts", "--study", str(file)]
    environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 made, 0 fresh, 0 failed" in done.stdout
