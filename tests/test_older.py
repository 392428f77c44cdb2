"""A table that is older than the study is shown all the same, with what changed since; reasons are words."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from helpers.growing import add_shard, growing_study, make, opened
from moe_core.engine.build import build
from moe_core.stages.graph import GRAPH
from moe_core.study_file import dump_study
from moe_core.workspace import open_study
from pipelines.cli.main import main
from pipelines.run.reasons import why_stale
from pipelines.run.status import posts_of, states_of


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study of two shards, all of it made."""
    folder = tmp_path_factory.mktemp("older")
    for number in (0, 1):
        add_shard(folder / "source", number)
    study = growing_study(folder / "source", experts=2)
    make(study, folder / "store", "report")
    return folder


@pytest.fixture
def root(made, tmp_path, monkeypatch):
    """A copy whose source can be changed, and posts taken down."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv("HARDMOE_STUDY", "")
    shutil.copytree(made / "source", tmp_path / "source")
    root = shutil.copytree(made / "store", tmp_path / "store")
    (root / "study.toml").write_text(dump_study(study_of(root)), "utf-8")
    return root


def study_of(root, **more):
    return growing_study(root.parent / "source", experts=2, **more)


def hardmoe(root, *arguments):
    return CliRunner().invoke(main, [*map(str, arguments), "--study", str(root / "study.toml")])


def reasons(root, study=None):
    """Why each asset partition is not fresh."""
    states = states_of(opened(study or study_of(root), root))
    return {(s.asset, s.key): s.why for s in states if s.state != "fresh"}


def last(root, *arguments):
    """(standard output of a command that shows the last table, what it says changed since)."""
    done = hardmoe(root, *arguments)
    assert done.exit_code == 0, done.output
    assert " is older than the study; since then: " in done.stderr, done.stderr
    return done.stdout, done.stderr.partition("since then: ")[2].partition(". `hardmoe run`")[0]


def test_a_new_file_leaves_table_and_report_in_sight_and_is_named(root):
    page = hardmoe(root, "report").stdout
    add_shard(root.parent / "source", 2)
    text, since = last(root, "results")
    assert "mixture_top1" in text
    assert since == "shard s2 added"
    said = json.loads(hardmoe(root, "results", "--json").stdout)
    assert (said["is_current"], said["changed_since"]) == (False, ["shard s2 added"])
    assert said["publication"]["is_published"], "it speaks of the mixture of the table"
    assert last(root, "report") == (page, "shard s2 added")
    found = reasons(root)
    assert found["splits", None] == "shard s2 added"
    assert not any("input" in why for why in found.values()), found


def test_nothing_is_said_of_a_table_that_is_current(root):
    done = hardmoe(root, "results", "--json")
    assert done.stderr == ""
    assert json.loads(done.stdout)["is_current"]


def shorten(file):
    pl.read_parquet(file).head(100).write_parquet(file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda source: (source / "s1.parquet").unlink(), "shard s1 removed"),
        (
            lambda source: pl.read_parquet(source / "s1.parquet").head(100).write_parquet(source / "s1.parquet"),
            "shard s1 changed",
        ),
    ],
)
def test_a_file_that_is_gone_or_another_is_named(root, change, said):
    change(root.parent / "source")
    for command in ("results", "report"):
        assert said in last(root, command)[1]
    assert reasons(root)["splits", None] == said


def test_after_a_takedown_the_table_is_there_and_status_counts_as_the_next_run_will(root):
    source = pl.read_parquet(root.parent / "source" / "s0.parquet")
    before = posts_of(opened(study_of(root), root))
    ids = root.parent / "ids"
    ids.write_text("\n".join(source["id"].head(3).to_list()) + "\n")
    done = hardmoe(root, "forget", "--ids", ids, "--apply")
    assert done.exit_code == 0, done.output
    counts = posts_of(opened(study_of(root), root))
    assert counts["read"] == before["read"] == counts["accepted"] + counts["rejected"]
    assert counts["rejects_by_reason"]["taken_down"] == 3
    assert f"posts: {before['read']:,} read, {counts['accepted']:,} accepted" in hardmoe(root, "status").stdout
    text, since = last(root, "results")
    assert "mixture_top1" in text
    assert since == "posts of shard s0 taken down"
    page = Path(last(root, "report")[0].strip())
    shown = page.read_text("utf-8")
    assert "posts of shard s0 taken down" in shown
    assert "mixture_top1" in shown
    assert "data:image/" not in shown, "no picture of a post"
    found = reasons(root)
    assert found["posts", "s0"] == "posts taken down"
    assert found["trunk", None].startswith("posts taken down; ")
    assert not any("input" in why for why in found.values()), found
    make(study_of(root), root, "posts")
    assert posts_of(opened(study_of(root), root)) == counts
    hardmoe(root, "forget", "--ids", ids, "--apply")  # again: nothing more
    assert posts_of(opened(study_of(root), root)) == counts


def test_a_source_that_is_away_shows_the_last_table(root):
    shutil.rmtree(root.parent / "source")
    done = hardmoe(root, "results")
    assert "mixture_top1" in done.stdout
    assert done.stderr.startswith("The source cannot be read now, so this is as it was last built: ")
    assert not json.loads(hardmoe(root, "results", "--json").stdout)["is_current"]
    assert Path(hardmoe(root, "report").stdout.strip()).is_file()


def test_settings_are_named_as_study_toml_has_them_with_both_values(root):
    study = study_of(root)
    faster = study.model_copy(update={"expert_training": study.expert_training.model_copy(update={"lr": 0.1})})
    found = reasons(root, faster)
    assert found["expert", "e000"] == "setting expert_training.lr changed from 0.2 to 0.1"
    assert found["shared_decoder", None] == "experts e000, e001 retrained"
    assert found["mixture", None] == "decoder changed, experts e000, e001 retrained"
    assert found["evaluation", None] == "mixture changed"
    assert last(root, "results")[1] == "setting expert_training.lr changed from 0.2 to 0.1"
    trunk = study.model_copy(update={"trunk": study.trunk.model_copy(update={"epochs": 2.0})})
    assert reasons(root, trunk)["trunk", None] == "setting trunk.epochs changed from 1.0 to 2.0"
    assert reasons(root, trunk)["trunk_features", "s0"] == "trunk retrained"


def test_each_of_several_changes_is_told_also_where_what_follows_must_wait(root):
    study = study_of(root)
    both = {
        "evaluation": study.evaluation.model_copy(update={"bootstrap": 30}),
        "partition": study.partition.model_copy(update={"iterations": 9}),
    }
    changed = study.model_copy(update=both)
    (root / "study.toml").write_text(dump_study(changed), "utf-8")
    assert last(root, "results")[1] == (
        "setting partition.iterations changed from 30 to 9; setting evaluation.bootstrap changed from 20 to 30"
    )
    assert reasons(root, changed)["partition", None] == "setting partition.iterations changed from 30 to 9"
    more = study.model_copy(update={"partition": study.partition.model_copy(update={"experts": 3})})
    (root / "study.toml").write_text(dump_study(more), "utf-8")
    assert last(root, "results")[1] == "setting partition.experts changed from 2 to 3"
    smaller = study.model_copy(update={"data": study.data.model_copy(update={"image_size": 8})})
    assert reasons(root, smaller)["posts", "s0"] == "setting data.image_size changed from 16 to 8"
    assert reasons(root, smaller)["splits", None] == "posts of shards s0, s1 changed"


def test_a_setting_that_takes_another_along_is_told_alone(root):
    """The mixture's `topk` counts only while its temperature is chosen."""
    study = study_of(root)
    fixed = study.model_copy(update={"evaluation": study.evaluation.model_copy(update={"temperature": 0.5})})
    changed = f"setting evaluation.temperature changed from {json.dumps(study.evaluation.temperature)} to 0.5"
    assert reasons(root, fixed)["mixture", None] == changed


