"""Search over the posts of a mixture, against numpy on the embeddings as they are stored."""

import shutil
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest

from helpers.bundles import bundle_at, images, random_parts
from helpers.kills import study
from moe_core.data.takedowns import Takedowns
from moe_core.engine.build import build
from moe_core.errors import BadImage, BadSetting, MissingInput, Unknown
from moe_core.maintenance.takedown import forget
from moe_core.search.filters import Filters, moment
from moe_core.search.query import embedded
from moe_core.search.searcher import Searcher
from moe_core.serving.bundle import Bundle
from moe_core.serving.routed import predict
from moe_core.store.artifact import StageOutput
from moe_core.store.layout import NAMES
from moe_core.tables.vectors import ids_in, vectors_in
from moe_core.training.posts import ImagesInMemory
from moe_core.workspace import open_study


@pytest.fixture(scope="module")
def context(finished_store):
    return open_study(study(), finished_store)


@pytest.fixture(scope="module")
def searcher(context):
    return Searcher(context)


@pytest.fixture(scope="module")
def stored(context):
    """(ids, (N, D) of unit length) of all the posts."""
    folders = [context.need("embeddings", shard.key).folder("embeddings.lance") for shard in context.shards]
    vectors_ND = np.concatenate([part for folder in folders for part in vectors_in(folder, "embedding")])
    ids = [one for folder in folders for one in ids_in(folder)]
    return ids, vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)


def ranked(stored, query_D, top, without=()):
    ids, vectors_ND = stored
    score_N = vectors_ND @ (query_D / np.linalg.norm(query_D))
    order = [row for row in np.argsort(-score_N, kind="stable") if ids[row] not in without][:top]
    return [ids[row] for row in order], score_N[order]


def row_of(searcher, tag):
    row_D = searcher.bundle.decoder.weight.detach().numpy()[searcher.bundle.hashtags.index(tag)]
    return row_D / np.linalg.norm(row_D)


def test_a_post_finds_the_posts_nearest_to_it_and_not_itself(searcher, stored):
    ids, vectors_ND = stored
    hits = searcher.find(posts=[ids[7]], top=10)
    wanted, scores = ranked(stored, vectors_ND[7], 10, without=[ids[7]])
    assert [hit.id for hit in hits] == wanted
    assert [hit.score for hit in hits] == pytest.approx(scores, abs=1e-5)


def test_a_hashtag_finds_what_its_row_of_the_decoder_is_nearest_to(searcher, stored):
    tag = searcher.bundle.hashtags[3]
    hits = searcher.find(tags=[f"#{tag.upper()}"], top=10)
    assert [hit.id for hit in hits] == ranked(stored, row_of(searcher, tag), 10)[0]


def test_parts_of_a_query_weigh_alike_and_unwanted_hashtags_are_taken_off(searcher, stored):
    ids, vectors_ND = stored
    (first, second, third), post = searcher.bundle.hashtags[:3], ids[20]
    hits = searcher.find(posts=[post], tags=[first], without=[second, third], top=15)
    wanted_D = (vectors_ND[20] + row_of(searcher, first)) / 2
    query_D = wanted_D - (row_of(searcher, second) + row_of(searcher, third)) / 2
    assert [hit.id for hit in hits] == ranked(stored, query_D, 15, without=[post])[0]


def test_a_stored_picture_finds_its_post(searcher, stored):
    post = stored[0][30]
    answer = searcher.answer(images=[searcher.picture(post)], top=1)
    assert [hit.id for hit in answer.hits] == [post]
    assert answer.hits[0].score == pytest.approx(1, abs=1e-4)
    assert answer.experts == [answer.hits[0].expert]


@pytest.fixture(scope="module")
def indexed(finished_store, tmp_path_factory):
    """A copy whose posts lie in an index."""
    root = tmp_path_factory.mktemp("indexed") / "copy"
    shutil.copytree(finished_store, root)
    context = open_study(study().changed(search={"index_from": 100, "recall": 0.9}), root)
    assert not build(context, "search_index").reused
    return context


