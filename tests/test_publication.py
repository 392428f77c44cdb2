"""Publication: a worse mixture is refused; a decision is taken once, and can be taken back."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from click.testing import CliRunner

from helpers.two_mixtures import BAD, GOOD, make, tiny_study
from moe_core.data.takedowns import Entry, Forgotten
from moe_core.engine.context import Context
from moe_core.engine.stage import build
from moe_core.serving import publication
from moe_core.serving.bundle import Bundle
from moe_core.serving.publication import Book, Decision, published_bundle
from moe_core.serving.routed import predict
from moe_core.settings import Data, Publish, dump_study
from moe_core.stages.graph import GRAPH
from moe_core.stages.mixture import bundle, promote
from moe_core.stages.mixture.promote import PUBLISHED, Verdict, decide, force, judge, roll_back
from pipelines.cli.common import publication_of, show_publication
from pipelines.cli.main import main

SCORES = {"measure": "p_at_1", "p_at_1_new": 0.3, "p_at_1_published": 0.2, "validation_posts": 9}


@pytest.fixture
def root(both, tmp_path):
    return shutil.copytree(both, tmp_path / "store")


def version(root, study):
    return Context(study, root).version("mixture")


def publish(root, study):
    """What `hardmoe run` does; the decision about the study's mixture."""
    context = Context(study, root)
    build(context, PUBLISHED)
    return publication.load(root).last(context.version("mixture"))


def book(root):
    return publication.load(root)


