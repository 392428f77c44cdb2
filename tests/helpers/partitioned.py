"""A study that has its partition, and commands on it."""

import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from helpers.command import write
from helpers.with_controls import QUICK, small_study
from moe_core.settings import Partition, Source
from pipelines.cli.main import main

TO_THE_PARTITION = """
import sys
from pathlib import Path
from moe_core.settings import load_study
from moe_core.stages.gate import current_partition
from moe_core.workspace import open_study
from moe_core.engine.build import build
from moe_core.stages.graph import GRAPH
file = Path(sys.argv[1])
context = open_study(load_study(file), file.parent)
for name in ("posts", "splits", "vocabulary", "trunk", "trunk_features", "partition"):
    for key in context.planner.keys(name):
        build(context, name, key)
"""


def up_to_the_partition(folder):
    """A study made up to its partition by a plain script: Dagster knows nothing of it."""
    source, partition = Source(format="synthetic", posts=900, shards=1), Partition(experts=3, pca=8)
    training = QUICK.model_copy(update={"checkpoint_seconds": 0.1})
    study = small_study(source=source, partition=partition, expert_training=training)
    file = write(folder, study)
    subprocess.run([sys.executable, "-c", TO_THE_PARTITION, str(file)], check=True)
    return file


def hardmoe(*arguments):
    """In this process: what only looks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DAGSTER_HOME", raising=False)
        patch.setenv("HARDMOE_STUDY", "")
        return CliRunner().invoke(main, list(map(str, arguments)))


def until(true, process=None, seconds=120):
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found
