"""Gains extrapolated from small shares of the training: by hand, and on drawn curves whose truth is known."""

import numpy as np
import pytest

from moe_core.evaluation import extrapolation
from moe_core.evaluation.extrapolation import FORMS, SEEDS, Estimate, Sampled, chosen, curve, draw_clusters, estimates

SHARES = np.array([1 / 16, 1 / 8, 1 / 4])


@pytest.mark.parametrize(
    ("form", "gains", "whole"),
    [
        ("logarithm", [0.01, 0.02, 0.03], 0.05),  # one more point each doubling, two to come
        ("root", [-0.02, 0.02 - 0.01 * 8**0.5, 0.0], 0.01),  # 0.02 - 0.01 share^-1/2
        ("logarithm", [0.01, 0.01, 0.01], 0.01),
    ],
)
def test_a_law_is_met_where_the_gains_obey_it(form, gains, whole):
    assert extrapolation.weights(form, SHARES) @ np.array(gains) == pytest.approx(whole)
    at_M = np.array([1 / 8, 1.0])
    assert curve(form, SHARES, np.array(gains), at_M) == pytest.approx([gains[1], whole])


def drawn(draw, form, experts, posts, spread, gains_of=(-0.01, 0.03)):
    """(gains of three clusters, the true gain of all): a law of this form, clusters that differ by `spread`, posts that
    differ, and seeds."""
    at_one, slope, place_S = draw.uniform(*gains_of), draw.uniform(0.002, 0.01), FORMS[form](SHARES)
    law_S = at_one + slope * (place_S - FORMS[form](np.ones(1)))
    size_K = draw.integers(posts // experts // 2, 2 * posts // experts, experts)
    of_cluster_K = draw.normal(0, spread, experts)
    of_cluster_K -= (size_K * of_cluster_K).sum() / size_K.sum()  # they differ from their mean
    numbers, weight_C = draw_clusters(size_K, 3, draw)
    of_seeds_S1 = draw.normal(0, SEEDS, (3, 1))
    gains = []
    for number in numbers:
        growing_S1 = of_cluster_K[number] * np.array([[0.4], [0.6], [0.8]])
        noise_SN = draw.normal(0, 0.25, size_K[number]) + draw.normal(0, 0.2, (3, size_K[number]))
        gains.append(law_S[:, None] + growing_S1 + of_seeds_S1 + noise_SN)
    return Sampled(experts, gains, weight_C), at_one + draw.normal(0, SEEDS)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("spread", [0.0, 0.02])
def test_the_interval_covers_the_truth_in_about_95_of_100_drawn_curves(form, spread):
    draw, covered, widths = np.random.default_rng(7), [], []
    for _ in range(50):
        sampled, truth = zip(*(drawn(draw, form, k, 1500, spread) for k in (4, 8, 16, 32)), strict=True)
        found = estimates(sampled, SHARES, seed=0, resamples=400)
        covered += [one.low <= true <= one.high for one, true in zip(found, truth, strict=True)]
        widths += [one.high - one.low for one in found]
    assert 0.92 <= np.mean(covered) <= 0.995  # 200 of them
    assert 0.02 < np.mean(widths) < 0.2  # and it is not by saying nothing


def test_of_gains_that_are_above_zero_in_some_of_100_resamples_as_many_are():
    draw, above, truly = np.random.default_rng(3), [], []
    for _ in range(60):
        drawn_of = (drawn(draw, "logarithm", k, 1500, 0.01, (-0.06, 0.06)) for k in (4, 8, 16, 32))
        sampled, truth = zip(*drawn_of, strict=True)
        above += [one.above_zero for one in estimates(sampled, SHARES, seed=0, resamples=400)]
        truly += [true > 0 for true in truth]
    above, truly = np.array(above), np.array(truly)
    for low, high in ((0.0, 0.2), (0.2, 0.8), (0.8, 1.0)):
        some = (above >= low) & (above <= high)
        assert some.sum() > 40
        assert truly[some].mean() == pytest.approx(above[some].mean(), abs=0.1)


def test_more_posts_and_clusters_narrow_the_interval_and_seeds_leave_a_rest():
    draw = np.random.default_rng(0)

    def width(posts, clusters):
        gains = [draw.normal(0.01, 0.3, (3, posts)) for _ in range(clusters)]
        (one,) = estimates([Sampled(64, gains, np.full(clusters, 1 / clusters))], SHARES, seed=0, resamples=1000)
        assert one.parts["seeds"] > 2 * SEEDS
        return one.high - one.low

    assert width(200, 16) > 1.5 * width(5000, 16)
    assert width(1000, 3) > 1.5 * width(1000, 30)
    assert width(20_000, 8) > 4 * SEEDS


def test_gains_that_follow_no_law_widen_the_interval():
    def width(gain_S):
        gains = [np.tile(np.array(gain_S)[:, None], 50) for _ in range(3)]
        (one,) = estimates([Sampled(3, gains, np.full(3, 1 / 3))], SHARES, seed=0)
        return one.high - one.low, one.parts["fit"]

    straight, bent = width([0.01, 0.02, 0.03]), width([0.0, 0.1, 0.03])
    assert straight[1] == 0
    assert bent[1] > 10 * SEEDS
    assert bent[0] > 5 * straight[0]


def test_where_all_clusters_were_drawn_none_is_left_to_differ():
    gains = [np.full((3, 50), gain) for gain in (0.0, 0.1, 0.2)]
    (every,) = estimates([Sampled(3, gains, np.full(3, 1 / 3))], SHARES, seed=0)
    (some,) = estimates([Sampled(30, gains, np.full(3, 1 / 3))], SHARES, seed=0)
    assert every.parts["clusters"] == 0 < some.parts["clusters"]
    assert every.parts["posts"] == pytest.approx(0)  # all posts of a cluster gain the same
    assert every.mean == some.mean == pytest.approx(0.1)


@pytest.mark.parametrize("seed", range(5))
def test_no_part_of_the_doubt_is_more_than_the_whole(seed):
    """With two degrees of freedom a few resamples lie far out: they are in no interval."""
    draw = np.random.default_rng(seed)
    gains = [draw.normal(gain, 0.3, (3, 500)) for gain in draw.normal(0, 0.05, 3)]
    (one,) = estimates([Sampled(8, gains, np.full(3, 1 / 3))], SHARES, seed=seed)
    assert max(one.parts.values()) <= 1.05 * (one.high - one.low) / 2


def test_the_same_seed_gives_the_same_interval():
    sampled = [drawn(np.random.default_rng(1), "root", 8, 800, 0.01)[0]]
    assert estimates(sampled, SHARES, seed=3) == estimates(sampled, SHARES, seed=3)
    assert estimates(sampled, SHARES, seed=3) != estimates(sampled, SHARES, seed=4)


def estimate(low, high):
    return Estimate((low + high) / 2, low, high, 0.5, {}, {})


def test_of_those_that_are_estimated_to_gain_the_highest_lower_end_is_chosen():
    rows = {4: estimate(0.01, 0.02), 8: estimate(0.005, 0.09), 16: estimate(-0.01, 0.2)}
    assert chosen(rows) == 4
    assert chosen({16: rows[16]}) == 16
    assert chosen({16: rows[16], 32: estimate(-0.03, 0.02)}) == 16
    assert chosen({16: rows[16], 32: estimate(-0.009, 0.005)}) == 16, "32 is nearer to zero, and below it"
    assert chosen({16: estimate(-0.1, 0.1), 32: estimate(-0.2, -0.1)}) is None
    assert chosen({}) is None


def test_clusters_are_drawn_in_proportion_to_their_size_and_weighed_so_that_the_mean_is_that_of_all_posts():
    size_K, value_K = np.array([900, 50, 30, 15, 5, 0]), np.array([1.0, 2.0, 3.0, 4.0, 5.0, 100.0])
    draw, means, counts_K = np.random.default_rng(0), [], np.zeros(6)
    for _ in range(4000):
        numbers, weight_C = draw_clusters(size_K, 3, draw)
        assert len(set(numbers.tolist())) == 3
        assert weight_C.sum() == pytest.approx(1)
        counts_K[numbers] += 1
        means.append(weight_C @ value_K[numbers])
    assert counts_K[0] == 4000, "larger than a third of all posts: taken in any case"
    assert counts_K[5] == 0, "a cluster without posts is none"
    assert counts_K[1] / counts_K[3] == pytest.approx(50 / 15, rel=0.15)
    assert np.mean(means) == pytest.approx((size_K * value_K).sum() / size_K.sum(), rel=0.01)


@pytest.mark.parametrize("sizes", [[5], [5, 3], [7, 0, 3]])
def test_of_few_clusters_all_are_drawn(sizes):
    numbers, weight_C = draw_clusters(np.array(sizes), 3, np.random.default_rng(0))
    assert numbers.tolist() == [k for k, size in enumerate(sizes) if size]
    assert weight_C.tolist() == [size / sum(sizes) for size in sizes if size]
