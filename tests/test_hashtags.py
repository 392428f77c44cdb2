"""Bands of hashtags, average precision from the best hashtags of each post, and the table of every hashtag, against
plain loops on drawn data."""

import tracemalloc

import numpy as np
import pytest
import torch

from moe_core.evaluation.bands import band_means, band_of
from moe_core.evaluation.metrics import BEST, best_hashtags
from moe_core.evaluation.ranking import RankedPosts, mean_average_precision, sample_of
from moe_core.stages.evaluation.hashtags import Hashtags
from moe_core.training.posts import ImagesInMemory, Posts


def drawn(count, hashtags, seed=0, decimals=1):
    """(scores, tags of each post): rounded scores, so that many are equal, and up to four tags a post."""
    draw = np.random.default_rng(seed)
    scores_NV = np.round(draw.random((count, hashtags)), decimals).astype(np.float32)
    tags = [np.sort(draw.choice(hashtags - 2, draw.integers(1, 5), replace=False)) for _ in range(count)]
    return scores_NV, tags  # no post carries the last two


def posts_of(tags):
    starts_N1 = torch.tensor([0, *np.cumsum([len(its) for its in tags])])
    images = ImagesInMemory(np.zeros((len(tags), 1, 1, 3), np.uint8))
    return Posts(images, torch.from_numpy(np.concatenate(tags)), starts_N1)


def ranked_of(scores_NV, tags):
    posts, ranked = posts_of(tags), RankedPosts(len(tags), scores_NV.shape[1])
    for rows_B in np.array_split(np.arange(len(tags)), 3):
        ranked.add(rows_B, torch.from_numpy(scores_NV[rows_B]), *posts.tag_rows(rows_B))
    return ranked, posts.tags_T.numpy(), posts.starts_N1.numpy()


def plain_precision(score_N, carries_N, weight_N):
    """Precision at each post that carries the hashtag, posts of equal scores together, averaged."""
    values = []
    for n in np.flatnonzero(carries_N & (weight_N > 0)):
        above_N, copies = score_N >= score_N[n], weight_N[n] - 1
        hits = (weight_N * above_N * carries_N).sum() - copies
        values += [hits / ((weight_N * above_N).sum() - copies)] * weight_N[n]
    return np.mean(values) if values else np.nan


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_that_of_plain_loops_with_ties_and_weights(seed):
    scores_NV, tags = drawn(40, 9, seed)
    carries_NV = np.array([[v in its for v in range(9)] for its in tags])
    ranked, tags_T, starts_N1 = ranked_of(scores_NV, tags)
    lists = ranked.lists(tags_T, starts_N1)
    for weight_N in (np.ones(40, np.int64), np.random.default_rng(seed).integers(0, 3, 40)):
        found_V = lists.average_precision(weight_N)
        wanted_V = [plain_precision(scores_NV[:, v], carries_NV[:, v], weight_N) for v in range(9)]
        assert found_V == pytest.approx(np.array(wanted_V), nan_ok=True)
        assert np.isnan(found_V[-2:]).all(), "no post carries them"


def test_a_perfect_ranking_has_a_precision_of_one_in_every_resample():
    tags = [np.array([0]) if n < 10 else np.array([1]) for n in range(20)]
    ranked = ranked_of(np.array([[20 - n, n] for n in range(20)], np.float32), tags)
    assert set(mean_average_precision(*ranked, resamples=20, seed=0)) == {1.0}


def test_a_post_outside_of_whose_best_a_hashtag_is_counts_as_never_found(monkeypatch):
    monkeypatch.setattr("moe_core.evaluation.ranking.MOST", 2)
    scores_NV = np.array([[0.5, 0.4, 0.1], [0.3, 0.2, 0.5], [0.1, 0.6, 0.3]], np.float32)
    ranked, tags_T, starts_N1 = ranked_of(scores_NV, [np.array([0]), np.array([1]), np.array([0, 1])])
    assert ranked.kept == 2
    found_V = ranked.lists(tags_T, starts_N1).average_precision(np.ones(3, np.int64))
    # 0 ranks posts 0 and 1 of which the first carries it, and not post 2: (1 + 0) / 2.
    # 1 ranks posts 2 and 0 of which the first carries it, and not post 1: (1 + 0) / 2.
    assert found_V.tolist()[:2] == [0.5, 0.5]


