"""What the page is made of: posts by what they are, clusters, the plane, doubts, and why an expert answers."""

import shutil

import numpy as np
import polars as pl
import pytest

from helpers.bundles import bundle_at, images, random_parts
from helpers.kills import study
from moe_core.data.images import decode
from moe_core.data.takedowns import Takedowns
from moe_core.engine.build import build
from moe_core.errors import BadSetting, MissingInput, Unknown
from moe_core.search.browse import Browser, drawn
from moe_core.search.filters import Filters
from moe_core.search.plane import fitted
from moe_core.search.searcher import Searcher
from moe_core.serving.bundle import Bundle
from moe_core.serving.routed import predict
from moe_core.serving.why import explain
from moe_core.training.infer import features_of
from moe_core.training.posts import ImagesInMemory
from moe_core.workspace import open_study


@pytest.fixture(scope="module")
def browser(finished_store):
    return Browser(Searcher(open_study(study(), finished_store)))


@pytest.fixture(scope="module")
def every(browser):
    """All posts, as their table has them."""
    return pl.from_arrow(browser.searcher.table).with_columns(pl.col("tags").fill_null([]))


def ids(posts):
    return [post.id for post in posts]


def test_posts_are_listed_by_what_they_are_a_page_at_a_time(browser, every):
    whole = browser.page(top=200)
    assert (whole.total, ids(whole.posts)) == (len(every), every["id"][:200].to_list())
    tag = browser.vocabulary.hashtags[0]
    for filters, wanted in (
        (browser.filters(expert="e001"), pl.col("expert") == 1),
        (
            browser.filters(split="test", tag=tag.upper()),
            (pl.col("split") == "test") & pl.col("tags").list.contains(tag),
        ),
        (browser.filters(user=every["user"][0]), pl.col("user") == every["user"][0]),
        (browser.filters(user="nobody"), pl.lit(False)),
    ):
        listed = every.filter(wanted)["id"].to_list()
        page = browser.page(filters, first=3, top=5)
        assert (page.total, ids(page.posts)) == (len(listed), listed[3:8])
    assert browser.splits() == dict(every["split"].value_counts().iter_rows())
    assert browser.post(every["id"][7]).tags == every["tags"][7].to_list()


@pytest.mark.parametrize(
    "asked", [{"order": "best"}, {"first": -1}, {"top": 0}, {"top": 201}, {"filters": Filters(expert="e9")}]
)
def test_what_is_no_page_is_an_error(browser, asked):
    with pytest.raises(BadSetting):
        browser.page(**asked)
    with pytest.raises(BadSetting, match="no split 'exam': wanted one of train"):
        browser.filters(split="exam")


def test_a_cluster_has_its_posts_and_the_hashtags_that_set_it_apart(browser, every):
    clusters = browser.clusters()
    assert [(one.expert, one.posts) for one in clusters] == [
        (f"e{number:03d}", int((every["expert"] == number).sum())) for number in range(2)
    ]
    known = set(browser.vocabulary.hashtags)
    tags = every.explode("tags", empty_as_null=True).filter(pl.col("tags").is_in(known))
    for number, cluster in enumerate(clusters):
        expert_of = dict(every.select("id", "expert").iter_rows())
        assert {expert_of[one] for one in cluster.typical} == {number}
        assert len(cluster.typical) == 12
        here = tags.filter(pl.col("expert") == number)
        ranks = []
        for tag, count, times in cluster.tags:
            its = int((here["tags"] == tag).sum())
            share = its / len(here) / ((tags["tags"] == tag).sum() / len(tags))
            assert (count, times) == (its, round(share, 1))
            ranks.append(its * np.log(share))
        assert ranks == sorted(ranks, reverse=True)
        assert len(ranks) == 12


