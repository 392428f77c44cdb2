"""The whole graph in a bucket: the same results as in a folder, killed and resumed on another machine."""

import os
import shutil
import signal
import subprocess

import pytest

from helpers import seaweed
from helpers.flaky import flaky
from helpers.plain import make_plainly, plain_command
from helpers.without_controls import QUICK, opened, quick_study
from moe_core.serving.bundle import Bundle
from moe_core.serving.publication import bundle_at
from moe_core.stages.training.log import log_of
from moe_core.store.layout import NAMES
from moe_core.study_file import dump_study

TRUNK = QUICK.model_copy(update={"epochs": 6.0, "checkpoint_seconds": 0.01})  # 60 steps: some checkpoints


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with seaweed.serving(tmp_path_factory.mktemp("seaweed")) as one:
        yield one


def write(folder, **settings):
    folder.mkdir()
    file = folder / "study.toml"
    file.write_text(dump_study(quick_study(trunk=TRUNK, **settings)))
    return file


def results(context):
    """Content hash of everything that was built."""
    tasks = context.planner.tasks()
    assert all(task.artifact for task in tasks)
    return {task.label: (task.spec.version, task.artifact.content_hash) for task in tasks}


def test_a_study_in_a_bucket_gives_what_it_gives_in_a_folder(server, tmp_path, monkeypatch):
    for name, value in seaweed.environment(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    store = server.settings()
    local, one, other = write(tmp_path / "local"), write(tmp_path / "one", store=store), tmp_path / "other"

    fault = {**os.environ, "HARDMOE_FAULT": "kill work.saved 1"}
    assert subprocess.run(plain_command(one), env=fault).returncode == -signal.SIGKILL
    started = opened(one)
    version = started.version("trunk")
    place, work = started.store.place, NAMES.work("trunk", None, version).as_posix()
    assert started.find("trunk") is None
    assert any(entry.name.endswith(".json") for entry in place.names(work)), "a checkpoint is in the bucket"
    place.remove(f"trunk/.lease-{version}")  # as after a minute of silence

    file = write(other, store=store)  # as another machine, whose own folder is empty
    monkeypatch.setenv("HARDMOE_FAULT", "")
    make_plainly(file)
    make_plainly(local)
    context, wanted = opened(file), results(opened(local))
    assert results(context) == wanted
    assert len(log_of(context.need("trunk"))) == len(log_of(opened(local).need("trunk")))
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
