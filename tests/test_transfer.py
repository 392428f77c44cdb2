"""Transfer to labels that a user names: the measures on drawn features, and the stage on a study."""

import json

import numpy as np
import polars as pl
import pytest
import torch

from helpers.partitioned import hardmoe
from moe_core.engine.build import build
from moe_core.errors import BadSetting, TooFewPosts
from moe_core.evaluation.transfer import FOLDS, folds_of, neighbors_right, probe_right
from moe_core.settings import Evaluation
from moe_core.stages import reading
from moe_core.stages.evaluation.labels import hash_of_labels
from moe_core.study_file import dump_study, load_study
from moe_core.workspace import open_study

LABELS = 3


def drawn(count=600, apart=4.0, seed=0):
    """(features about a center for each label, labels, folds)."""
    draw = np.random.default_rng(seed)
    label_N = draw.integers(0, LABELS, count)
    features_ND = draw.standard_normal((count, 8)) + apart * np.eye(8)[label_N]
    return torch.from_numpy(features_ND), torch.from_numpy(label_N), folds_of(np.arange(count))


@pytest.mark.parametrize("right", [neighbors_right, probe_right])
def test_labels_that_lie_apart_are_told_and_chance_is_chance(right):
    features_ND, label_N, fold_N = drawn()
    assert right(features_ND, label_N, fold_N, LABELS, "cpu").mean() > 0.95
    shuffled_N = label_N[torch.randperm(len(label_N), generator=torch.Generator().manual_seed(0))]
    assert abs(right(features_ND, shuffled_N, fold_N, LABELS, "cpu").mean() - 1 / LABELS) < 0.08


@pytest.mark.parametrize("right", [neighbors_right, probe_right])
def test_a_post_is_told_from_other_folds_alone(right):
    """Copies with labels at random: who saw the copy would know, and copies share a fold."""
    draw = np.random.default_rng(1)
    features_ND = torch.from_numpy(np.repeat(draw.standard_normal((300, 64)), 2, axis=0))
    label_N = torch.from_numpy(np.repeat(draw.integers(0, 2, 300), 2))
    together = folds_of(np.repeat(np.arange(300), 2))
    apart = np.tile([0, 1, 2, 3, 4], 120)
    assert right(features_ND, label_N, together, 2, "cpu").mean() < 0.6
    assert right(features_ND, label_N, apart, 2, "cpu").mean() > 0.6


def test_the_linear_probe_needs_no_scale():
    features_ND, label_N, fold_N = drawn()
    scaled = probe_right(features_ND * torch.logspace(-4, 4, 8) + 100, label_N, fold_N, LABELS, "cpu")
    assert scaled.mean() == pytest.approx(probe_right(features_ND, label_N, fold_N, LABELS, "cpu").mean(), abs=0.02)


def test_folds_are_equal_and_keep_groups():
    group_N = np.repeat(np.arange(100), np.random.default_rng(0).integers(1, 8, 100))
    fold_N = folds_of(group_N)
    assert all(len(set(fold_N[group_N == group])) == 1 for group in range(100))
    sizes = np.bincount(fold_N, minlength=FOLDS)
    assert sizes.max() - sizes.min() <= 7


@pytest.mark.parametrize(
    ("name", "content", "columns", "wanted"),
    [
        ("none.csv", None, {}, r"labels_file: no table at .*none.csv: wanted a file whose name ends in .parquet, .csv"),
        ("labels.txt", "id,label\n", {}, "wanted a file whose name ends in"),
        ("labels.csv", "id,kind\n1,a\n", {}, r"labels_column: .* has no column label: it has id, kind"),
        ("labels.csv", "key,kind\n1,a\n", {"labels_column": "kind"}, "labels_id_column: .* has no column id"),
        ("labels.parquet", "no parquet", {}, "labels_file: .*labels.parquet cannot be read"),
    ],
)
def test_what_is_wrong_with_a_table_of_labels_is_said_in_a_line(tmp_path, name, content, columns, wanted):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(BadSetting, match=wanted):
        hash_of_labels(Evaluation(labels_file=str(tmp_path / name), **columns))


def labelled(context, label):
    """The study of a copied store with labels of its test posts, by their number."""
    ids = pl.concat(reading.split_batches(context, ["id", "split"])).filter(pl.col("split") == "test")["id"].to_list()
    rows = {"photo": ids, "what": [label(number) for number in range(len(ids))]}
    pl.DataFrame(rows).write_csv(context.root / "labels.tsv", separator="\t")
    columns = {"labels_file": "labels.tsv", "labels_column": "what", "labels_id_column": "photo"}
    evaluation = context.study.evaluation.model_copy(update=columns)
    file = context.root / "study.toml"
    file.write_text(dump_study(context.study.model_copy(update={"evaluation": evaluation})), "utf-8")
    return file


def test_the_evaluation_of_a_study_tells_its_labels(copied, one_thread):
    before = copied.version("evaluation")
    file = labelled(copied, lambda number: f"<b>{number % 2}</b>")
    context = open_study(load_study(file), file.parent)
    assert context.version("evaluation") != before
    table = json.loads(build(context, "evaluation").artifact.file("table.json").read_text())
    transfer = table["transfer"]
    assert (transfer["column"], transfer["labels"], transfer["folds"]) == ("what", 2, 5)
    assert 20 <= transfer["n"] <= table["n"]
    rows = {row["name"]: row for row in transfer["rows"]}
    assert set(rows) == {"trunk", "mixture"}
    assert all(0 <= row[probe] <= 1 for row in rows.values() for probe in ("neighbors", "linear"))
    low, high = rows["trunk"]["neighbors_gain_ci95"]
    gain = rows["mixture"]["neighbors"] - rows["trunk"]["neighbors"]
    assert rows["trunk"]["neighbors_gain"] == pytest.approx(gain, abs=1e-4)
    assert low <= rows["trunk"]["neighbors_gain"] <= high
    build(context, "report")
    shown = hardmoe("results", "--study", file).output
    assert "Labels of what told by the frozen embedding" in shown
    page = context.planner.need("report").file("report.html").read_text()
    assert "Labels that no network was trained on" in page


def test_labels_of_too_few_posts_are_refused(copied, one_thread):
    file = labelled(copied, str)
    with pytest.raises(TooFewPosts, match=r"labels_column = what: .* and 0 labels that are on at least 10 of them"):
        build(open_study(load_study(file), file.parent), "evaluation")


def test_a_study_without_labels_keeps_its_evaluation():
    """Its version is a hash of the settings: an update must not let everybody evaluate again."""
    settings = Evaluation()
    assert not {name for name in settings.counted() if name.startswith("labels")}
    assert settings.counted() == Evaluation(labels_column="species").counted()