def test_hashtags_as_good_as_one_that_is_left_out_are_left_out_too(monkeypatch):
    monkeypatch.setattr("moe_core.evaluation.ranking.MOST", 2)
    ranked, tags_T, starts_N1 = ranked_of(np.array([[0.5, 0.2, 0.2, 0.1]] * 3, np.float32), [np.array([0, 1])] * 3)
    found_V = ranked.lists(tags_T, starts_N1).average_precision(np.ones(3, np.int64))
    assert found_V == pytest.approx([1, 0, np.nan, np.nan], nan_ok=True)


def test_the_mean_over_hashtags_lies_in_its_interval_and_resamples_are_the_same_for_all_rows():
    scores_NV, tags = drawn(200, 30, decimals=3)
    ranked = ranked_of(scores_NV, tags)
    means_R1 = mean_average_precision(*ranked, resamples=100, seed=0)
    assert len(means_R1) == 101
    assert np.quantile(means_R1[1:], 0.025) < means_R1[0] < np.quantile(means_R1[1:], 0.975)
    assert np.array_equal(means_R1, mean_average_precision(*ranked, resamples=100, seed=0))


@pytest.mark.parametrize(
    ("posts", "bands"),
    [
        ([60, 30, 30, 20, 20, 20], [0, 1, 1, 2, 2, 2]),  # 60 of 180 each
        ([20, 60, 20, 30, 20, 30], [2, 0, 2, 1, 2, 1]),
        ([5, 5, 5], [1, 1, 1]),  # equally frequent: neither head nor tail
        ([7], [1]),
        ([1000, 1, 1], [0, 2, 2]),  # the first is nearly all of it
        ([1000, 300, 60, 50, 40], [0, 2, 2, 2, 2]),
        ([10, *[1] * 100], [0, *[2] * 100]),
        ([5, 5, 4], [0, 0, 2]),
        ([], []),
    ],
)
def test_bands_are_thirds_of_all_tag_occurrences(posts, bands):
    assert band_of(np.array(posts, np.int64)).tolist() == bands


def test_bands_fall_with_training_posts_and_hold_about_a_third_each():
    posts_V = (30_000 / np.arange(1, 5001) ** 0.8).astype(int)
    band_V = band_of(posts_V)
    assert (np.diff(band_V) >= 0).all()
    assert all(0.2 < posts_V[band_V == band].sum() / posts_V.sum() < 0.5 for band in range(3))
    assert len({(posts, band) for posts, band in zip(posts_V, band_V, strict=True)}) == len(set(posts_V))


def test_means_leave_out_what_was_not_measured():
    means = band_means(np.array([1.0, np.nan, 0.5, 0.0]), np.array([0, 0, 2, 2]))
    assert means == pytest.approx([1.0, np.nan, 0.25], nan_ok=True)


def counted(rows, tags, part=7):
    """Hashtags of these rows: {row: scores (N, V)}."""
    posts = posts_of(tags)
    hashtags = Hashtags("mixture_top1", next(iter(rows.values())).shape[1], posts)
    order = np.random.default_rng(1).permutation(len(posts))  # posts come in any order
    for name, scores_NV in rows.items():
        for first in range(0, len(posts), part):
            rows_B = order[first : first + part]
            p_BV, (tags_T, starts_B1) = torch.from_numpy(scores_NV[rows_B]), posts.tag_rows(rows_B)
            hashtags.add(name, rows_B, p_BV, best_hashtags(p_BV, BEST), tags_T, starts_B1)
    return hashtags


def none_stored(hashtags):
    return {"threshold": np.full(hashtags, np.nan), "right": np.zeros(hashtags), "given": np.zeros(hashtags)}