def test_an_index_reads_some_lists_and_says_how_much_it_finds(indexed, searcher):
    index = Searcher(indexed)
    about = index.index.metadata
    assert (about["lists"], about["posts"]) == (80, len(searcher))
    assert 1 <= about["probes"] < 80
    assert set(about["recall"]) == {"posts", "hashtags"}
    found = 0
    for hit in searcher.find(tags=[searcher.bundle.hashtags[0]], top=30):
        answer, true = (each.answer(posts=[hit.id], top=10) for each in (index, searcher))
        assert (answer.exact, true.exact) == (False, True)
        found += len({each.id for each in answer.hits} & {each.id for each in true.hits})
    assert found >= 0.8 * 30 * 10


def test_an_index_finds_as_many_as_there_are_where_few_posts_may_be_in_the_answer(indexed, searcher):
    tag = searcher.bundle.hashtags[0]
    user = searcher.find(tags=[tag], top=1)[0].user
    for filters in (Filters(user=user), Filters(split="test", expert="e001")):
        assert Searcher(indexed).find(tags=[tag], filters=filters, top=10_000) == searcher.find(
            tags=[tag], filters=filters, top=10_000
        )


def test_vectors_that_are_not_in_memory_give_the_same_answers(context, searcher, stored):
    tag, post = searcher.bundle.hashtags[0], stored[0][-1]
    asked = {"tags": [tag], "posts": [post], "filters": Filters(split="train")}
    assert Searcher(context, memory_bytes=0).find(**asked) == searcher.find(**asked)


def test_filters_hold_together(context, searcher):
    tag = searcher.bundle.hashtags[0]
    every = searcher.find(tags=[tag], top=10_000)
    assert len(every) == len(searcher)
    one = every[5]
    kept = {
        Filters(split="test"): [hit for hit in every if hit.split == "test"],
        Filters(expert="e001"): [hit for hit in every if hit.expert == "e001"],
        Filters(user=one.user): [hit for hit in every if hit.user == one.user],
        Filters(tag=one.tags[0]): [hit for hit in every if one.tags[0] in hit.tags],
        Filters(since=one.taken_at): [hit for hit in every if hit.taken_at and hit.taken_at >= one.taken_at],
        Filters(until=one.taken_at): [hit for hit in every if hit.taken_at and hit.taken_at < one.taken_at],
        Filters(split="train", expert="e000", tag=tag): [
            hit for hit in every if (hit.split, hit.expert) == ("train", "e000") and tag in hit.tags
        ],
        Filters(user="nobody"): [],
    }
    for filters, wanted in kept.items():
        assert searcher.find(tags=[tag], filters=filters, top=10_000) == wanted, filters
        assert len(wanted) < len(every)


def test_hits_say_what_is_known_of_a_post(context, searcher):
    hit = searcher.find(posts=["d000000001"], top=1)[0]
    assert hit.shard in {shard.key for shard in context.shards}
    assert hit.expert in context.experts
    assert hit.split in ("train", "validation", "test")


def test_what_cannot_be_asked_is_an_error_that_says_why(searcher, tmp_path):
    with pytest.raises(Unknown, match=r"no post 'nowhere' among the \d+ of mixture"):
        searcher.find(posts=["nowhere"])
    known = next(tag for tag in searcher.bundle.hashtags if len(tag) > 4)
    with pytest.raises(Unknown, match=f"did you mean .*{known}") as error:
        searcher.find(tags=[known + "x"])
    assert known in error.value.near
    (tmp_path / "not.jpg").write_text("no picture")
    with pytest.raises(BadImage, match=r"not\.jpg: not_an_image"):
        searcher.find(images=[tmp_path / "not.jpg"])
    with pytest.raises(BadImage, match=r"gone\.jpg: No such file"):
        searcher.find(images=[tmp_path / "gone.jpg"])
    with pytest.raises(BadImage, match="image 2: empty"):
        searcher.find(images=[np.zeros((40, 30, 3), np.uint8), b""])
    with pytest.raises(BadSetting, match="nothing to search for"):
        searcher.find(without=[known])
    with pytest.raises(BadSetting, match="cancel out"):
        searcher.find(tags=[known], without=[known])
    with pytest.raises(BadSetting, match="no expert 'e9' in this mixture: it has e000, e001"):
        searcher.find(tags=[known], filters=Filters(expert="e9"))
    with pytest.raises(BadSetting, match="no split 'exam'"):
        searcher.find(tags=[known], filters=Filters(split="exam"))
    with pytest.raises(BadSetting, match="top 0"):
        searcher.find(tags=[known], top=0)


