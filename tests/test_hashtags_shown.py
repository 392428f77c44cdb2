"""Bands and hashtags on the terminal, and evaluations of before, which have none."""

import json
from dataclasses import replace

import polars as pl
import pytest
from click.testing import CliRunner

from helpers.kills import study
from moe_core.evaluation.hashtag_table import gained_and_lost, hashtags_file, most_tested
from moe_core.evaluation.page import render_table
from moe_core.maintenance.card import card_today
from moe_core.store.artifact import StageOutput
from moe_core.study_file import dump_study
from moe_core.workspace import open_study
from pipelines.cli.main import main


def hardmoe(context, *arguments):
    done = CliRunner().invoke(main, [*arguments, "--study", str(context.root / "study.toml")])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def root(copied, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv("HARDMOE_STUDY", "")
    (copied.root / "study.toml").write_text(dump_study(study()), "utf-8")
    return copied


def without_hashtags(context):
    """The evaluation as hardmoe wrote it before: no hashtags.parquet, no bands, no gains in mAP."""
    evaluation = context.need("evaluation")
    table = json.loads(evaluation.file("table.json").read_text("utf-8"))
    del table["bands"]
    for pair in table["published_gains"].values():
        del pair["map_gain"], pair["map_gain_ci95"]

    def write(folder):
        (folder / "table.json").write_text(json.dumps(table))
        return StageOutput(evaluation.metadata)

    context.store.remove(evaluation)
    return context.store.make(replace(evaluation.spec, code="6"), write), table


def test_the_terminal_shows_bands_and_names_the_file_of_hashtags(root):
    document = json.loads(hardmoe(root, "results", "--json"))
    hashtags = pl.read_parquet(document["hashtags_file"])
    assert hashtags.height == document["hashtags"]
    assert hashtags["test_posts"].sum() == sum(band["test_tags"] for band in document["bands"]["bands"])
    text = hardmoe(root, "results")
    assert "Means over the hashtags of a band" in text
    assert all(band["band"] in text for band in document["bands"]["bands"])
    assert "mAP " in text.partition("It gains, on the same posts:")[2]
    evaluation = root.need("evaluation")
    first = most_tested(evaluation, 3)
    assert min(row["test_posts"] for row in first) >= sorted(hashtags["test_posts"])[-4]
    gained, lost = gained_and_lost(evaluation, 2)
    assert all(row["ap_gain"] > 0 for row in gained)
    assert all(row["ap_gain"] < 0 for row in lost)


def test_an_evaluation_of_before_is_shown_without_them(root):
    older, table = without_hashtags(root)
    assert hashtags_file(older) is None
    assert (most_tested(older, 9), *gained_and_lost(older, 9)) == ([], [], [])
    document = json.loads(hardmoe(root, "results", "--json"))
    assert (document["hashtags_file"], document["is_current"]) == (None, False)
    text = hardmoe(root, "results")
    assert "mixture_top1" in text
    assert "Means over the hashtags" not in text
    assert "mAP" not in text.partition("It gains, on the same posts:")[2].partition("Comparison by")[0]
    page = render_table(study(), table)
    assert "Is it better?" in page
    assert "Head, middle and tail" not in page
    assert "worth its cost:" in card_today(open_study(study(), root.root), root.version("mixture"))