@pytest.mark.parametrize("name", ["stop_tags", "synonyms"])
def test_a_file_of_words_counts_by_its_content_and_a_missing_one_is_said(root, name):
    study = study_of(root)
    file = root / "words.txt"
    named = study.model_copy(update={"data": study.data.model_copy(update={name: str(file)})})
    context = opened(named, root)
    with pytest.raises(ValueError, match=rf"^data\.{name}: no file {file}: wanted a text file$"):
        context.spec("vocabulary")
    assert reasons(root, named)["vocabulary", None].startswith(f"data.{name}: no file")
    file.write_text("sunset = evening\n")
    assert reasons(root, named)["vocabulary", None] == f"the file of data.{name} changed"
    before = opened(named, root).version("vocabulary")
    file.write_text("sunset = night\n")
    assert opened(named, root).version("vocabulary") != before


def test_a_takedown_of_a_user_and_a_new_file_and_a_renamed_one(root):
    source = root.parent / "source"
    (root.parent / "users").write_text(pl.read_parquet(source / "s0.parquet")["user"][0] + "\n")
    assert hardmoe(root, "forget", "--users", root.parent / "users", "--apply").exit_code == 0
    counts = posts_of(opened(study_of(root), root))
    add_shard(source, 2)
    assert posts_of(opened(study_of(root), root)) == counts, "of what is ingested"
    assert last(root, "results")[1].endswith("taken down; shard s2 added")
    (source / "s2.parquet").unlink()
    make(study_of(root), root, "posts")
    assert posts_of(opened(study_of(root), root)) == counts


