"""The graph with decoder.mode joint: one generation of experts and decoder, through the command and Dagster's runs."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.command import hardmoe, states, status, write
from helpers.plain import make_plainly, plain_command
from helpers.processes import mentions
from helpers.with_controls import QUICK, small_study
from moe_core.engine.nodes import ThisMachine
from moe_core.engine.planner import Planner
from moe_core.serving.bundle import Bundle, BundlePart, write_bundle
from moe_core.settings import Decoder, Partition, Source
from moe_core.stages.experts.joint import MOST_KILLED, Helpers
from moe_core.stages.graph import GRAPH
from moe_core.stages.training.cost import training_cost
from moe_core.study_file import dump_study, load_study
from moe_core.threads import cores
from moe_core.weights import load_weights, save_weights
from moe_core.workspace import open_study

JOINT = Decoder(mode="joint", rounds=3)


def joint_study(**more):
    values = {
        "source": Source(format="synthetic", posts=900, shards=1),
        "partition": Partition(experts=3, pca=8),
        "expert_training": QUICK.model_copy(update={"epochs": 4, "checkpoint_seconds": 0.05}),
        "decoder": JOINT,
    }
    return small_study(**values | more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    file = write(tmp_path_factory.mktemp("joint"), joint_study())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARDMOE_THREADS", "1")
        patch.setenv("HARDMOE_WORKERS", "2")
        make_plainly(file)
    return file


def opened(file):
    return open_study(load_study(file), file.parent)


def weights(artifact, name="weights.safetensors"):
    return load_weights(artifact.file(name))[0]


def test_all_is_fresh_and_all_experts_hold_the_one_decoder(finished):
    found = states(finished)
    assert set(found.values()) == {"fresh"}
    assert {asset for asset, _ in found} == set(GRAPH.for_study(load_study(finished)).usual)
    context = opened(finished)
    decoder = weights(context.need("shared_decoder"), "decoder.safetensors")
    trunk = weights(context.need("trunk"))
    assert not torch.equal(decoder["weight"], trunk["fc.weight"])
    bodies = [weights(context.need("expert", key)) for key in context.experts]
    assert all(torch.equal(body["fc.weight"], decoder["weight"]) for body in bodies)
    assert not torch.equal(bodies[0]["conv1.weight"], bodies[1]["conv1.weight"])
    said = context.need("expert", "e001").metadata
    assert (
        said["generation"] == context.version("joint_experts") == context.need("shared_decoder").metadata["generation"]
    )
    assert said["training_images"] == said["steps"] * 32 > 0


def test_a_generation_is_counted_once_in_what_was_spent(finished):
    context = opened(finished)
    images = {one.asset: one.training_images for one in training_cost(context)}
    experts = [context.need("expert", key).metadata["training_images"] for key in context.experts]
    assert images["joint_experts"] == sum(experts)
    assert "expert" not in images


def without_experts(finished, root):
    shutil.copytree(finished.parent, root)
    for name in ("joint_experts", "expert", "shared_decoder"):
        shutil.rmtree(root / name)
    return root / "study.toml"


BY_DAGSTER = """
from pathlib import Path
import sys
import dagster as dg
from dagster._core.utils import make_new_run_id
from pipelines.instance.home import prepare_home
from pipelines.run.task import Task
from pipelines.run.worker import materialize
prepare_home(Path(sys.argv[1]).parent, 1)
with dg.DagsterInstance.get() as instance:
    for task in (Task("joint_experts", None), Task("expert", "e001")):
        instance.add_dynamic_partitions("tiny_experts", ["e001"])
        print(materialize(task, make_new_run_id(), instance).error or "no error")
