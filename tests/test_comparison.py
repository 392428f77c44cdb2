"""The comparison in plain words, from tables whose figures a reader can follow."""

import json

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from helpers.two_mixtures import GOOD, make, tiny_study
from moe_core.data.synthetic import synthetic_posts
from moe_core.evaluation.comparison import BASELINES as ROLES
from moe_core.evaluation.comparison import compare, posts_to_decide
from moe_core.settings import Source
from moe_core.stages import reading
from moe_core.stages.data.statistics import seen, warnings_of
from moe_core.stages.evaluation.rows import ROWS
from moe_core.stages.mixture.comparison import judge
from moe_core.workspace import open_study
from pipelines.cli.main import main
from pipelines.cli.progress import Display
from pipelines.run.plan import planned_tasks

BASELINES = [name for name, row in ROWS.items() if row.role in ROLES]
COSTS = {"parameters": 100, "parameters_used": 100, "multiply_adds": 10, "training_images": 1000}


def row(name, measure, value):
    return {"name": name, "title": ROWS[name].title, "role": ROWS[name].role, measure: value} | COSTS


def table(gains, measure="p_at_1", n=1000):
    """A mixture at 0.5 with so much gain (mean, low, high) over each row."""
    rows = [row(name, measure, 0.5 - gain) for name, (gain, _, _) in gains.items()]
    mixture = row("mixture_top1", measure, 0.5) | {"multiply_adds": 20, "parameters": 400}
    against = {
        name: {f"{measure}_gain": gain, f"{measure}_gain_ci95": [low, high]}
        for name, (gain, low, high) in gains.items()
    }
    return {
        "published": "mixture_top1",
        "n": n,
        "map_posts": n // 2,
        "measure": measure,
        "rows": [*rows, mixture],
        "untrained": [r.title for r in ROWS.values() if r.role == "same_cost" and r.name not in gains],
        "published_gains": against,
    }


CLEAR, OPEN, LOST, SAME = (0.1, 0.05, 0.15), (0.01, -0.01, 0.03), (-0.1, -0.15, -0.05), (0.0, 0.0, 0.0)


def test_better_than_all_that_costs_the_same_is_worth_its_cost():
    found = compare(table(dict.fromkeys(BASELINES, CLEAR)))
    assert found.worth_its_cost == "yes"
    assert [each.outcome for each in found.compared] == ["better"] * 4
    assert found.lines == [
        "Comparison by P@1 0.500 on 1,000 test posts; 95 % intervals of the difference:",
        "  better than answering with the most frequent hashtags: +0.100 (+0.050 to +0.150), 0.500 against 0.400",
        "  better than the trunk: +0.100 (+0.050 to +0.150), 0.500 against 0.400",
        "  better than the trunk trained for the same budget: +0.100 (+0.050 to +0.150), 0.500 against 0.400",
        "  better than the dense network of the same cost: +0.100 (+0.050 to +0.150), 0.500 against 0.400",
        "  worth its cost: yes: better than the trunk trained for the same budget and the dense network of the same "
        "cost; it takes 2.0 times the trunk's multiply-adds an image, 4.0 times its parameters, 1.0 times its training "
        "images",
    ]


def test_an_interval_that_includes_zero_is_undecided_and_says_how_many_posts_would_decide():
    """Half an interval is 0.02 at 1,000 posts; it is 0.01 at four times as many."""
    found = compare(table(dict.fromkeys(BASELINES, CLEAR) | {"dense_same_cost": OPEN}))
    dense = found.compared[-1]
    assert (dense.outcome, dense.posts_to_decide, found.worth_its_cost) == ("undecided", 4000, "undecided")
    assert dense.text == (
        "undecided against the dense network of the same cost: +0.010 (-0.010 to +0.030), 0.500 against 0.490; the "
        "interval includes zero, about 4,000 test posts would decide a difference of this size"
    )
    assert found.why.startswith("no clear gain over the dense network of the same cost; it takes 2.0 times")


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize(("gain", "outcome"), [(LOST, "worse"), (SAME, "same")])
def test_one_that_is_as_good_for_less_makes_it_not_worth_its_cost(name, gain, outcome):
    found = compare(table(dict.fromkeys(BASELINES, CLEAR) | {name: gain}))
    assert found.worth_its_cost == "no"
    assert {each.row: each.outcome for each in found.compared}[name] == outcome
    assert f"{ROWS[name].title} does as well or better for less or the same" in found.why


