import numpy as np
import pytest
import torch
from scipy import stats

from moe_core.evaluation.measures import MEASURES
from moe_core.evaluation.metrics import (
    best_hashtags,
    bootstrap,
    found_tags,
    paired_difference,
    per_post,
)

ONE_TAG = (torch.tensor([0, 1]), torch.tensor([0, 1, 2]))  # two posts, the first with tag 0, the second with tag 1


def test_a_perfect_answer_scores_one():
    found = per_post(torch.eye(2), *ONE_TAG)
    assert found["p_at_1"].tolist() == [1, 1]
    assert found["r_at_5"].tolist() == [1, 1]
    assert found["cross_entropy"].tolist() == [0, 0]


def test_a_post_with_three_tags_by_hand():
    answer = torch.tensor([[0.4, 0.2, 0.15, 0.1, 0.08, 0.07]])
    found = per_post(answer, torch.tensor([1, 2, 5]), torch.tensor([0, 3]))
    assert found["p_at_1"].tolist() == [0]
    assert found["p_at_5"].tolist() == pytest.approx([2 / 5])
    assert found["r_at_5"].tolist() == pytest.approx([2 / 3])
    assert found["r_at_10"].tolist() == [1]
    assert found["cross_entropy"] == pytest.approx([-np.log(0.2 * 0.15 * 0.07) / 3])


def test_of_equal_probabilities_the_lower_id_comes_first():
    assert per_post(torch.full((2, 2), 0.5), *ONE_TAG)["p_at_1"].tolist() == [1, 0]


def test_which_tags_are_among_the_most_probable():
    """Of two posts: the first has tags 0 and 2 and its best two are 0 and 1, the second has tag 2, its best."""
    best = best_hashtags(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]), 10)
    found = found_tags(best, torch.tensor([0, 2, 2]), torch.tensor([0, 2, 3]), k=2)
    assert found.tolist() == [True, False, True]
    assert found_tags(best, torch.tensor([0, 2, 2]), torch.tensor([0, 2, 3])).all()  # k above the vocabulary


@pytest.mark.parametrize("hashtags", [1, 7, 10, 11, 5000])
def test_the_best_hashtags_are_the_first_of_a_stable_sort(hashtags):
    draw = torch.Generator().manual_seed(hashtags)
    alike = torch.randint(0, 4, (9, hashtags), generator=draw).float()  # many of each
    apart = torch.rand(9, hashtags, generator=draw)
    for p_BV in (alike, apart, alike * 1e-40, torch.zeros(9, hashtags)):  # subnormal numbers, too
        wanted = p_BV.argsort(dim=1, descending=True, stable=True)[:, :10]
        assert torch.equal(best_hashtags(p_BV, 10), wanted)


def test_a_post_without_tags_is_refused():
    with pytest.raises(ValueError, match="post 1 has no tag"):
        per_post(torch.eye(2), torch.tensor([0]), torch.tensor([0, 1, 1]))


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        per_post(torch.tensor([[float("nan"), 1.0]]), torch.tensor([0]), torch.tensor([0, 1]))


def test_three_posts_in_two_chunks_are_measured_as_in_one():
    answer_NV = torch.tensor([[0.7, 0.3], [0.6, 0.4], [0.1, 0.9]])
    whole = per_post(answer_NV, torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 2, 4]))
    parts = [
        per_post(answer_NV[:2], torch.tensor([0, 1]), torch.tensor([0, 1, 2])),
        per_post(answer_NV[2:], torch.tensor([0, 1]), torch.tensor([0, 2])),
    ]
    assert whole["p_at_1"].tolist() == [1, 0, 1]
    assert whole["p_at_5"].tolist() == [0.5, 0.5, 1]  # of two hashtags in all
    assert all(np.array_equal(whole[name], np.concatenate([part[name] for part in parts])) for name in whole)


def test_equal_values_have_no_spread():
    found = bootstrap(np.full(50, 0.25), 200, seed=0)
    assert (found.mean, found.low, found.high, found.n) == (0.25, 0.25, 0.25, 50)


def test_an_interval_is_about_two_standard_errors_wide():
    coins = np.arange(400) % 2.0  # standard error 0.5 / 20
    found = bootstrap(coins, 2000, seed=0)
    assert found.low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.006)
    assert found.high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.006)
    assert found == bootstrap(coins, 2000, seed=0)


def test_a_constant_gain_has_a_certain_difference():
    values = np.random.default_rng(0).random(100)
    found = paired_difference(values + 0.1, values, 100, seed=0)
    assert (found.low, found.high) == pytest.approx((0.1, 0.1))


def test_measures_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="the measure of post 1 is not finite"):
        bootstrap(np.array([1.0, np.nan]), 20, seed=0)


def test_two_rows_of_other_lengths_have_no_difference():
    with pytest.raises(ValueError, match="3 and 2 posts: wanted two measures of the same ones"):
        paired_difference(np.ones(3), np.ones(2), 20, seed=0)


def test_the_registry_has_every_measure_of_single_posts():
    assert [m.name for m in MEASURES.values() if m.of_posts] == list(per_post(torch.eye(2), *ONE_TAG))


def test_the_bootstrap_is_that_of_scipy():
    values_N = np.random.default_rng(1).random(333)
    ours = bootstrap(values_N, 200, seed=0)
    draw = np.random.default_rng([0, len(values_N)])
    theirs = stats.bootstrap((values_N,), np.mean, n_resamples=200, method="percentile", rng=draw).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
