"""Thresholds of hashtags for a wanted precision, and the calibration of the first hashtag's probability."""

import numpy as np
import pytest
import torch

from helpers.bundles import TAGS, bundle_at, random_parts
from moe_core.errors import CorruptArtifact
from moe_core.evaluation.answers import Answer
from moe_core.evaluation.calibration import (
    TEMPERATURES,
    best_temperature,
    calibration,
    first_probabilities,
    scaled,
)
from moe_core.evaluation.thresholds import GRID_G, ThresholdCounts, lower_bound
from moe_core.serving.bundle import Bundle, decoder_of
from moe_core.serving.manifest import Entry
from moe_core.serving.thresholds import read_thresholds, write_thresholds
from moe_core.stages.mixture.thresholds import PublishedAnswer, measure
from moe_core.training.posts import ImagesInMemory, Posts


def counted(p_BV, tags, hashtags=2):
    """Counts of posts with one tag each, in two calls."""
    counts, p_BV = ThresholdCounts(hashtags), torch.tensor(p_BV, dtype=torch.float32)
    for rows in (slice(0, 7), slice(7, None)):
        some = torch.tensor(tags[rows])
        counts.add(p_BV[rows], some, torch.arange(len(some) + 1))
    return counts


# hashtag 0: thirty posts at 0.9 that carry it, ten at 0.8 that do not, ten at 0.7 that do
SCORES = [[0.9, 0.1]] * 30 + [[0.8, 0.2]] * 10 + [[0.7, 0.3]] * 10
CARRIED = [0] * 30 + [1] * 10 + [0] * 10


def test_a_threshold_is_the_lowest_whose_precision_is_good_enough_on_what_was_counted():
    curves = counted(SCORES, CARRIED).curves()
    for precision, low, high, true, above in ((0.95, 0.8, 0.9, 30, 30), (0.7, 0.0, 0.7, 40, 50)):
        threshold = curves.thresholds(precision)[0]
        assert low < threshold <= high, precision
        place = curves.places(precision)[0]
        assert (curves.true_C[place], curves.above_C[place]) == (true, above)
    assert curves.positives_V.tolist() == [40, 10]
    assert curves.posts == 50