def test_without_controls_a_better_mixture_is_not_known_to_be_worth_its_cost():
    found = compare(table({"most_frequent": CLEAR, "trunk": CLEAR}))
    assert (found.worth_its_cost, found.answer) == ("unknown", "not known")
    assert "evaluation.controls = false" in found.why
    one = compare(table({"most_frequent": CLEAR, "trunk": CLEAR, "trunk_same_budget": CLEAR}))
    assert one.worth_its_cost == "yes"
    assert "the dense network of the same cost was not trained" in one.why


def test_the_measure_of_the_table_is_the_one_judged_by():
    found = compare(table(dict.fromkeys(BASELINES, CLEAR), measure="r_at_10"))
    assert found.lines[0].startswith("Comparison by R@10 0.500 on")


@pytest.mark.parametrize(
    ("gain", "low", "high", "posts"),
    [
        (0.01, -0.01, 0.03, 4000),
        (-0.01, -0.03, 0.01, 4000),
        (0.02, 0.0, 0.04, 1100),  # zero is its very end: a few more
        (0.0, -0.01, 0.01, None),
        (0.00001, -0.02, 0.02002, None),  # four thousand million
    ],
)
def test_posts_to_decide_by_hand(gain, low, high, posts):
    assert posts_to_decide(gain, low, high, 1000) == posts


