"""Publication: a worse mixture is refused; a decision is taken once, and can be taken back."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from helpers.publishing import log_of, publish, version
from helpers.two_mixtures import BAD, GOOD, make, tiny_study
from moe_core.engine.build import build
from moe_core.evaluation.metrics import BEST
from moe_core.serving.bundle import Bundle
from moe_core.serving.publication import Decision, PublicationLog, published_bundle
from moe_core.serving.routed import predict
from moe_core.settings import Data, Publish
from moe_core.stages.mixture import bundle, comparison, promotion
from moe_core.stages.mixture.comparison import force, judge, roll_back
from moe_core.stages.mixture.promotion import Judgment, decide
from moe_core.store.layout import Layout
from moe_core.workspace import open_study


@pytest.fixture
def root(both, tmp_path):
    return shutil.copytree(both, tmp_path / "store")


def test_the_first_is_published_and_a_worse_one_is_refused_with_the_figures_of_both(root):
    assert publish(root, GOOD).why == "nothing was published before"
    refused = publish(root, BAD)
    assert refused.action == "refused"
    assert refused.scores["p_at_1_new"] < refused.scores["p_at_1_published"] - 0.005
    assert refused.scores["validation_posts"] > 50
    assert refused.scores["cross_entropy_new"] > refused.scores["cross_entropy_published"]
    assert f"{refused.scores['p_at_1_published']:.4f} of {version(root, GOOD)}" in refused.why
    assert "more than publish.margin 0.005 below it" in refused.why
    assert published_bundle(root) == root / "mixture" / version(root, GOOD)


def test_a_better_one_takes_its_place_and_the_rollback_is_not_undone_by_the_next_run(root):
    publish(root, BAD)
    assert publish(root, GOOD).action == "published"
    good, bad = version(root, GOOD), version(root, BAD)
    assert (log_of(root).published, log_of(root).previous) == (good, bad)
    roll_back(open_study(GOOD, root))
    assert (log_of(root).published, log_of(root).previous) == (bad, "")
    before = Layout(root).publication.read_bytes()
    assert publish(root, GOOD).action == "rolled back"
    assert Layout(root).publication.read_bytes() == before
    with pytest.raises(ValueError, match="nothing to roll back to"):
        roll_back(open_study(GOOD, root))
    force(open_study(GOOD, root), good)
    assert log_of(root).published == good


def test_a_comparison_repeated_does_not_bring_back_what_a_person_took_back(root):
    publish(root, BAD)
    publish(root, GOOD)
    roll_back(open_study(GOOD, root))
    other_margin = GOOD.model_copy(update={"publish": Publish(margin=0.1)})  # another plan, so another comparison
    said = publish(root, other_margin)
    assert said.action == "refused"
    assert "it was rolled back on" in said.why
    assert log_of(root).published == version(root, BAD)


def test_a_margin_that_allows_it_publishes_what_was_refused(root):
    publish(root, GOOD)
    publish(root, BAD)
    wide = BAD.model_copy(update={"publish": Publish(margin=1.0)})
    said = publish(root, wide)
    assert said.action == "published"
    assert "within publish.margin 1.0" in said.why


def test_again_decides_nothing_twice(root):
    publish(root, GOOD)
    publish(root, BAD)
    before = Layout(root).publication.read_bytes()
    for study in (GOOD, BAD, GOOD):
        assert build(open_study(study, root), "published").reused
    assert Layout(root).publication.read_bytes() == before


def test_a_study_that_goes_back_has_its_mixture_judged_again(root):
    wide = BAD.model_copy(update={"publish": Publish(margin=1.0)})
    publish(root, wide)
    publish(root, GOOD)
    good, bad = version(root, GOOD), version(root, BAD)
    for study, wanted in ((wide, bad), (GOOD, good), (wide, bad), (GOOD, good)):
        said = publish(root, study)
        assert (said.action, log_of(root).published) == ("published", wanted)
        assert said.scores["p_at_1_new"], "it was compared"
        assert build(open_study(study, root), "published").reused
    publish(root, BAD)
    assert log_of(root).last(bad).action == "refused", "by the margin that it has now"
    assert log_of(root).published == good


def test_what_a_person_published_stays_where_the_study_s_own_was_published_before(root):
    publish(root, BAD)
    publish(root, GOOD)
    force(open_study(GOOD, root), version(root, BAD))
    assert publish(root, GOOD).action == "published"
    assert log_of(root).published == version(root, BAD)
    publish(root, BAD)
    assert log_of(root).published == version(root, BAD)


def _killed(*_):
    raise KeyboardInterrupt


def test_a_run_killed_between_the_verdict_and_the_publication_takes_it_when_it_comes_again(root, monkeypatch):
    publish(root, BAD)
    with monkeypatch.context() as patch:
        patch.setattr(promotion.publication, "change", _killed)
        with pytest.raises(KeyboardInterrupt):
            publish(root, GOOD)
    assert open_study(GOOD, root).find("published") is not None
    assert log_of(root).published == version(root, BAD)
    assert build(open_study(GOOD, root), "published").reused
    assert log_of(root).published == version(root, GOOD)


def test_what_was_published_meanwhile_is_not_overrun_by_an_older_comparison(root):
    publish(root, BAD)
    good, bad = version(root, GOOD), version(root, BAD)
    verdict = Judgment(True, "better", {})
    with pytest.raises(
        ValueError, match=f"{bad} is published now, mixture {good} was compared with nothing: run again"
    ):
        decide(open_study(GOOD, root), good, "", verdict, "some-verdict")
    assert log_of(root).published == bad


def test_vocabularies_that_differ_are_compared_by_their_common_hashtags(root):
    fewer = tiny_study(data=Data(image_size=16, min_posts_per_tag=12, test=0.2, validation=0.2))
    make(open_study(fewer, root), "mixture")
    one, other = (Bundle(open_study(study, root).need("mixture").path) for study in (GOOD, fewer))
    assert len(other.hashtags) < len(one.hashtags)
    found = judge(open_study(fewer, root), version(root, fewer), version(root, GOOD))
    assert found.scores["hashtags_compared"] == len(set(one.hashtags) & set(other.hashtags))
    assert "cross_entropy_new" not in found.scores
    back = judge(open_study(fewer, root), version(root, GOOD), version(root, fewer))
    assert back.scores["p_at_1_gain"] == -found.scores["p_at_1_gain"]


def test_p_at_1_is_that_of_the_answers_users_get(root):
    from moe_core.stages import reading

    context = open_study(GOOD, root)
    index = reading.index(context)
    posts = reading.posts_where(context, index, index.use("validation"))
    bundle = Bundle(context.need("mixture").path)
    probabilities, _ = predict(bundle, posts.images.read(np.arange(len(posts))))
    starts = posts.starts_N1.tolist()
    right = [int(probabilities[n].argmax()) in posts.tags_T[starts[n] : starts[n + 1]] for n in range(len(posts))]
    found = judge(context, context.version("mixture"), version(root, BAD))
    assert found.scores["p_at_1_new"] == pytest.approx(sum(right) / len(right), abs=1e-5)
    assert found.scores["validation_posts"] == len(right)


def test_of_the_answers_that_are_compared_the_best_hashtags_come_back_from_the_device(root, monkeypatch):
    """cpu:0 is another device by its name."""
    brought, context = [], open_study(GOOD, root)
    monkeypatch.setattr(comparison, "device_and_threads", lambda study, parallel, hashtags: "cpu:0")
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: brought.append(tensor.shape) or tensor)
    assert judge(context, context.version("mixture"), version(root, BAD)).publish
    tables = [shape for shape in brought if len(shape) == 2]
    assert tables
    assert {hashtags for _, hashtags in tables} == {BEST}
    assert len(Bundle(context.need("mixture").path).hashtags) > BEST


def test_an_old_bundle_of_another_image_size_is_asked_with_resized_posts(root):
    small = tiny_study(data=Data(image_size=8, min_posts_per_tag=5, test=0.2, validation=0.2))
    make(open_study(small, root), "mixture")
    found = judge(open_study(GOOD, root), version(root, GOOD), version(root, small))
    assert 0 < found.scores["p_at_1_published"] < 1


def test_without_validation_posts_it_is_published_and_says_so(root):
    for lr in (0.2, 0.1):
        study = tiny_study(lr=lr, data=Data(image_size=16, min_posts_per_tag=5, test=0.2, validation=0.0))
        make(open_study(study, root), "mixture")
        said = publish(root, study)
    assert said.action == "published"
    assert said.why == "no validation post carries a hashtag of both: published without a comparison"


def test_a_mixture_without_a_common_hashtag_is_refused(root, monkeypatch):
    publish(root, BAD)
    opened = comparison.open_mixture

    def renamed(context, which):
        bundle = opened(context, which)
        if which == version(root, GOOD):
            bundle.hashtags = [f"{tag}-renamed" for tag in bundle.hashtags]
        return bundle

    monkeypatch.setattr(comparison, "open_mixture", renamed)
    said = publish(root, GOOD)
    assert (said.action, said.why) == (
        "refused",
        f"it has no hashtag in common with the published mixture {version(root, BAD)}",
    )


PUBLISHER = """
import sys
from pathlib import Path
from moe_core.serving.publication import Decision, change
from moe_core.store.documents import FolderDocuments
root, name = Path(sys.argv[1]), sys.argv[2]
for turn in range(20):
    one = f"{name}{turn}"
    def forced(log):
        return log.adding(Decision("forced", one, log.published, one, "by hand", "a test"))
    change(FolderDocuments(root), forced)