def test_what_is_taken_down_meanwhile_is_in_no_further_answer(copied):
    searcher = Searcher(copied)
    tag = searcher.bundle.hashtags[0]
    first, second, third, *_ = searcher.find(tags=[tag])
    Takedowns.record(copied.store.documents, [first.id], [second.user])
    hits = searcher.find(tags=[tag], top=20)
    assert len(hits) == 20
    assert first.id not in [hit.id for hit in hits]
    assert second.user not in [hit.user for hit in hits]
    assert searcher.picture(first.id) is None
    with pytest.raises(Unknown, match="no post"):
        searcher.find(posts=[first.id])
    assert third.user == second.user or hits[0].id == third.id


def test_an_index_of_another_mixture_than_the_published_one_is_an_error(copied):
    index, mixture = copied.need("search_index"), copied.version("mixture")
    changed = replace(index.spec, inputs=index.inputs | {"mixture": "0" * 20})
    copied.store.make(changed, lambda folder: filled(folder, index))
    copied.store.remove(index)
    with pytest.raises(MissingInput, match=f"no search index of mixture {mixture}: there are of 00000000"):
        Searcher(copied)
    copied.store.documents.update(NAMES.publication, lambda before: None)
    with pytest.raises(MissingInput, match=r"no mixture in .* is published"):
        Searcher(copied)


def filled(folder, index):
    for name in index.files:
        shutil.copyfile(index.file(name), folder / name)
    return StageOutput(index.metadata)


def test_a_takedown_removes_the_index_and_an_open_one_answers_on_without_the_post(copied):
    searcher = Searcher(copied)
    tag = searcher.bundle.hashtags[0]
    first, second, *_ = searcher.find(tags=[tag])
    forget(copied, ids=[first.id])
    with pytest.raises(MissingInput, match="there is none"):
        Searcher(copied)
    hits = searcher.find(tags=[tag])
    assert (hits[0], len(hits)) == (second, 20)
    assert searcher.picture(first.id) is None
    assert searcher.picture(second.id)


def test_an_image_is_embedded_by_its_expert_even_where_the_trunk_answers_in_its_place(tmp_path):
    bundle = Bundle(bundle_at(tmp_path / "bundle", random_parts(tmp_path, 0)))
    images_NHWC = images(40, seed=1)
    embedding_ND, experts = embedded(bundle, images_NHWC)
    _, of_predict = predict(bundle, images_NHWC)
    assert experts == of_predict
    assert "e003" in experts
    assert not bundle.published["e003"]
    (row, *_) = (number for number, key in enumerate(experts) if key == "e003")
    own_1D = bundle.expert_features("e003", ImagesInMemory(images_NHWC[row : row + 1]))
    np.testing.assert_allclose(embedding_ND[row], own_1D[0], atol=1e-5)


@pytest.mark.parametrize(
    ("text", "since", "until"),
    [
        ("2015", datetime(2015, 1, 1), datetime(2016, 1, 1)),
        ("2015-12", datetime(2015, 12, 1), datetime(2016, 1, 1)),
        ("2016-02-28", datetime(2016, 2, 28), datetime(2016, 2, 29)),
        ("2016-02-28T10:00+02:00", datetime(2016, 2, 28, 8), datetime(2016, 2, 28, 8)),
    ],
)
def test_a_date_is_a_period(text, since, until):
    assert (moment(text), moment(text, end=True)) == (since, until)


@pytest.mark.parametrize("text", ["", "yesterday", "2015-13", "9999", "20155"])
def test_what_is_no_date_is_an_error(text):
    with pytest.raises(BadSetting, match="wanted such as 2015"):
        moment(text, end=True)