def hardmoe(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_the_row_of_frequent_hashtags_is_right_where_a_post_carries_the_most_frequent_one(both):
    context = open_study(GOOD, both)
    table = json.loads(context.need("evaluation").file("table.json").read_text())
    row = next(row for row in table["rows"] if row["name"] == "most_frequent")
    index = reading.index(context)
    use_N = reading.held_out(context, index, "test")
    posts = reading.posts_where(context, index, use_N)
    counts_V = np.bincount(posts.tags_T.numpy(), minlength=table["hashtags"])
    assert row["p_at_1"] == pytest.approx(counts_V[0] / len(posts), abs=1e-5)  # ids are by falling frequency
    assert row["p_at_5"] == pytest.approx(counts_V[:5].sum() / 5 / len(posts), abs=1e-5)
    costs = ("parameters", "parameters_used", "multiply_adds", "training_images")
    assert [row[name] for name in costs] == [0] * 4
    assert table["tags_a_post"] == pytest.approx(len(posts.tags_T) / len(posts), abs=1e-3)
    assert "most_frequent" in table["published_gains"]


def test_results_end_with_the_comparison_in_words_and_what_makes_it_doubtful(both, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv("HARDMOE_STUDY", "")
    text = hardmoe("results", "--study", both / "study.toml").stdout
    assert "Comparison by P@1" in text
    assert "worth its cost: " in text
    found = seen(open_study(GOOD, both))
    assert f"Warning: {found.validation} validation posts: publish.margin 0.005 is " in text
    said = json.loads(hardmoe("results", "--study", both / "study.toml", "--json").stdout)
    assert [each["row"] for each in said["comparison"]["compared"]] == ["most_frequent", "trunk"]
    assert said["comparison"]["worth_its_cost"] in ("no", "undecided", "unknown")
    assert len(said["warnings"]) == 2  # validation posts, and posts an expert


def test_counts_before_training_are_those_of_the_posts(both):
    context = open_study(GOOD, both)
    index, found = reading.index(context), seen(context)
    posts = reading.posts_where(context, index, index.use("train"))
    assert found.train == len(posts)
    assert found.tags_a_post == pytest.approx(len(posts.tags_T) / len(posts))
    assert found.top_share == pytest.approx(np.bincount(posts.tags_T.numpy()).max() / len(posts))


def test_a_dry_run_warns_once_splits_and_vocabulary_are_there(both, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv("HARDMOE_STUDY", "")
    options = ["run", "--study", both / "study.toml", "--dry-run"]
    retrained = [*options, "--set", "trunk.epochs=11"]
    assert "validation posts: publish.margin" in hardmoe(*retrained).stdout
    assert len(json.loads(hardmoe(*retrained, "--json").stdout)["warnings"]) == 2
    assert "Warning" not in hardmoe(*options, "--set", "evaluation.topk=1").stdout  # nothing is trained


def test_a_run_warns_before_it_trains_and_only_then(both, capsys):
    slower = GOOD.model_copy(update={"trunk": GOOD.trunk.model_copy(update={"epochs": 11.0})})
    for study, warned in ((GOOD, False), (slower, True)):
        context = open_study(study, both)
        display = Display(context, planned_tasks(context, None), 1)
        display.event("fresh", "vocabulary", "")
        assert ("Warning: " in capsys.readouterr().err) == warned


def test_a_comparison_by_map_is_of_the_posts_that_were_ranked():
    found = compare(table(dict.fromkeys(BASELINES, OPEN), measure="map"))
    assert (found.title, found.n) == ("mAP", 500)
    by_p_at_1 = compare(table(dict.fromkeys(BASELINES, OPEN)))
    assert found.compared[0].posts_to_decide < by_p_at_1.compared[0].posts_to_decide


@pytest.fixture(scope="module")
def many_tags(tmp_path_factory):
    """A store with two mixtures of posts with four tags each."""
    root = tmp_path_factory.mktemp("many")
    rows = pl.concat([pl.from_arrow(batch) for batch in synthetic_posts(0, 1, 250, 0)])
    draw = np.random.default_rng(0)
    tags = [[f"tag{n}" for n in draw.choice(8, 4, replace=False)] for _ in range(len(rows))]
    rows.with_columns(pl.Series("tags", tags)).write_parquet(root / "posts.parquet")
    source = Source(format="parquet", uri=str(root / "posts.parquet"))
    trainings = [tiny_study(lr).trunk.model_copy(update={"epochs": 1.0}) for lr in (1e-9, 0.05)]
    studies = [tiny_study(source=source, trunk=one, expert_training=one) for one in trainings]
    for study in studies:
        make(open_study(study, root), "mixture")
    return root, studies


def test_posts_of_many_tags_are_published_by_recall_and_the_record_says_so(many_tags):
    root, (old, new) = many_tags
    context = open_study(new, root)
    found = judge(context, context.version("mixture"), open_study(old, root).version("mixture"))
    assert (found.scores["measure"], found.scores["tags_a_post"]) == ("r_at_5", 4.0)
    assert found.publish == (found.scores["r_at_5_gain"] >= -0.005)
    assert found.why.startswith(
        f"R@5 {found.scores['r_at_5_new']:.4f} against {found.scores['r_at_5_published']:.4f} of "
    )
    assert "p_at_1_gain" in found.scores  # for the record
    assert "softmax" not in " ".join(warnings_of(context)), "one epoch is too few for the sigmoid"
    longer = new.model_copy(update={"trunk": new.trunk.model_copy(update={"epochs": 22.0})})
    assert "4.0 tags a post: softmax shares one answer" in " ".join(warnings_of(open_study(longer, root)))


def test_publication_is_judged_by_map_where_the_study_says_so(many_tags):
    root, (old, new) = many_tags
    by_map = new.changed(publish={"measure": "map"})
    context = open_study(by_map, root)
    baseline = open_study(old, root).version("mixture")
    found = judge(context, context.version("mixture"), baseline)
    scores = found.scores
    assert scores["measure"] == "map"
    low, high = scores["map_gain_ci95"]
    assert low <= scores["map_gain"] <= high
    assert scores["map_gain"] == pytest.approx(scores["map_new"] - scores["map_published"], abs=2e-5)
    assert 0 < scores["map_published"] < 1
    assert found.publish == (scores["map_gain"] >= -0.005)
    assert found.why.startswith(f"mAP {scores['map_new']:.4f} against {scores['map_published']:.4f} of {baseline}")
    assert "p_at_1_gain" in scores
    same = judge(context, baseline, context.version("mixture"))
    assert same.scores["map_gain"] == -scores["map_gain"]
