"""A study that has its partition, and commands on it."""

import pytest
from click.testing import CliRunner

from helpers.command import write
from helpers.plain import make_plainly
from helpers.with_controls import QUICK, small_study
from moe_core.settings import Partition, Source
from pipelines.cli.main import main


def up_to_the_partition(folder):
    """A study made up to its partition by a plain script: Dagster knows nothing of it."""
    source, partition = Source(format="synthetic", posts=900, shards=1), Partition(experts=3, pca=8)
    training = QUICK.model_copy(update={"checkpoint_seconds": 0.1})
    study = small_study(source=source, partition=partition, expert_training=training)
    file = write(folder, study)
    make_plainly(file, "posts", "splits", "vocabulary", "trunk", "trunk_features", "partition")
    return file


def hardmoe(*arguments):
    """In this process: what only looks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DAGSTER_HOME", raising=False)
        patch.setenv("HARDMOE_STUDY", "")
        return CliRunner().invoke(main, list(map(str, arguments)))