def test_a_sample_has_some_of_each_expert():
    expert_N = np.repeat([0, 1, 2], [9_000, 10, 990])
    rows = drawn(expert_N, 100, 20, seed=0)
    assert np.array_equal(rows, np.unique(rows))
    counts = np.bincount(expert_N[rows], minlength=3)
    assert (len(rows), counts[1]) == (100, 10)
    assert counts[2] >= 20
    assert counts[0] > counts[2]
    assert drawn(expert_N, 20_000, 5, seed=0).tolist() == list(range(10_000))
    assert len(drawn(np.zeros(0, np.int32), 10, 5, seed=0)) == 0


def test_the_plane_holds_the_two_directions_of_largest_variance():
    rng = np.random.default_rng(0)
    spread_MD = rng.normal(size=(500, 6)) * [0.01, 0.3, 0.02, 0.6, 0.01, 0.01] + [5, 0, 0, 0, 0, 0]
    unit_MD = (spread_MD / np.linalg.norm(spread_MD, axis=1, keepdims=True)).astype(np.float32)
    plane = fitted(np.arange(500), unit_MD)
    assert np.abs(plane.axes_D2).argmax(0).tolist() == [3, 1]
    assert plane.axes_D2[[3, 1], [0, 1]].min() > 0.99
    assert plane.share > 0.95
    np.testing.assert_allclose(plane.at(3 * unit_MD[:9]), plane.at_M2[:9], atol=1e-6)  # of any length
    assert fitted(np.arange(1), unit_MD[:1]).at_M2.tolist() == [[0, 0]]


def test_the_worst_post_is_the_one_whose_hashtags_the_answer_holds_for_least_probable(browser, every):
    page = browser.page(Filters(split="test"), order="worst", top=200)
    losses = [post.doubt.loss for post in page.posts]
    assert losses == sorted(losses, reverse=True)
    known = {tag: number for number, tag in enumerate(browser.vocabulary.hashtags)}
    tagged = every.filter(pl.col("tags").list.eval(pl.element().is_in(set(known))).list.any())
    assert page.judged == (len(tagged), len(tagged))
    assert page.total == int((tagged["split"] == "test").sum())
    bundle = browser.searcher.bundle
    for post in (*page.posts[:3], page.posts[-1]):
        p_V = predict(bundle, pixels(browser, post.id))[0][0]
        own = sorted({known[tag] for tag in post.tags if tag in known})
        assert post.doubt.loss == pytest.approx(-float(p_V[own].log().mean()), abs=2e-3)
        assert (post.doubt.answer, post.doubt.answer_p) == (
            bundle.hashtags[int(p_V.argmax())],
            pytest.approx(float(p_V.max()), abs=1e-3),
        )


def pixels(browser, post_id):
    size = browser.searcher.bundle.image_size
    data = bytearray(decode(browser.searcher.picture(post_id), size).pixels)
    return np.frombuffer(data, np.uint8).reshape(1, size, size, 3)


def test_of_a_suspect_trunk_and_expert_agree_against_the_post(browser):
    page = browser.page(order="suspect", top=20)
    assert page.posts
    for post in page.posts:
        why = explain(browser.searcher.bundle, pixels(browser, post.id), hashtags=1)[0]
        assert why.expert[0][0] == why.trunk[0][0] == post.doubt.agreed
        assert (why.expert[0][1], why.trunk[0][1]) == pytest.approx(post.doubt.agreed_p, abs=1e-3)
        assert post.doubt.agreed not in post.tags
        assert post.doubt.suspect in post.tags


