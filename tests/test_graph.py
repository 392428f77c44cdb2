"""The whole graph at reduced size, through the command and real Dagster runs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

from helpers.command import hardmoe, states, status, write
from helpers.plain import make_plainly
from helpers.processes import mentions
from helpers.with_controls import QUICK, small_study
from moe_core.stages.graph import GRAPH
from moe_core.study_file import dump_study, load_study
from moe_core.workspace import open_study


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    file = write(tmp_path_factory.mktemp("finished"), small_study())
    done = hardmoe("run", "--study", file)
    assert " 0 failed" in done.stdout
    return file


def test_everything_is_made_and_fresh(finished):
    found = states(finished)
    assert set(found.values()) == {"fresh"}
    assert {asset for asset, _ in found} == set(GRAPH.for_study(load_study(finished)).usual)
    assert [key for asset, key in found if asset == "expert"] == ["e000", "e001"]


def test_posts_are_conserved(finished):
    posts = status(finished)["posts"]
    assert posts["read"] == 1500 == posts["accepted"] + posts["rejected"]
    assert sum(posts["rejects_by_reason"].values()) == posts["rejected"] > 0


def test_again_makes_nothing_and_trains_nothing(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.parent.rglob("weights.safetensors")}
    assert "0 would run, 25 are fresh" in hardmoe("run", "--study", finished, "--dry-run").stdout
    done = hardmoe("run", "--study", finished)
    assert "0 made, 25 fresh, 0 failed" in done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in finished.parent.rglob("weights.safetensors")}


def test_the_table_has_every_row_with_its_interval_and_cost(finished):
    table = json.loads(hardmoe("results", "--study", finished, "--json").stdout)
    rows = {row["name"]: row for row in table["rows"]}
    assert table["study"] == "tiny"
    chosen = open_study(load_study(finished), finished.parent).need("mixture").metadata
    entropies = chosen["validation_cross_entropy"]
    assert table["published"] == chosen["answer"] == min(entropies, key=entropies.get)
    assert {
        "trunk",
        "trunk_same_budget",
        "dense_same_cost",
        "random_partition",
        "mixture_topk",
        "separate_decoders_top1",
    } < set(rows)
    for row in rows.values():
        for name in ("p_at_1", "p_at_5", "r_at_5", "r_at_10", "cross_entropy", "map"):
            low, high = row[f"{name}_ci95"]
            assert low <= row[name] <= high
    assert rows["trunk"]["multiply_adds"] * 2 == rows["mixture_top1"]["multiply_adds"]
    dense, mixture, trunk = (rows[name] for name in ("dense_same_cost", "mixture_top1", "trunk"))
    assert trunk["multiply_adds"] < dense["multiply_adds"] <= mixture["multiply_adds"]
    trained = dense["multiply_adds"] * dense["training_images"]
    assert trained == pytest.approx(trunk["multiply_adds"] * mixture["training_images"], rel=0.1)
    assert set(table["published_gains"]) == set(rows) - {table["published"]}
    for pair in table["published_gains"].values():
        for name in ("p_at_1", "r_at_5", "r_at_10"):
            low, high = pair[f"{name}_gain_ci95"]
            assert low <= pair[f"{name}_gain"] <= high
    assert rows["trunk"]["training_images"] < rows["mixture_top1"]["training_images"]
    assert rows["best_expert_oracle"]["cross_entropy"] <= rows["mixture_top1"]["cross_entropy"] + 1e-6


def test_a_changed_setting_makes_stale_exactly_what_reads_it(finished, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(finished.parent, root)
    study = load_study(root / "study.toml")
    changed = study.model_copy(update={"evaluation": study.evaluation.model_copy(update={"bootstrap": 50})})
    (root / "study.toml").write_text(dump_study(changed), "utf-8")
    found = status(root / "study.toml")["assets"]
    assert {row["asset"]: row["why"] for row in found if row["state"] != "fresh"} == {
        "evaluation": "setting evaluation.bootstrap changed from 1000 to 50",
        "report": "evaluation changed",
    }


def test_a_plain_script_makes_the_same_artifacts(finished, tmp_path):
    file = write(tmp_path, load_study(finished))
    context = open_study(load_study(file), tmp_path)
    through_dagster = open_study(load_study(finished), finished.parent)
    make_plainly(file)
    for name in context.planner.graph.usual:
        for key in context.planner.keys(name):
            assert context.need(name, key).content_hash == through_dagster.need(name, key).content_hash, (name, key)


def test_dagster_records_each_run_with_the_versions_it_read(finished):
    context = open_study(load_study(finished), finished.parent)
    with dg.DagsterInstance.from_config(str(finished.parent / "dagster")) as instance:
        which = dg.AssetRecordsFilter(asset_key=dg.AssetKey("expert"), asset_partitions=["e001"])
        (record,) = instance.fetch_materializations(which, limit=10).records
        said = record.asset_materialization.metadata
        assert said["version"].value == context.version("expert", "e001")
        assert f"| trunk | {context.version('trunk')} |" in said["made from"].value
        observed = instance.fetch_observations(dg.AssetKey("expert_shard"), limit=10).records
        assert {r.partition_key for r in observed} == {"e000", "e001"}
        assert len(instance.get_runs()) == 25


def test_the_check_of_splits_is_recorded_and_passes(finished):
    with dg.DagsterInstance.from_config(str(finished.parent / "dagster")) as instance:
        key = dg.AssetCheckKey(dg.AssetKey("splits"), "no_picture_in_two_splits")
        (record,) = instance.event_log_storage.get_asset_check_execution_history(key, limit=10)
        said = record.event.dagster_event.asset_check_evaluation_data
        assert said.passed
        assert said.blocking
        assert said.metadata["held-out posts searched"].value > 100


def test_predict_names_hashtags_and_refuses_what_is_no_image(finished, tmp_path):
    from moe_core.data.synthetic import synthetic_posts

    picture = next(synthetic_posts(0, 1, 3, seed=5)).to_pylist()[0]["image"]
    (tmp_path / "a.png").write_bytes(picture)
    (tmp_path / "b.png").write_bytes(b"no")
    done = hardmoe(
        "predict", "--bundle", finished.parent, tmp_path / "a.png", tmp_path / "b.png", "--json", check=False
    )
    good, bad = json.loads(done.stdout)
    assert done.returncode == 1
    assert len(good["tags"]) == 5
    assert good["tags"][0]["p"] >= good["tags"][1]["p"] > 0
    assert bad["error"].startswith("not_an_image: ")


def test_predict_takes_folders_and_many_files_in_batches(finished, tmp_path):
    from moe_core.data.synthetic import synthetic_posts

    (tmp_path / "deep").mkdir()
    rows = next(synthetic_posts(0, 1, 300, seed=5)).to_pylist()
    for number, row in enumerate(rows):
        (tmp_path / "deep" / f"{number:03d}.png").write_bytes(row["image"])
    command = ("predict", "--bundle", finished.parent, tmp_path, tmp_path / "deep" / "000.png", "--json", "--top", 2)
    answers = json.loads(hardmoe(*command, check=False).stdout)
    assert [Path(a["image"]).name for a in answers] == [f"{n:03d}.png" for n in range(len(rows))] + ["000.png"]
    good = [a for a in answers if "error" not in a]
    assert {a["expert"] for a in good} == {"e000", "e001"}
    alone = json.loads(hardmoe(*command[:3], good[-1]["image"], "--json", "--top", 2).stdout)[0]
    assert [t["tag"] for t in alone["tags"]] == [t["tag"] for t in good[-1]["tags"]]
    assert alone["expert"] == good[-1]["expert"]
    more = json.loads(hardmoe(*command[:3], good[-1]["image"], "--json", "--topk", 2, "--temperature", 9).stdout)[0]
    assert more["answer"] == "mixture_topk"
    assert more["tags"] != alone["tags"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--memory", 0], "--memory 0: wanted at least 1"),
        (["--topk", 0], "--topk 0: wanted at least 1"),
        (["--temperature", 0], "--temperature 0.0: wanted a number above 0"),
        (["--window", 0], "--window 0: wanted at least 1"),
        (["{}/empty"], "holds no image file"),
    ],
)
def test_a_mistake_in_predict_is_one_line(finished, tmp_path, options, why):
    from moe_core.data.synthetic import synthetic_posts

    options = [str(option).format(tmp_path) for option in options]
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").write_bytes(next(synthetic_posts(0, 1, 3, seed=5)).to_pylist()[0]["image"])
    done = hardmoe("predict", "--bundle", finished.parent, tmp_path / "a.png", *options, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert why in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_bundle_with_swapped_experts_is_refused(finished, tmp_path):
    context = open_study(load_study(finished), finished.parent)
    shutil.copytree(context.need("mixture").path, tmp_path / "bundle")
    one, two = (tmp_path / "bundle" / "experts" / f"e00{n}.safetensors" for n in (0, 1))
    one.rename(tmp_path / "other")
    two.rename(one)
    (tmp_path / "other").rename(two)
    done = hardmoe("predict", "--bundle", tmp_path / "bundle", "x.png", check=False)
    assert done.returncode == 1
    assert "e000.safetensors holds expert e001" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_flipped_byte_in_a_bundle_is_refused(finished, tmp_path):
    context = open_study(load_study(finished), finished.parent)
    shutil.copytree(context.need("mixture").path, tmp_path / "bundle")
    path = tmp_path / "bundle" / "decoder.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    done = hardmoe("predict", "--bundle", tmp_path / "bundle", "x.png", check=False)
    assert done.returncode == 1
    assert "SHA-256 differs" in done.stderr


def test_backfill_trains_the_experts_it_is_told(finished):
    done = hardmoe("backfill", "--study", finished, "--experts", "e001", "--force")
    assert "1 made" in done.stdout
    assert hardmoe("backfill", "--study", finished, "--missing").stdout.startswith("No expert is to be trained")
    wrong = hardmoe("backfill", "--study", finished, "--experts", "e009", check=False)
    assert "no expert e009: wanted some of e000, e001" in wrong.stderr


def test_sigkill_in_an_expert_then_again_gives_the_same_weights(finished, tmp_path):
    """The whole tree is killed while an expert trains; what comes out later is equal to the bit."""
    longer = small_study(
        expert_training=QUICK.model_copy(update={"epochs": 25, "checkpoint_seconds": 0.1}),
        evaluation=small_study().evaluation.model_copy(update={"controls": False}),
    )
    whole, killed = write(tmp_path / "whole", longer), write(tmp_path / "killed", longer)
    hardmoe("run", "--study", whole, "--until", "shared_decoder")
    environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}
    command = [sys.executable, "-m", "pipelines.cli.main", "run", "--study", str(killed), "--until", "shared_decoder"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 120
    while not list(killed.parent.glob("expert/*/.work-*/checkpoint.safetensors")):
        assert process.poll() is None, "ended before an expert had a checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while [p for p in Path("/proc").glob("[0-9]*/environ") if mentions(p, str(killed))]:
        assert time.monotonic() < deadline, "an orphan trains on"
        time.sleep(0.1)
    assert not list(killed.parent.glob("expert/e00?/[0-9a-f]*/weights.safetensors"))
    again = hardmoe("run", "--study", killed, "--until", "shared_decoder")
    assert " 0 failed" in again.stdout
    one, two = (open_study(load_study(f), f.parent) for f in (whole, killed))
    for key in one.experts:
        assert (
            one.need("expert", key).files["weights.safetensors"] == two.need("expert", key).files["weights.safetensors"]
        )
    with dg.DagsterInstance.from_config(str(killed.parent / "dagster")) as instance:
        ended = [run.status for run in instance.get_runs()]
        assert dg.DagsterRunStatus.FAILURE in ended
        assert dg.DagsterRunStatus.STARTED not in ended


STALENESS = """
import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG, CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest
from pipelines.definitions import defs

with dg.DagsterInstance.get() as instance:
    def states():
        resolver = CachingStaleStatusResolver(instance, defs.resolve_asset_graph(), LoadingContextForTest(instance))
        print(*(resolver.get_status(dg.AssetKey("expert"), key).value for key in ("e000", "e001")))

    states()
    tags = {DATA_VERSION_TAG: "another cluster"}
    instance.report_runless_asset_event(dg.AssetObservation("expert_shard", partition="e001", tags=tags))
    states()
"""


def test_only_the_expert_whose_cluster_changed_is_stale_for_dagster(finished, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(finished.parent, root)
    environment = os.environ | {"HARDMOE_STUDY": str(root / "study.toml"), "DAGSTER_HOME": str(root / "dagster")}
    done = subprocess.run([sys.executable, "-c", STALENESS], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines() == ["FRESH FRESH", "FRESH STALE"], done.stderr