@pytest.fixture(scope="module")
def small():
    """(rows, tags): 60 posts, 14 hashtags of which two are on no post; distinct scores."""
    scores_NV, tags = drawn(60, 14, decimals=6)
    rows = {"trunk": drawn(60, 14, seed=1, decimals=6)[0], "mixture_top1": scores_NV, "another": scores_NV}
    return rows, tags


def test_each_hashtag_is_that_of_plain_loops(small):
    rows, tags = small
    hashtags = counted(rows, tags)
    training_V = np.arange(14, 0, -1) * 10
    document, ap, map_R1 = hashtags.measure(training_V, resamples=20)
    assert set(ap) == set(map_R1) == set(rows), "every row is ranked"
    assert set(document["bands"][0]["rows"]) == {"trunk", "mixture_top1"}, "bands are of the compared rows"
    assert hashtags.ranked_hashtags == 12
    for name, ap_V in ap.items():
        assert map_R1[name][0] == pytest.approx(np.nanmean(ap_V))
        assert np.quantile(map_R1[name][1:], 0.025) < map_R1[name][0] < np.quantile(map_R1[name][1:], 0.975)
    stored = none_stored(14) | {"threshold": np.array([0.5, *[np.nan] * 13])}
    stored |= {"right": np.array([3.0, *[0] * 13]), "given": np.array([4.0, *[0] * 13])}
    table = hashtags.frame([f"t{v}" for v in range(14)], training_V, ap, stored).to_dicts()
    order_NV = np.argsort(-rows["mixture_top1"], axis=1)
    for v, row in enumerate(table):
        carry = [n for n, its in enumerate(tags) if v in its]
        found = [n for n in carry if v in order_NV[n, :5]]
        given = int((order_NV[:, :5] == v).sum())
        assert (row["tag"], row["test_posts"], row["training_posts"]) == (f"t{v}", len(carry), training_V[v])
        assert row["recall_at_5"] == (pytest.approx(len(found) / len(carry), abs=1e-5) if carry else None)
        if v == 0:
            assert (row["cut"], row["precision"], row["threshold"]) == ("threshold", 0.75, 0.5)
            assert row["recall"] == pytest.approx(3 / len(carry), abs=1e-5)
        else:
            assert (row["cut"], row["threshold"], row["given"]) == ("top 5", None, given)
            assert row["precision"] == (pytest.approx(len(found) / given, abs=1e-5) if given else None)
        assert (row["ap_gain"] is None) == (not carry)
        mistaken = {}
        for n in carry:
            answers = order_NV[n, : len(tags[n])].tolist()
            for u in answers if v not in answers else []:
                mistaken[f"t{u}"] = mistaken.get(f"t{u}", 0) + (u not in tags[n])
        mistaken = {tag: n for tag, n in mistaken.items() if n}
        assert [each["n"] for each in row["mistaken_for"]] == sorted(mistaken.values(), reverse=True)[:5]
        assert all(mistaken[each["tag"]] == each["n"] for each in row["mistaken_for"])
    wanted = {"head": 0, "middle": 1, "tail": 2}
    assert [wanted[row["band"]] for row in table] == band_of(training_V).tolist()
    assert document["kept"] == 14


def test_bands_are_means_over_their_hashtags_with_paired_gains(small):
    rows, tags = small
    hashtags, training_V = counted(rows, tags), np.arange(14, 0, -1) * 10
    document, ap, _ = hashtags.measure(training_V, resamples=50)
    table = hashtags.frame([f"t{v}" for v in range(14)], training_V, ap, none_stored(14)).to_dicts()
    assert [band["band"] for band in document["bands"]] == ["head", "middle", "tail"]
    for band in document["bands"]:
        own = [row for row in table if row["band"] == band["band"]]
        tested = [row for row in own if row["test_posts"]]
        assert (band["hashtags"], band["hashtags_tested"]) == (len(own), len(tested))
        assert (band["from_posts"], band["to_posts"]) == (own[-1]["training_posts"], own[0]["training_posts"])
        names = {int(row["tag"][1:]) for row in own}
        assert band["test_posts"] == sum(bool(names & set(its.tolist())) for its in tags)
        assert band["test_tags"] == sum(row["test_posts"] for row in own)
        means = {name: np.mean([row[f"{prefix}ap"] for row in tested]) for name, prefix in
                 (("mixture_top1", ""), ("trunk", "trunk_"))}  # fmt: skip
        for name, row in band["rows"].items():
            assert row["map"] == pytest.approx(means[name], abs=2e-5)
            low, high = row["map_ci95"]
            assert low <= row["map"] <= high
        recalls = [row["recall_at_5"] for row in tested]
        assert band["rows"]["mixture_top1"]["r_at_5"] == pytest.approx(np.mean(recalls), abs=2e-5)
        gain = band["gains"]["trunk"]
        assert gain["map_gain"] == pytest.approx(means["mixture_top1"] - means["trunk"], abs=2e-5)
        assert set(band["gains"]) == {"trunk"}


