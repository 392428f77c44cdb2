"""What `hardmoe init` proposes for a source: experts, loss and validation posts, unless a recipe is asked for."""

import io
import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from PIL import Image

from moe_core.advice import Seen
from moe_core.data.sources.preview import preview
from moe_core.data.sources.shards import find_shards
from moe_core.recipes import RECIPES, quick
from moe_core.settings import Network, Source, Training
from moe_core.study_file import load_study
from moe_core.training.trial import images_per_second


def hardmoe(*arguments):
    environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}
    command = [sys.executable, "-m", "pipelines.cli.main", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def source(tmp_path):
    """6,000 posts of six tags each, a fifth of them without a picture."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file, "PNG")
    rows = {
        "id": [f"p{n}" for n in range(6000)],
        "image": [file.getvalue() if n // 5 % 5 else b"" for n in range(6000)],
        "tags": [[f"tag{(n + k) % 50}" for k in range(6)] for n in range(6000)],
    }
    pl.DataFrame(rows).write_parquet(tmp_path / "x.parquet")
    return tmp_path / "x.parquet"


def test_what_was_seen_is_counted_of_usable_posts(source):
    found = Source(format="parquet", uri=str(source))
    _, seen = preview(found, find_shards(found))
    assert seen == Seen(posts=4800, tags_a_post=6.0, distinct_tags=50, users=0, top_share=0.12)


def test_experts_loss_and_validation_posts_follow_from_the_source_with_a_reason_each(source, tmp_path):
    said = hardmoe("init", tmp_path / "cats", "--source", source)
    study = load_study(tmp_path / "cats" / "study.toml")
    assert (study.partition.experts, study.data.validation) == (2, 0.13)
    assert (study.trunk.loss, study.expert_training.loss) == ("sigmoid", "sigmoid")
    assert study.recipe == "small"
    assert "Set data.validation 0.13: 624 validation posts to choose by" in said
    assert "Set partition.experts 2: about 1,848 training posts an expert" in said
    assert 'Set loss "sigmoid": 6.0 tags a post, softmax suits up to 3, and mAP judges the mixtures' in said
    assert "Estimate for the training, from a trial: " in said
    assert "more for the controls (--quick leaves them out)" in said


def test_a_recipe_that_is_asked_for_stays_as_it_is_and_the_proposals_are_shown(source, tmp_path):
    said = hardmoe("init", tmp_path / "cats", "--source", source, "--recipe", "small", "--quick")
    study = load_study(tmp_path / "cats" / "study.toml")
    base = quick(RECIPES["small"]())
    assert study == base.model_copy(update={"name": "cats", "source": study.source})
    assert "Kept as --recipe has it, though the source suggests partition.experts 2: about 1,848 training posts" in said
    assert "--quick: no controls, 6+3 epochs" in said
    assert "for the controls" not in said


def test_the_synthetic_demo_stays_as_it_is(tmp_path):
    said = hardmoe("init", tmp_path / "demo", "--source", "synthetic", "--recipe", "demo")
    assert load_study(tmp_path / "demo" / "study.toml") == RECIPES["demo"]()
    assert "Set " not in said
    assert "suggests" not in said


@pytest.mark.parametrize("name", RECIPES)
def test_quick_keeps_all_but_controls_and_epochs(name):
    base, less = RECIPES[name](), quick(RECIPES[name]())
    assert 1 <= less.trunk.epochs < base.trunk.epochs
    assert 1 <= less.expert_training.epochs <= base.expert_training.epochs
    assert not less.evaluation.controls
    kept = {"trunk": base.trunk, "expert_training": base.expert_training, "evaluation": base.evaluation}
    assert less.model_copy(update=kept) == base


def test_a_trial_of_a_network_gives_a_speed_and_leaves_torchs_threads_as_they_were():
    import torch

    before = torch.get_num_threads()
    small = images_per_second(Network(widths=(4, 8), depths=(1, 1), embedding=16), 5, 16, Training(), "cpu")
    large = images_per_second(Network(widths=(64, 128), depths=(2, 2), embedding=16), 5, 32, Training(), "cpu")
    assert small > 4 * large > 0
    assert torch.get_num_threads() == before