def test_a_count_at_a_threshold_is_exact():
    p_NV = torch.rand(3000, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    tags = torch.randint(0, 4, (3000,), generator=torch.Generator().manual_seed(1))
    counts = ThresholdCounts(4)
    counts.add(p_NV, tags, torch.arange(3001))
    curves = counts.curves()
    owner_C = np.repeat(np.arange(4), np.diff(curves.starts_V1))
    assert len(owner_C) > 8
    for hashtag, threshold, true, above in zip(owner_C, curves.threshold_C, curves.true_C, curves.above_C, strict=True):
        chosen_N = p_NV[:, hashtag] >= float(threshold)
        assert (int(chosen_N.sum()), int((chosen_N & (tags == int(hashtag))).sum())) == (above, true)


def test_no_threshold_where_no_precision_is_high_enough_or_positives_are_few():
    curves = counted(SCORES, CARRIED).curves()
    assert np.isinf(curves.thresholds(0.999)[0])
    few = counted(SCORES, [0] * 5 + [1] * 45).curves()
    assert np.isinf(few.thresholds(0.01)[0]), "five posts carry it"
    assert np.isfinite(few.thresholds(0.5)[1]) or len(few.threshold_C) == 0
    assert len(ThresholdCounts(3).curves().threshold_C) == 0


def test_points_rise_in_threshold_and_in_precision_and_give_the_curve():
    curves = counted(SCORES, CARRIED).curves()
    part = slice(curves.starts_V1[0], curves.starts_V1[1])
    assert (np.diff(curves.threshold_C[part]) > 0).all()
    assert (np.diff(curves.bound_C[part]) > 0).all()
    assert curves.recall_and_precision(0) == [(0.75, 1.0), (1.0, 0.8)]


def test_the_bound_is_wilson_s_a_standard_error_below():
    assert lower_bound(9, 9) == pytest.approx(0.9)
    assert lower_bound(50, 100) == pytest.approx(0.4502, abs=1e-4)
    assert lower_bound(0, 0) == pytest.approx(0)


def test_the_grid_is_finer_than_a_percent_where_precision_is_wanted():
    near = GRID_G[(GRID_G > 0.85) & (GRID_G < 0.95)]
    assert float(near.diff().max()) < 0.01


def test_ece_is_the_weighted_distance_of_confidence_and_share_that_is_right():
    # four posts at 0.95 of which two are right, one at 0.35 that is right: 4/5 * 0.45 + 1/5 * 0.65
    found = calibration(np.array([0.95] * 4 + [0.35]), np.array([1, 0, 1, 0, 1.0]))
    assert found.ece == pytest.approx(0.8 * 0.45 + 0.2 * 0.65)
    assert [row["n"] for row in found.as_json()] == [1, 4]
    assert calibration(np.zeros(0), np.zeros(0)).ece == 0
    assert calibration(np.ones(3), np.ones(3)).ece == 0  # p = 1 lies in the last bin


def test_a_temperature_scales_logits_and_keeps_the_order():
    logits_BV = torch.tensor([[2.0, 1.0, -1.0], [0.0, 3.0, 0.5]])
    half_BV = scaled(logits_BV.softmax(1), 2.0)
    assert torch.allclose(half_BV, (logits_BV / 2).softmax(1), atol=1e-6)
    assert (half_BV.argsort(1) == logits_BV.argsort(1)).all()
    first_TB = first_probabilities(logits_BV.softmax(1))
    assert first_TB[TEMPERATURES.index(2.0)] == pytest.approx(half_BV.amax(1).numpy(), abs=1e-6)


def test_the_temperature_makes_an_overconfident_answer_as_sure_as_it_is_right():
    draw = torch.Generator().manual_seed(0)
    logits_NV = torch.randn(4000, 5, generator=draw)
    tags_N = torch.multinomial(logits_NV.softmax(1), 1, generator=draw)[:, 0]
    sure_NV = (3 * logits_NV).softmax(1)  # three times too sure
    right_N = (sure_NV.argmax(1) == tags_N).double().numpy()
    chosen = best_temperature(first_probabilities(sure_NV), right_N)
    assert 2.5 < chosen < 3.6
    before = calibration(sure_NV.amax(1).double().numpy(), right_N).ece
    after = calibration(scaled(sure_NV, chosen).amax(1).double().numpy(), right_N).ece
    assert after < 0.03 < 0.1 < before


@pytest.fixture(scope="module")
def curves():
    return counted(SCORES, CARRIED, TAGS).curves()


def test_a_bundle_keeps_thresholds_and_one_without_them_opens(tmp_path, curves):
    parts = random_parts(tmp_path, 0, count=2)
    without = Bundle(bundle_at(tmp_path / "without", parts))
    assert (without.curves, without.calibration_temperature) == (None, None)
    kept = Bundle(bundle_at(tmp_path / "with", parts, curves=curves, calibration_temperature=1.5))
    assert kept.calibration_temperature == 1.5
    for precision in (0.5, 0.9, 0.99):
        assert kept.curves.thresholds(precision).tolist() == curves.thresholds(precision).tolist()


def test_a_bundle_whose_hashtags_all_have_too_few_posts_has_no_threshold(tmp_path):
    few = counted(SCORES[:9], CARRIED[:9], TAGS).curves()
    kept = read_thresholds(tmp_path, entry_of(write_thresholds(tmp_path, few)), TAGS)
    assert np.isinf(kept.thresholds(0.0)).all()
    assert kept.posts == 9


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"true_C": 99}, "its counts do not fit together"),
        ({"threshold_C": 2}, "its counts do not fit together"),
        ({"starts_V1": 7}, "its counts do not fit together"),
    ],
)
def test_thresholds_that_contradict_themselves_are_refused(tmp_path, curves, change, why):
    ((name, value),) = change.items()
    changed = np.full_like(getattr(curves, name), value)
    manifest = write_thresholds(tmp_path, type(curves)(**(vars(curves) | {name: changed})))
    with pytest.raises(CorruptArtifact, match=why):
        read_thresholds(tmp_path, entry_of(manifest), TAGS)


def test_thresholds_of_another_vocabulary_are_refused(tmp_path, curves):
    with pytest.raises(CorruptArtifact, match=r"thresholds\.safetensors"):
        read_thresholds(tmp_path, entry_of(write_thresholds(tmp_path, curves)), TAGS + 1)


def entry_of(manifest):
    return Entry(**manifest)


def last_layer(seed):
    draw = torch.Generator().manual_seed(seed)
    return decoder_of({"weight": torch.randn(3, 4, generator=draw), "bias": torch.zeros(3)})


@pytest.mark.parametrize("router_weight", [None, 0.25])
def test_what_is_measured_is_the_published_answer_with_the_router_in_place_of_an_unpublished_expert(router_weight):
    features_ND = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    own, router, used_N = last_layer(0), last_layer(1), np.array([True, False] * 3)
    answer = PublishedAnswer(
        Answer(features_ND, [own]), Answer(features_ND, [router]), used_N, router_weight, "softmax"
    )
    ((rows_B, p_BV),) = answer.parts("cpu")
    own_NV, router_NV = features_ND @ own.weight.T, features_ND @ router.weight.T
    wanted_NV = own_NV.lerp(router_NV, router_weight or 0.0).softmax(1)
    wanted_NV[1::2] = router_NV[1::2].softmax(1)
    assert rows_B.tolist() == list(range(6))
    assert torch.allclose(p_BV, wanted_NV, atol=1e-6)
    posts = Posts(ImagesInMemory(np.zeros((6, 8, 8, 3), np.uint8)), torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(7))
    measured = measure(answer, posts, 3, "cpu")
    assert measured.curves.posts == 6
    assert measured.calibration_temperature in TEMPERATURES
    assert measured.as_metadata()["hashtags_with_thresholds"]["0.9"] == 0