def test_the_figures_are_the_same_in_parts_of_any_size(small):
    rows, tags = small
    training_V = np.arange(14, 0, -1)
    assert (
        counted(rows, tags, part=1).measure(training_V, 5)[0] == counted(rows, tags, part=60).measure(training_V, 5)[0]
    )


def test_a_band_without_test_posts_has_no_figures():
    scores_NV, tags = drawn(20, 6)
    training_V = np.array([40, 40, 40, 40, 1000, 1000])  # those that no post carries are the frequent ones
    document, _, _ = counted({"trunk": scores_NV, "mixture_top1": scores_NV}, tags).measure(training_V, 10)
    frequent = document["bands"][0]
    assert (frequent["hashtags"], frequent["hashtags_tested"], frequent["test_posts"]) == (2, 0, 0)
    assert set(frequent["rows"]["trunk"].values()) | set(frequent["gains"]["trunk"].values()) == {None}


def test_of_many_posts_some_are_ranked_drawn_evenly(monkeypatch):
    monkeypatch.setattr("moe_core.evaluation.ranking.POSTS", 100)
    places = sample_of(1000)
    assert len(np.unique(places)) == 100
    assert 400 < places.mean() < 600
    scores_NV, tags = drawn(300, 8)
    hashtags = counted({"trunk": scores_NV, "mixture_top1": scores_NV}, tags)
    document, ap, _ = hashtags.measure(np.arange(8, 0, -1), 5)
    assert (document["n"], document["map_posts"]) == (300, 100)
    carried = [tags[n] for n in sample_of(300)]
    ranked, tags_T, starts_N1 = ranked_of(scores_NV[sample_of(300)], carried)
    wanted_V = ranked.lists(tags_T, starts_N1).average_precision(np.ones(100, np.int64))
    assert ap["trunk"] == pytest.approx(wanted_V, nan_ok=True)


def test_memory_does_not_grow_with_posts_times_hashtags(monkeypatch):
    """500 posts and 20,000 hashtags: all scores of a row would take 40 MB, and there are three rows."""
    monkeypatch.setattr("moe_core.evaluation.ranking.MOST", 100)
    count, vocabulary = 500, 20_000
    draw = np.random.default_rng(0)
    posts = posts_of([draw.choice(vocabulary, 3, replace=False) for _ in range(count)])
    tracemalloc.start()
    hashtags = Hashtags("mixture_top1", vocabulary, posts)
    for first in range(0, count, 50):
        rows_B = np.arange(first, first + 50)
        p_BV = torch.from_numpy(draw.random((50, vocabulary), np.float32))
        tags_T, starts_B1 = posts.tag_rows(rows_B)
        for name in ("trunk", "mixture_top1", "dense_same_cost"):
            hashtags.add(name, rows_B, p_BV, best_hashtags(p_BV, BEST), tags_T, starts_B1)
    _, ap, _ = hashtags.measure(np.arange(vocabulary, 0, -1), 10)
    table = hashtags.frame(
        [str(v) for v in range(vocabulary)], np.arange(vocabulary, 0, -1), ap, none_stored(vocabulary)
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert table.height == vocabulary
    assert peak < 4 * count * vocabulary / 2, "half of one row"