def hardmoe(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


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
    assert (book(root).published, book(root).previous) == (good, bad)
    roll_back(Context(GOOD, root))
    assert (book(root).published, book(root).previous) == (bad, "")
    before = (root / publication.FILE).read_bytes()
    assert publish(root, GOOD).action == "rolled back"
    assert (root / publication.FILE).read_bytes() == before
    with pytest.raises(ValueError, match="nothing to roll back to"):
        roll_back(Context(GOOD, root))
    force(Context(GOOD, root), good)
    assert book(root).published == good


def test_a_verdict_made_anew_does_not_bring_back_what_a_person_took_back(root):
    publish(root, BAD)
    publish(root, GOOD)
    roll_back(Context(GOOD, root))
    other_margin = GOOD.model_copy(update={"publish": Publish(margin=0.1)})  # another plan, so another comparison
    said = publish(root, other_margin)
    assert said.action == "refused"
    assert "it was rolled back on" in said.why
    assert book(root).published == version(root, BAD)


def test_a_margin_that_allows_it_publishes_what_was_refused(root):
    publish(root, GOOD)
    publish(root, BAD)
    wide = BAD.model_copy(update={"publish": Publish(margin=1.0)})
    said = publish(root, wide)
    assert said.action == "published"
    assert "within publish.margin 1.0" in said.why


def test_again_decides_nothing_anew(root):
    publish(root, GOOD)
    publish(root, BAD)
    before = (root / publication.FILE).read_bytes()
    for study in (GOOD, BAD, GOOD):
        assert build(Context(study, root), PUBLISHED).reused
    assert (root / publication.FILE).read_bytes() == before


def test_a_study_that_goes_back_has_its_mixture_judged_again(root):
    wide = BAD.model_copy(update={"publish": Publish(margin=1.0)})
    publish(root, wide)
    publish(root, GOOD)
    good, bad = version(root, GOOD), version(root, BAD)
    for study, wanted in ((wide, bad), (GOOD, good), (wide, bad), (GOOD, good)):
        said = publish(root, study)
        assert (said.action, book(root).published) == ("published", wanted)
        assert said.scores["p_at_1_new"], "it was compared"
        assert build(Context(study, root), PUBLISHED).reused
    publish(root, BAD)
    assert book(root).last(bad).action == "refused", "by the margin that it has now"
    assert book(root).published == good


def test_what_a_person_published_stays_where_the_study_s_own_was_published_before(root):
    publish(root, BAD)
    publish(root, GOOD)
    force(Context(GOOD, root), version(root, BAD))
    assert publish(root, GOOD).action == "published"
    assert book(root).published == version(root, BAD)
    publish(root, BAD)
    assert book(root).published == version(root, BAD)


def _killed(*_):
    raise KeyboardInterrupt


def test_a_run_killed_between_the_verdict_and_the_publication_takes_it_when_it_comes_again(root, monkeypatch):
    publish(root, BAD)
    with monkeypatch.context() as patch:
        patch.setattr(promote, "save", _killed)
        with pytest.raises(KeyboardInterrupt):
            publish(root, GOOD)
    assert Context(GOOD, root).find("published") is not None
    assert book(root).published == version(root, BAD)
    assert build(Context(GOOD, root), PUBLISHED).reused
    assert book(root).published == version(root, GOOD)


def test_what_was_published_meanwhile_is_not_overrun_by_an_older_comparison(root):
    publish(root, BAD)
    good, bad = version(root, GOOD), version(root, BAD)
    verdict = Verdict(True, "better", {})
    with pytest.raises(
        ValueError, match=f"{bad} is published now, mixture {good} was compared with nothing: run again"
    ):
        decide(Context(GOOD, root), good, "", verdict, "some-verdict")
    assert book(root).published == bad


def test_vocabularies_that_differ_are_compared_by_their_common_hashtags(root):
    fewer = tiny_study(data=Data(image_size=16, min_posts_per_tag=12, test=0.2, validation=0.2))
    make(Context(fewer, root), "mixture")
    one, other = (Bundle(Context(study, root).need("mixture").path) for study in (GOOD, fewer))
    assert len(other.hashtags) < len(one.hashtags)
    found = judge(Context(fewer, root), version(root, fewer), version(root, GOOD))
    assert found.scores["hashtags_compared"] == len(set(one.hashtags) & set(other.hashtags))
    assert "cross_entropy_new" not in found.scores
    back = judge(Context(fewer, root), version(root, GOOD), version(root, fewer))
    assert back.scores["p_at_1_gain"] == -found.scores["p_at_1_gain"]


def test_p_at_1_is_that_of_the_answers_users_get(root):
    from moe_core.stages import reading

    context = Context(GOOD, root)
    index = reading.index(context)
    posts = reading.posts_where(context, index, index.use("validation"))
    bundle = Bundle(context.need("mixture").path)
    probabilities, _ = predict(bundle, posts.images.read(np.arange(len(posts))))
    starts = posts.starts_N1.tolist()
    right = [int(probabilities[n].argmax()) in posts.tags_T[starts[n] : starts[n + 1]] for n in range(len(posts))]
    found = judge(context, context.version("mixture"), version(root, BAD))
    assert found.scores["p_at_1_new"] == pytest.approx(sum(right) / len(right), abs=1e-5)
    assert found.scores["validation_posts"] == len(right)


def test_an_old_bundle_of_another_image_size_is_asked_with_resized_posts(root):
    small = tiny_study(data=Data(image_size=8, min_posts_per_tag=5, test=0.2, validation=0.2))
    make(Context(small, root), "mixture")
    found = judge(Context(GOOD, root), version(root, GOOD), version(root, small))
    assert 0 < found.scores["p_at_1_published"] < 1


def test_without_validation_posts_it_is_published_and_says_so(root):
    for lr in (0.2, 0.1):
        study = tiny_study(lr=lr, data=Data(image_size=16, min_posts_per_tag=5, test=0.2, validation=0.0))
        make(Context(study, root), "mixture")
        said = publish(root, study)
    assert said.action == "published"
    assert said.why == "no validation post carries a hashtag of both: published without a comparison"


def test_a_mixture_without_a_common_hashtag_is_refused(root, monkeypatch):
    publish(root, BAD)
    opened = promote._bundle

    def renamed(context, which):
        bundle = opened(context, which)
        if which == version(root, GOOD):
            bundle.hashtags = [f"{tag}-renamed" for tag in bundle.hashtags]
        return bundle

    monkeypatch.setattr(promote, "_bundle", renamed)
    said = publish(root, GOOD)
    assert (said.action, said.why) == (
        "refused",
        f"it has no hashtag in common with the published mixture {version(root, BAD)}",
    )


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_damaged_new_mixture_is_an_error_and_the_old_one_stays(root):
    publish(root, BAD)
    flip(root / "mixture" / version(root, GOOD) / "experts" / "e001.safetensors")
    with pytest.raises(ValueError, match=r"e001.safetensors is not the file the manifest names"):
        publish(root, GOOD)
    with pytest.raises(ValueError, match=r"e001.safetensors is not the file the manifest names"):
        force(Context(GOOD, root), version(root, GOOD))
    assert book(root).published == version(root, BAD)
    assert len(book(root).history) == 1


def test_a_published_bundle_that_is_gone_is_said_and_replaced_by_the_next(root):
    publish(root, BAD)
    shutil.rmtree(root / "mixture" / version(root, BAD))
    with pytest.raises(ValueError, match=f"the published mixture {version(root, BAD)} is not at .*restore the folder"):
        published_bundle(root)
    said = publish(root, GOOD)
    assert said.action == "published"
    assert f"the published mixture {version(root, BAD)} cannot be opened any more" in said.why
    with pytest.raises(ValueError, match=f"no mixture {version(root, BAD)} in"):
        roll_back(Context(GOOD, root))
    assert book(root).published == version(root, GOOD)


@pytest.mark.parametrize("how", ["torn", "changed", "not ours", "binary", "empty", "deep"])
def test_a_damaged_published_json_is_an_error_and_left_as_it_is(root, how):
    publish(root, BAD)
    path = root / publication.FILE
    text = path.read_text()
    damaged = {
        "torn": text[: len(text) // 2].encode(),
        "changed": text.replace(version(root, BAD), version(root, GOOD)).encode(),
        "not ours": b"[]",
        "binary": b"\xff\x00",
        "empty": b"",
        "deep": b"[" * 100_000,
    }[how]
    path.write_bytes(damaged)
    for broken in (
        lambda: published_bundle(root),
        lambda: publish(root, GOOD),
        lambda: force(Context(GOOD, root), version(root, GOOD)),
        lambda: roll_back(Context(GOOD, root)),
    ):
        with pytest.raises(ValueError, match=r"published.json is damaged .* move it away and say `hardmoe publish"):
            broken()
    assert path.read_bytes() == damaged
    done = hardmoe("predict", "--bundle", root, "x.png")
    assert done.exit_code == 1
    assert "published.json is damaged" in done.output


def test_nothing_published_yet_says_what_to_do(root):
    with pytest.raises(ValueError, match=r"no mixture of .*study.toml is published: `hardmoe run`"):
        published_bundle(root)


PUBLISHER = """
import sys
from pathlib import Path
from moe_core.serving.publication import Decision, save, writing
root, name = Path(sys.argv[1]), sys.argv[2]
for turn in range(20):
    with writing(root) as now:
        one = f"{name}{turn}"
        save(root, now.with_one(Decision("forced", one, now.published, one, "by hand", "a test")))
"""


def test_two_publishers_at_once_lose_no_decision(tmp_path):
    processes = [subprocess.Popen([sys.executable, "-c", PUBLISHER, str(tmp_path), name]) for name in "ab"]
    seen = []
    while any(process.poll() is None for process in processes):
        seen.append(len(book(tmp_path).history))  # a reader always finds a whole file
    assert [process.returncode for process in processes] == [0, 0]
    history = book(tmp_path).history
    assert len(history) == 40
    assert [d.against for d in history] == ["", *(d.published for d in history[:-1])]
    assert seen == sorted(seen)


def test_rollbacks_go_back_one_by_one():
    now = Book()
    for one in ("a", "b", "c"):
        now = now.with_one(Decision("forced", one, now.published, one, "", ""))
    now = now.with_one(Decision("refused", "d", "c", "c", "", ""))
    assert (now.published, now.previous) == ("c", "b")
    now = now.rolled_back("")
    assert (now.published, now.previous) == ("b", "a")
    now = now.with_one(Decision("published", "e", "b", "e", "", ""))
    assert (now.published, now.previous) == ("e", "b")
    now = now.rolled_back("").rolled_back("")
    assert (now.published, now.previous) == ("a", "")


def test_the_command_publishes_goes_back_and_lists(root):
    file = root / "study.toml"
    good, bad = version(root, GOOD), version(root, BAD)
    assert f"published: {good}" in hardmoe("publish", "--study", file).output
    refused = hardmoe("publish", "--study", file, "--version", bad)
    assert refused.exit_code == 1
    assert "not published: P@1" in refused.output
    assert "--force publishes it all the same" in refused.output
    assert (
        f"published: {bad}   (before: {good})"
        in hardmoe("publish", "--study", file, "--version", bad[:8], "--force").output
    )
    assert f"published: {good}" in hardmoe("publish", "--study", root, "--rollback").output
    listed = hardmoe("publish", "--study", file, "--list", "--json")
    said = json.loads(listed.output)
    assert (said["published"], said["previous"]) == (good, "")
    assert [d["action"] for d in said["history"]] == ["published", "refused", "forced", "rolled back"]
    assert {d["by"] for d in said["history"]} == {"hardmoe publish"}
    for wrong, why in (
        (["--rollback", "--list"], "exclude one another"),
        (["--version", "nothing"], f"0 versions of mixture in {root} begin with 'nothing': there are "),
        (["--version", "", "--force"], f"2 versions of mixture in {root} begin with '': "),
    ):
        done = hardmoe("publish", "--study", file, *wrong)
        assert done.exit_code == 1
        assert why in done.output


def test_going_back_to_a_mixture_that_saw_forgotten_posts_warns(root):
    file = root / "study.toml"
    good, bad = version(root, GOOD), version(root, BAD)
    book = Forgotten.load(root).adding("id", ["a post"])
    book.noting("id", "a post", [], [f"mixture {bad}"])
    book.finished().save(root)
    warning = "the published mixture saw posts that were taken down since"
    assert warning in hardmoe("publish", "--study", file, "--version", bad, "--force").output
    assert warning not in hardmoe("publish", "--study", file, "--version", good, "--force").output
    assert warning in hardmoe("publish", "--study", file, "--rollback").output


def test_why_a_mixture_is_not_published_is_told_with_what_came_after(root):
    context = Context(GOOD, root)
    good, bad = version(root, GOOD), version(root, BAD)
    for which in (bad, good, bad):
        force(context, which)
    assert publication_of(context)["why"] == (
        f"it was forced on {publication.load(root).last(good).at}; since then {bad} was forced: by hand, without a "
        "comparison"
    )
    roll_back(context)
    assert publication_of(context)["is_published"]


def test_a_worse_cross_entropy_is_said_of_a_mixture_that_is_published():
    scores = SCORES | {"p_at_1_gain": 0.1, "p_at_1_gain_ci95": [0.05, 0.15]}
    worse = scores | {"cross_entropy_new": 3.2, "cross_entropy_published": 3.1}
    assert "its cross-entropy is higher, 3.2000 against 3.1000" in promote._verdict(0.005, "v", worse).why
    assert "cross-entropy" not in promote._verdict(0.005, "v", scores).why


def test_a_refusal_that_may_be_chance_says_so():
    unsure = SCORES | {"p_at_1_gain": -0.01, "p_at_1_gain_ci95": [-0.03, 0.01]}
    sure = SCORES | {"p_at_1_gain": -0.05, "p_at_1_gain_ci95": [-0.07, -0.03]}
    for scores, chance in ((unsure, True), (sure, False)):
        verdict = promote._verdict(0.005, "v", scores)
        assert not verdict.publish
        assert ("that may be chance (95 % of the difference: -0.0300 to +0.0100)" in verdict.why) == chance
        # half an interval of 0.02 at 9 posts is the 0.005 beyond the margin at 16 times as many
        assert verdict.why.endswith(": about 150 would decide") == chance


def test_what_is_published_by_hand_is_shown_in_dagsters_ui(root):
    """In a process of its own: the assets belong to one study a process."""
    import dagster as dg

    publish(root, GOOD)
    (root / "dagster").mkdir()
    (root / "dagster" / "dagster.yaml").write_text("telemetry: {enabled: false}")
    options = ["publish", "--study", str(root / "study.toml"), "--version", version(root, BAD), "--force"]
    environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}
    subprocess.run([sys.executable, "-m", "pipelines.cli.main", *options], check=True, env=environment)
    with dg.DagsterInstance.from_config(str(root / "dagster")) as instance:
        (record,) = instance.fetch_observations(dg.AssetKey("published"), limit=2).records
        assert record.asset_observation.metadata["published"].value == version(root, BAD)
        key = dg.AssetCheckKey(dg.AssetKey("published"), "newest_is_published")
        (check,) = instance.event_log_storage.get_asset_check_execution_history(key, limit=2)
        said = check.event.dagster_event.asset_check_evaluation_data
        assert (said.passed, said.severity) == (False, dg.AssetCheckSeverity.WARN)
        assert said.description == "not published: nothing was published before"


def test_results_say_whether_the_table_is_that_of_the_published_mixture(root):
    make(Context(GOOD, root), "evaluation")
    file = root / "study.toml"
    said = json.loads(hardmoe("results", "--study", file, "--json").output)
    assert said["publication"] == {
        "published": version(root, GOOD),
        "mixture": version(root, GOOD),
        "is_published": True,
        "why": "nothing was published before",
    }
    make(Context(BAD, root), "evaluation")
    file.write_text(dump_study(BAD))
    said = json.loads(hardmoe("results", "--study", file, "--json").output)
    assert not said["publication"]["is_published"]
    assert said["publication"]["published"] == version(root, GOOD)
    assert "below it" in said["publication"]["why"]
    assert f"This mixture is not published, {version(root, GOOD)} is: P@1" in hardmoe("results", "--study", file).output


def test_what_was_decided_on_a_mixture_is_said_published_or_refused(root, capsys):
    publish(root, GOOD)
    show_publication(Context(GOOD, root), always=True)
    assert capsys.readouterr().out == f"Published: mixture {version(root, GOOD)}: nothing was published before\n"
    publish(root, BAD)
    show_publication(Context(BAD, root), always=True)
    assert capsys.readouterr().out.startswith(f"This mixture is not published, {version(root, GOOD)} is: P@1 0.")


def test_the_published_bundle_is_there_while_it_is_made_again(root, monkeypatch):
    publish(root, GOOD)
    made, seen = bundle._choose, []
    monkeypatch.setattr(bundle, "_choose", lambda *a: (seen.append(Bundle(published_bundle(root))), made(*a))[1])
    before = Bundle(published_bundle(root)).parts
    assert not build(Context(GOOD, root), bundle.MIXTURE, force=True).reused
    assert len(seen) == 1
    assert Bundle(published_bundle(root)).parts == before
    assert sorted(p.name for p in (root / "mixture").iterdir() if not p.name.startswith(".lock")) == sorted(
        [version(root, GOOD), version(root, BAD)]
    )


def test_a_refusal_says_that_the_published_one_saw_what_was_taken_down(root):
    publish(root, GOOD)
    context = Context(BAD, root)
    entry = Entry("id", "hash", datetime.now(UTC), saw=(f"mixture {version(root, GOOD)}",), done=True)
    context.forgotten = Forgotten("salt", {("id", "hash"): entry})
    found = judge(context, version(root, BAD), version(root, GOOD))
    assert not found.publish
    assert found.why.endswith("; the published one saw posts that were taken down since")


MISMATCHES = {
    "the decoder was made from trunk": lambda said: said["decoder"]["made_from"].update(trunk="other"),
    "the decoder was made from e001": lambda said: said["decoder"]["made_from"].update(e001="other"),
    "expert e000 was made from trunk": lambda said: said["experts"]["e000"]["made_from"].update(trunk="other"),
    "expert e001 was made from members": lambda said: said["experts"]["e001"]["made_from"].update(members="other"),
    "expert e000 was made from members": lambda said: said["gate"]["made_from"].update(e000="other"),
    "the manifest wants expert e001 other": lambda said: said["experts"]["e001"].update(version="other"),
    "the manifest wants trunk other": lambda said: said["router"].update(version="other"),
    "the manifest wants partition other": lambda said: said["gate"].update(version="other"),
    "the manifest wants shared_decoder other": lambda said: said["decoder"].update(version="other"),
}


@pytest.mark.parametrize("why", MISMATCHES)
def test_a_bundle_of_two_generations_is_refused(root, why):
    """Its manifest is sealed anew, as one would be that was written wrongly."""
    from moe_core.store.hashing import content_hash

    path = Context(GOOD, root).need("mixture").path / "manifest.json"
    said = json.loads(path.read_text())
    said.pop("checksum")
    MISMATCHES[why](said)
    path.write_text(json.dumps(said | {"checksum": content_hash(said)}, indent=1))
    with pytest.raises(ValueError, match=why):
        Bundle(path.parent)
    with pytest.raises(ValueError, match=why):
        publish(root, GOOD)
    assert book(root).history == ()


def test_a_mixture_that_is_not_what_its_artifact_says_is_not_published(root, monkeypatch):
    context = Context(GOOD, root)
    store_read = context.store.read
    monkeypatch.setattr(
        context.store,
        "read",
        lambda path: (a := store_read(path)) and replace(a, inputs={**a.inputs, "e000": "another"}),
    )
    with pytest.raises(ValueError, match=r"holds e000 .*, it was made from another: delete the folder and run again"):
        force(context, context.version("mixture"))


def test_a_reader_keeps_its_bundle_while_another_is_published(root):
    publish(root, BAD)
    bundle = Bundle(published_bundle(root))
    publish(root, GOOD)
    pictures = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    predict(bundle, pictures)
    assert bundle.folder.name == version(root, BAD)
    assert bundle.parts["trunk"] != Bundle(published_bundle(root)).parts["trunk"]


def test_posts_are_embedded_by_their_experts_also_where_the_trunk_answers(root, monkeypatch):
    import lance

    context = Context(GOOD, root)
    made, shard = bundle._choose, context.shards[0].key

    def vectors():
        build(Context(GOOD, root), GRAPH["embeddings"], shard, force=True)
        folder = Context(GOOD, root).need("embeddings", shard).path / "embeddings.lance"
        return np.stack(lance.dataset(str(folder)).to_table()["embedding"].to_numpy())

    before = vectors()
    monkeypatch.setattr(bundle, "_choose", lambda *a: made(*a) | {"published": {"e000": False, "e001": False}})
    build(context, bundle.MIXTURE, force=True)
    assert Bundle(context.need("mixture").path).published == {"e000": False, "e001": False}
    assert np.array_equal(vectors(), before)
