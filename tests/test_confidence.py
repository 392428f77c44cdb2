"""What test posts show of the thresholds and the temperature that validation posts gave."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from moe_core.errors import TooFewPosts
from moe_core.evaluation.metrics import bootstrap_ratio
from moe_core.evaluation.thresholds import ThresholdCounts
from moe_core.stages.evaluation.confidence import WANTED, Confidence


def bundle(curves, temperature):
    return SimpleNamespace(hashtags=["a", "b"], curves=curves, calibration_temperature=temperature)


@pytest.fixture
def curves():
    """Validation posts: hashtag a is right above 0.9, and half of the time at 0.6."""
    counts = ThresholdCounts(2)
    p_BV = torch.tensor([[0.95, 0.05]] * 40 + [[0.6, 0.4]] * 40)
    counts.add(p_BV, torch.tensor([0] * 60 + [1] * 20), torch.arange(81))
    return counts.curves()


def test_precision_and_recall_are_those_of_the_test_posts(curves):
    seen = Confidence(bundle(curves, 0.5), 4)
    p_NV = torch.tensor([[0.95, 0.05], [0.96, 0.04], [0.6, 0.4], [0.97, 0.03]])
    tags_T, starts_N1 = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 3, 4, 5])
    for rows in (slice(0, 2), slice(2, 4)):  # two parts
        starts = starts_N1[rows.start : rows.stop + 1]
        part = tags_T[starts[0] : starts[-1]]
        right_B = np.array([1.0, 1.0, 0.0, 0.0])[rows]
        seen.add(np.arange(4)[rows], p_NV[rows], right_B, part, starts - starts[0])
    table = seen.as_json(100)
    rows = {row["wanted"]: row for row in table["thresholds"]["wanted"]}
    assert set(rows) == set(WANTED)
    high = rows[0.95]  # 40 of 40 on validation posts; three of the test posts are above, two of them right
    assert (high["hashtags"], high["given"], high["validation_precision"]) == (1, 3, 1.0)
    assert high["validation_recall"] == pytest.approx(40 / 80)
    assert high["precision"] == pytest.approx(2 / 3, abs=1e-4)
    assert high["recall"] == pytest.approx(2 / 5, abs=1e-4)
    (first, _) = table["thresholds"]["hashtags"]
    assert (first["tag"], first["positives"], first["test"]) == ("a", 60, [2, 3])
    assert table["calibration"]["n"] == 4
    assert table["calibration"]["ece"] != table["calibration"]["ece_scaled"]


def test_a_mixture_without_validation_posts_has_neither():
    seen = Confidence(bundle(None, None), 1)
    seen.add(np.arange(1), torch.tensor([[0.75, 0.25]]), np.ones(1), torch.tensor([0]), torch.tensor([0, 1]))
    table = seen.as_json(10)
    assert table["thresholds"] is None
    assert table["calibration"]["temperature"] is None
    assert table["calibration"]["ece"] == table["calibration"]["ece_scaled"] == 0.25


def test_a_ratio_of_sums_has_an_interval_over_posts():
    true_N, of_N = np.array([1.0, 0, 2, 0] * 100), np.array([2.0, 0, 2, 0] * 100)
    ratio = bootstrap_ratio(true_N, of_N, 500, seed=0)
    assert ratio.mean == 0.75
    assert 0.7 < ratio.low < 0.75 < ratio.high < 0.8
    with pytest.raises(TooFewPosts, match="nothing to measure on"):
        bootstrap_ratio(np.zeros(3), np.zeros(3), 10, seed=0)