def test_a_renamed_file_is_one_that_came_and_one_that_went(root):
    source = root.parent / "source"
    (source / "s1.parquet").rename(source / "s9.parquet")
    assert last(root, "results")[1] == "shard s9 added; shard s1 removed"


def test_every_stage_has_its_settings_by_their_names_in_study_toml(root):
    study = study_of(root)
    named = study.model_dump()
    for name, stage in GRAPH.items():
        for table, settings in stage.settings(study).items() if stage.when(study) else ():
            assert settings.keys() <= named[table].keys(), (name, table)


def test_posts_that_came_to_an_expert_are_told_by_their_share(root):
    add_shard(root.parent / "source", 2)
    study = study_of(root)
    make(study, root, "partition")
    context = opened(study, root)
    churn = json.loads(context.need("partition").file("churn.json").read_text())["experts"]
    again = [key for key in context.experts if churn[key]["again"]]
    assert again, "a third more posts are more than a tenth"
    found = reasons(root)
    for key in again:
        assert found["expert", key] == f"{100 * churn[key]['changed']:.1f} % of its posts changed"


def test_a_gate_that_was_fitted_from_scratch_does_not_know_by_how_much_posts_changed(root):
    study = study_of(root)
    shutil.rmtree(open_study(study, root).need("partition").path)
    other = study.model_copy(update={"partition": study.partition.model_copy(update={"seed": 5})})
    make(other, root, "partition")
    assert "churn.json" not in opened(other, root).need("partition").files
    told = {why for (name, _), why in reasons(root, other).items() if name in ("expert", "separate_expert")}
    assert told == {"its posts changed"}


def test_code_and_another_published_mixture_are_words_too(root):
    context = open_study(study_of(root), root)
    old, plan = context.need("evaluation"), context.spec("evaluation")
    (root / "evaluation" / old.version / "artifact.json").touch()
    from dataclasses import replace

    assert why_stale(context, old, replace(plan, code="99")) == (
        f"this version of hardmoe computes it in another way (code {plan.code} then, 99 now)"
    )
    published = context.spec("published")
    other = replace(published, inputs={**published.inputs, "baseline": "another"})
    assert why_stale(context, context.need("published"), other) == "another mixture was published since"
    assert build(context, "evaluation").reused