"""


def test_two_publishers_at_once_lose_no_decision(tmp_path):
    processes = [subprocess.Popen([sys.executable, "-c", PUBLISHER, str(tmp_path), name]) for name in "ab"]
    seen = []
    while any(process.poll() is None for process in processes):
        seen.append(len(log_of(tmp_path).history))  # a reader always finds a whole file
    assert [process.returncode for process in processes] == [0, 0]
    history = log_of(tmp_path).history
    assert len(history) == 40
    assert [d.baseline for d in history] == ["", *(d.published for d in history[:-1])]
    assert seen == sorted(seen)


def test_rollbacks_go_back_one_by_one():
    now = PublicationLog()
    for one in ("a", "b", "c"):
        now = now.adding(Decision("forced", one, now.published, one, "", ""))
    now = now.adding(Decision("refused", "d", "c", "c", "", ""))
    assert (now.published, now.previous) == ("c", "b")
    now = now.rolled_back("")
    assert (now.published, now.previous) == ("b", "a")
    now = now.adding(Decision("published", "e", "b", "e", "", ""))
    assert (now.published, now.previous) == ("e", "b")
    now = now.rolled_back("").rolled_back("")
    assert (now.published, now.previous) == ("a", "")


def test_posts_are_embedded_by_their_experts_also_where_the_trunk_answers(root, monkeypatch):
    import lance

    context = open_study(GOOD, root)
    made, shard = bundle.choose, context.shards[0].key

    def vectors():
        build(open_study(GOOD, root), "embeddings", shard, force=True)
        folder = open_study(GOOD, root).need("embeddings", shard).path / "embeddings.lance"
        return np.stack(lance.dataset(str(folder)).to_table()["embedding"].to_numpy())

    before = vectors()

    def none_published(*arguments):
        chosen, measured = made(*arguments)
        return chosen | {"published": {"e000": False, "e001": False}}, measured

    monkeypatch.setattr(bundle, "choose", none_published)
    build(context, "mixture", force=True)
    assert Bundle(context.need("mixture").path).published == {"e000": False, "e001": False}
    assert np.array_equal(vectors(), before)