def test_a_hashtag_in_the_place_of_one_that_both_see_is_suspected(finished_store, monkeypatch):
    searcher = Searcher(open_study(study(), finished_store))
    browser, table = Browser(searcher), searcher.table
    seen = {}  # posts of which both find a hashtag: that one
    for post in browser.page(order="worst", top=200).posts[::-1][:40]:
        why = explain(searcher.bundle, pixels(browser, post.id), hashtags=1)[0]
        if why.expert[0][0] == why.trunk[0][0] in post.tags:
            seen[post.id] = why.trunk[0][0]
    assert len(seen) > 3
    known = browser.vocabulary.hashtags
    wrong = {one: known[0] if tag != known[0] else known[1] for one, tag in seen.items()}
    pairs = zip(table["id"].to_pylist(), table["tags"].to_pylist(), strict=True)
    tags = pl.Series("tags", [[wrong[one]] if one in wrong else its for one, its in pairs])
    monkeypatch.setattr(Searcher, "table", pl.from_arrow(table).with_columns(tags).to_arrow().cast(table.schema))
    suspects, first = {}, 0
    while page := Browser(searcher).page(order="suspect", first=first, top=200).posts:
        suspects |= {post.id: post.doubt for post in page}
        first += 200
    assert {one: (suspects[one].agreed, suspects[one].suspect) for one in seen} == {
        one: (tag, wrong[one]) for one, tag in seen.items()
    }


def test_what_is_taken_down_meanwhile_is_shown_no_more(copied):
    browser = Browser(Searcher(copied))
    typical = browser.clusters()[0].typical
    page, places = browser.page(top=200), [*browser.on_plane()]
    worst = browser.page(order="worst").posts[0]
    gone = {typical[0], page.posts[5].id, worst.id}
    Takedowns.record(copied.store.documents, gone, [page.posts[9].user])
    assert typical[0] not in browser.clusters()[0].typical
    after = browser.page(top=200)
    assert after.total == page.total
    assert ids(after.posts) == [
        post.id for post in page.posts if post.id not in gone and post.user != page.posts[9].user
    ]
    assert worst.id not in ids(browser.page(order="worst", top=200).posts)
    left = [post.id for post, _, _ in browser.on_plane()]
    assert gone.isdisjoint(left)
    assert 0 < len(left) < len(places)
    with pytest.raises(Unknown):
        browser.post(worst.id)


def test_without_the_trunk_s_features_nothing_is_judged(copied):
    browser = Browser(Searcher(copied))
    for artifact in copied.store.everything("trunk_features"):
        shutil.rmtree(artifact.path)
    with pytest.raises(MissingInput, match=r"trunk's features of shard s0000 are not in the store"):
        browser.page(order="worst")
    assert browser.page().posts


def test_a_newer_index_of_the_mixture_is_noticed(copied):
    browser = Browser(Searcher(copied))
    assert not browser.is_outdated()
    build(open_study(study().changed(search={"index_from": 100}), copied.root), "search_index")
    assert browser.is_outdated()


def test_why_says_the_distances_and_what_each_network_makes_of_an_image(tmp_path):
    parts = random_parts(tmp_path, 0)
    bundle = Bundle(bundle_at(tmp_path / "bundle", parts, answer="mixture_top1_router", precision="float32"))
    images_NHWC = images(32, seed=7)
    p_NV, experts = predict(bundle, images_NHWC)
    assert set(experts) == set(bundle.published)
    trunk_ND = features_of(bundle.router, ImagesInMemory(images_NHWC), "float32").numpy()
    squared_NK = bundle.gate.distances(trunk_ND)
    for place, why in enumerate(explain(bundle, images_NHWC, experts=3, hashtags=2)):
        assert [near.expert for near in why.experts] == [f"e{k:03d}" for k in np.argsort(squared_NK[place])[:3]]
        assert why.experts[0].expert == experts[place]
        assert [near.distance for near in why.experts] == pytest.approx(np.sort(squared_NK[place])[:3] ** 0.5, abs=1e-3)
        assert all(near.published == (near.expert != "e003") for near in why.experts)
        assert why.mixture[0][0] == bundle.hashtags[int(p_NV[place].argmax())]
        assert why.mixture[0][1] == pytest.approx(float(p_NV[place].max()), abs=1e-3)
        if experts[place] == "e003":
            assert why.mixture == why.trunk
            assert why.expert != why.trunk
        own_1D = bundle.expert_features(experts[place], ImagesInMemory(images_NHWC[place : place + 1]))
        np.testing.assert_allclose(why.embedding_D, own_1D[0], atol=1e-5)
