"""The whole graph in a bucket: the same results as in a folder, killed and resumed on another machine."""

import os
import shutil
import signal
import subprocess

import pytest

from helpers import seaweed
from helpers.flaky import flaky
from helpers.machines import hardmoe_on, lose
from helpers.plain import make_plainly, plain_command
from helpers.processes import until
from helpers.without_controls import QUICK, opened, quick_study
from moe_core.serving.bundle import Bundle
from moe_core.serving.publication import bundle_at
from moe_core.settings import Cluster, Decoder, Partition, Source
from moe_core.stages.training.log import log_of
from moe_core.store.artifact import Spec
from moe_core.store.layout import NAMES
from moe_core.study_file import dump_study

TRUNK = QUICK.model_copy(update={"epochs": 6.0, "checkpoint_seconds": 0.01})  # 60 steps: some checkpoints


@pytest.fixture
def machines(server, tmp_path, monkeypatch):
    """Study files in a bucket: of two machines, and of one that keeps the same study in its folder."""
    for name, value in seaweed.environment(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    store = server.settings()

    def write(**settings):
        files = [tmp_path / name / "study.toml" for name in ("one", "other", "local")]
        for file in files:
            file.parent.mkdir()
            where = {} if file.parent.name == "local" else {"store": store}
            file.write_text(dump_study(quick_study(**settings, **where)))
        return files

    return write


def killed_after_a_checkpoint(file, asset):
    """Builds up to a training, whose process is killed once a checkpoint is in the bucket."""
    fault = {**os.environ, "HARDMOE_FAULT": "kill work.saved 1"}
    assert subprocess.run(plain_command(file), env=fault).returncode == -signal.SIGKILL
    context = opened(file)
    version, place = context.version(asset), context.store.place
    assert context.find(asset) is None
    saved = [entry.name for entry in place.names(NAMES.work(asset, None, version).as_posix())]
    assert any(name.endswith(".json") for name in saved)
    place.remove(f"{asset}/.lease-{version}")  # as after a minute of silence


def results(context):
    """Content hash of everything that was built."""
    tasks = context.planner.tasks()
    assert all(task.artifact for task in tasks)
    return {task.label: (task.spec.version, task.artifact.content_hash) for task in tasks}


def test_a_study_in_a_bucket_gives_what_it_gives_in_a_folder(server, machines, tmp_path):
    one, file, local = machines(trunk=TRUNK)
    killed_after_a_checkpoint(one, "trunk")
    make_plainly(file)
    make_plainly(local)
    context, wanted = opened(file), results(opened(local))
    assert results(context) == wanted
    assert len(log_of(context.need("trunk"))) == len(log_of(opened(local).need("trunk"))), "of all its steps"
    published = Bundle(bundle_at(file))
    assert published.parts == Bundle(bundle_at(local)).parts
    assert published.folder.is_relative_to(tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")

    with flaky(server.endpoint, share=0) as counting:
        file.write_text(file.read_text().replace(server.endpoint, counting.endpoint))
        make_plainly(file)
    assert sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file()) == 0, "no file"
    assert 0 < counting.counts["passed"] < 100
    assert counting.moved < 200_000, "manifests and names"


@pytest.mark.soak
def test_joint_experts_resume_on_another_machine(machines):
    """All their processes work in one folder of a machine, whose checkpoints travel as a whole."""
    expert = QUICK.model_copy(update={"epochs": 4.0, "checkpoint_seconds": 0.01})
    one, other, local = machines(decoder=Decoder(mode="joint", rounds=6), expert_training=expert)
    killed_after_a_checkpoint(one, "joint_experts")
    make_plainly(other)
    make_plainly(local)
    assert results(opened(other)) == results(opened(local))


@pytest.mark.soak
def test_two_machines_on_one_bucket_make_the_same_though_one_is_lost(machines, tmp_path):
    """It is known to be lost after a minute of silence, and the other one needs no folder of it."""
    expert = QUICK.model_copy(update={"epochs": 150.0, "checkpoint_seconds": 0.1})
    alike = {"cluster": Cluster(threads=1), "partition": Partition(experts=4, pca=8), "expert_training": expert}
    one, other, local = machines(source=Source(format="synthetic", posts=1200, shards=1), **alike)

    def built_by(host):
        context = opened(one)
        specs = [context.planner.spec("expert", key) for key in context.experts]
        holders = [context.store.builder(spec) for spec in specs if isinstance(spec, Spec)]
        return any(holder and holder.host == host for holder in holders)

    first, second = (
        hardmoe_on(host, "run", "--workers", "1", "--study", file, HARDMOE_CACHE=str(tmp_path / host))
        for host, file in (("gpu01", one), ("gpu02", other))
    )
    try:
        until(lambda: built_by("gpu02"), first, 300)
        lose(second)
        out, errors = first.communicate(timeout=900)
        assert first.returncode == 0, out + errors
    finally:
        lose(first)
        lose(second)
    assert "0 failed" in out
    make_plainly(local)
    assert results(opened(one)) == results(opened(local))