"""


def test_one_process_under_dagster_gives_the_same_generation(finished, tmp_path):
    file = without_experts(finished, tmp_path / "copy")
    environment = {k: v for k, v in os.environ.items() if k != "DAGSTER_HOME"}
    environment |= {"HARDMOE_STUDY": str(file), "HARDMOE_WORKERS": "1", "HARDMOE_THREADS": "1"}
    command = [sys.executable, "-c", BY_DAGSTER, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout == "no error\n" * 2, done.stderr
    one, two = opened(file).need("joint_experts"), opened(finished).need("joint_experts")
    assert (one.metadata["processes"], two.metadata["processes"]) == (1, min(2, cores()))
    assert one.content_hash == two.content_hash


def test_sigkill_within_a_round_then_again_gives_the_same_bits(finished, tmp_path):
    """The process that makes the generation is killed; the one that helps it dies with it."""
    file = without_experts(finished, tmp_path / "killed")
    environment = os.environ | {"HARDMOE_WORKERS": "2", "HARDMOE_THREADS": "1"}
    command = plain_command(file, "joint_experts", "expert", "shared_decoder")
    with subprocess.Popen(command, env=environment) as process:
        while not list(file.parent.glob("joint_experts/.work-*/decoder-0001.safetensors")):
            assert process.poll() is None, "ended before the second round"
            time.sleep(0.005)
        process.kill()
    deadline = time.monotonic() + 30
    while [p for p in Path("/proc").glob("[0-9]*/cmdline") if mentions(p, str(file.parent))]:
        assert time.monotonic() < deadline, "an orphan trains on"
        time.sleep(0.1)
    assert not (file.parent / "expert").exists()
    subprocess.run(command, env=environment, check=True)
    for name, key in [("joint_experts", None), ("shared_decoder", None), ("expert", "e000"), ("expert", "e002")]:
        assert opened(file).need(name, key).content_hash == opened(finished).need(name, key).content_hash


def test_a_cluster_that_changed_makes_its_generation_and_all_experts_stale(finished, monkeypatch):
    artifact = Planner.artifact

    def versions():
        now = opened(finished)
        names = [("joint_experts", None), *(("expert", key) for key in now.experts), ("shared_decoder", None)]
        return {(name, key): now.version(name, key) for name, key in names}

    def changed_in(column):
        def with_other_members(self, stage, key=None):
            found = artifact(self, stage, key)
            if stage != "partition":
                return found
            return replace(found, metadata=found.metadata | {column: found.metadata[column] | {"e001": "others"}})

        with monkeypatch.context() as patch:
            patch.setattr(Planner, "artifact", with_other_members)
            now = versions()
        return {name for name, key in now if now[name, key] != before[name, key]}

    before = versions()
    assert changed_in("members") == {"joint_experts", "expert", "shared_decoder"}
    assert changed_in("random_members") == set()


def test_status_says_why_a_generation_is_stale(finished, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(finished.parent, root)
    study = load_study(finished)
    changed = study.model_copy(update={"decoder": JOINT.model_copy(update={"outer_lr": 0.3})})
    (root / "study.toml").write_text(dump_study(changed), "utf-8")
    found = {(row["asset"], row["key"]): row for row in status(root / "study.toml")["assets"]}
    assert found["joint_experts", None]["why"] == "setting decoder.outer_lr changed from 0.7 to 0.3"
    assert found["expert", "e002"]["why"] == "joint_experts retrained"
    assert found["trunk_same_budget", None]["state"] == found["separate_expert", "e000"]["state"] == "fresh"


def test_the_assets_of_a_generation_are_there_in_this_mode_only(finished, tmp_path):
    assert opened(finished).planner.keys("joint_experts") == (None,)
    context = opened(write(tmp_path, small_study()))
    assert "joint_experts" not in context.planner.graph
    with pytest.raises(ValueError, match=r"no asset 'joint_experts' in this study: wanted .*decoder\.mode"):
        context.spec("joint_experts")


def test_backfill_draws_a_lost_expert_and_trains_none_alone(finished, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(finished.parent, root)
    file = root / "study.toml"
    shutil.rmtree(root / "expert" / "e001")
    assert "1 made" in hardmoe("backfill", "--study", file, "--missing").stdout
    assert opened(file).need("expert", "e001").content_hash == opened(finished).need("expert", "e001").content_hash
    refused = hardmoe("backfill", "--study", file, "--experts", "e001", "--force", check=False)
    assert refused.returncode == 1
    assert "experts of one generation are trained together" in refused.stderr
    shutil.rmtree(root / "joint_experts")
    refused = hardmoe("backfill", "--study", file, "--experts", "e001", check=False)
    assert f"hardmoe run --study {file} --until expert" in refused.stderr


def test_a_bundle_of_two_generations_is_refused(finished, tmp_path):
    context = opened(finished)
    parts = {
        k: BundlePart(context.need("expert", k).file("weights.safetensors"), context.version("expert", k))
        for k in context.experts
    }
    state, about = load_weights(parts["e001"].path)
    save_weights(tmp_path / "other.safetensors", state, about | {"generation": "another"})
    whole = {key: context.need(key) for key in ("trunk", "partition", "shared_decoder", "vocabulary")}

    def bundle(folder, experts):
        folder.mkdir()
        write_bundle(
            folder,
            context.study,
            Bundle(context.need("mixture").path).hashtags,
            BundlePart(whole["trunk"].file("weights.safetensors"), whole["trunk"].version),
            BundlePart(whole["partition"].file("gate.safetensors"), whole["partition"].version),
            BundlePart(whole["shared_decoder"].file("decoder.safetensors"), whole["shared_decoder"].version),
            experts,
            dict.fromkeys(experts, True),
            "mixture_top1",
            router_weight=0.3,
            temperature=0.1,
        )
        return Bundle(folder)

    assert bundle(tmp_path / "good", parts).published == dict.fromkeys(context.experts, True)
    mixed = parts | {"e001": BundlePart(tmp_path / "other.safetensors", parts["e001"].version)}
    with pytest.raises(
        ValueError, match=r"expert e001 is of generation another, the decoder of .* not trained together"
    ):
        bundle(tmp_path / "bad", mixed)


def test_results_tell_the_agreement_of_the_embedding(finished):
    table = json.loads(hardmoe("results", "--study", finished, "--json").stdout)
    rows = {row["name"]: row for row in table["embedding_agreement"]["rows"]}
    assert set(rows) == {"trunk", "mixture", "separate_decoders"}
    for row in rows.values():
        for where in ("within", "across"):
            low, high = row[f"{where}_ci95"]
            assert 0 < low <= row[where] <= high < 1
    assert "nearest neighbors in the embedding" in hardmoe("results", "--study", finished).stdout


def test_a_takedown_names_the_generation_and_every_expert_of_it(finished, tmp_path):
    import polars as pl

    assignment = pl.read_parquet(opened(finished).need("partition").path / "assignment")
    gone = assignment.filter((pl.col("split") == "train") & (pl.col("expert") == 1))["id"][0]
    (tmp_path / "ids").write_text(gone + "\n")
    done = json.loads(hardmoe("forget", "--study", finished, "--ids", tmp_path / "ids", "--dry-run", "--json").stdout)
    saw = {name.split()[0] for name in done["saw"]}
    assert {"joint_experts", "expert:e000", "expert:e001", "expert:e002", "shared_decoder", "mixture"} <= saw
    assert {"separate_expert:e001"} == {name for name in saw if name.startswith("separate_expert")}


def test_a_killed_helper_is_replaced_and_one_that_failed_is_not(tmp_path):
    with closing(Helpers(tmp_path, ThisMachine(), [""])) as helpers:
        helpers.start(0)
        killed = helpers.members[0].process
        killed.kill()
        killed.wait()
        helpers.replace_killed()
        assert helpers.killed == 1
        replaced = helpers.members[0].process
        assert replaced is not killed
        assert replaced.wait(60) == 1, "there is no work in this folder"
        helpers.replace_killed()
        assert helpers.members[0].process is replaced
        assert helpers.killed == 1


def test_helpers_that_are_killed_again_and_again_are_given_up(tmp_path):
    with closing(Helpers(tmp_path, ThisMachine(), [""], killed=MOST_KILLED)) as helpers:
        helpers.start(0)
        last = helpers.members[0].process
        last.kill()
        last.wait()
        helpers.replace_killed()
        assert helpers.members[0].process is last
        assert helpers.killed == MOST_KILLED


def test_a_number_of_workers_that_is_none_is_refused(finished, monkeypatch):
    monkeypatch.setenv("HARDMOE_THREADS", "1")
    monkeypatch.setenv("HARDMOE_WORKERS", "1")
    assert len(ThisMachine().places(joint_study())) == 1
    monkeypatch.setenv("HARDMOE_WORKERS", "none")
    with pytest.raises(ValueError, match="HARDMOE_WORKERS is 'none': wanted a whole number of at least 1"):
        ThisMachine().places(joint_study())
