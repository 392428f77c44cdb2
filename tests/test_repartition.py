"""Shards that arrive, a gate that is fitted again, experts that come and go: what is made again and what is kept."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from helpers.growing import add_shard, growing_study, make, opened
from moe_core.clustering.gate import load_gate
from moe_core.data.loading import Labels
from moe_core.settings import Partition, Repartition, load_study
from moe_core.stages.gate import current_partition, membership
from moe_core.stages.gate.refit import look_ahead
from moe_core.stages.reading import Index
from moe_core.stages.trunk import frozen
from pipelines.run.estimate import Cost, Outlook, outlook
from pipelines.run.scheduler import tasks_of


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three shards and three experts, made up to the bundle."""
    folder = tmp_path_factory.mktemp("three")
    for number in range(3):
        add_shard(folder / "source", number)
    make(growing_study(folder / "source"), folder / "store")
    return folder


@pytest.fixture
def study_of(three, tmp_path):
    """Of a copy of it, to be changed: (study, root)."""
    shutil.copytree(three, tmp_path / "copy")
    return lambda **more: (growing_study(tmp_path / "copy" / "source", **more), tmp_path / "copy" / "store")


def shards_of(root):
    return root.parent / "source"


def weights_of(context, name="expert"):
    return {key: context.need(name, key).file("weights.safetensors") for key in context.experts}


def kept_at(share, **more):
    return {"repartition": Repartition(new_tags=10, retrain_share=share, **more)}


def status(context):
    from pipelines.run.status import states_of

    return {(state.asset, state.key): (state.state, state.why) for state in states_of(context)}


# ---- which experts are trained again: figures to do in the head


def lines(count, arrived=None, shard="s"):
    """Posts p0, p1, ... with the hashtag 0 each."""
    labels = Labels(np.zeros(count, np.int64), np.arange(count + 1))
    ids, shards = np.array([f"p{n}" for n in range(count)]), np.array([shard] * count)
    return membership.Lines(ids, shards, Index(np.array(["train"] * count), labels), arrived or {})


def carried(before, now, most, count=12, same_trunk=True):
    """One expert that was trained on the posts `before` and has `now`."""
    text = lines(count)
    digest = membership.digest_of(text.of(np.array(before)))
    old = SimpleNamespace(metadata={"members": {"e000": digest}})
    frame = membership.frame_of("expert", "e000", text.ids[before], text.of(np.array(before)))
    number_N = np.full(count, 1)
    number_N[now] = 0
    found = membership.carried("expert", ["e000"], number_N, np.ones(count, bool), text, old, frame, same_trunk, most)
    return digest, found


@pytest.mark.parametrize(("most", "kept"), [(0.2, True), (0.19, False)])
def test_one_of_ten_posts_left_and_one_came_is_a_change_of_a_fifth(most, kept):
    digest, found = carried(list(range(10)), [*range(9), 10], most)
    assert found.changed == {"e000": 0.2}
    assert (found.digests["e000"] == digest) is kept
    assert found.kept == ({"e000": 0.2} if kept else {})
    assert found.frame["id"].to_list() == [f"p{n}" for n in (range(10) if kept else [*range(9), 10])]
    assert found.lineage["e000"] == [digest] if kept else [digest, found.digests["e000"]]


def test_small_changes_add_up_until_the_expert_is_trained_again():
    """Against what it was trained on, not against the partition before: 1 of 10 is kept, the second is one too many."""
    digest, first = carried(list(range(10)), list(range(11)), most=0.1)
    assert first.digests["e000"] == digest
    assert len(first.frame) == 10, "the tenth is not forgotten to be new"
    text = lines(12)
    old = SimpleNamespace(metadata={"members": first.digests, "lineage": {"expert": first.lineage}})
    second = membership.carried(
        "expert", ["e000"], np.zeros(12, int), np.ones(12, bool), text, old, first.frame, True, 0.1
    )
    assert second.changed == {"e000": 0.2}
    assert second.digests["e000"] == membership.digest_of(text.of(np.arange(12)))


def test_with_another_trunk_every_expert_begins_anew():
    digest, found = carried(list(range(10)), list(range(10)), most=1.0, same_trunk=False)
    assert found.lineage == {"e000": [digest]}
    assert found.kept == {}


def test_a_post_of_a_shard_that_the_trunk_has_not_seen_is_known_with_the_version_of_its_shard():
    assert lines(1).of(np.array([0])) == ["p0 0"]
    assert lines(1, {"s": "v1"}).of(np.array([0])) == ["p0 0 v1"]


# ---- keys


def current(keys, sizes, following):
    return current_partition.Current("v", "2", {}, {}, "t", keys, sizes, following)


def test_the_smallest_go_and_no_number_comes_back():
    three = current(["e000", "e001", "e002"], [5, 3, 4], 3)
    assert current_partition.keys_for(None, 2) == ["e000", "e001"]
    assert current_partition.keys_for(three, 3) == ["e000", "e001", "e002"]
    assert current_partition.keys_for(three, 2) == ["e000", "e002"]
    assert current_partition.keys_for(current(["e000", "e002"], [5, 4], 3), 4) == ["e000", "e002", "e003", "e004"]
    assert current_partition.keys_for(current(["e000", "e001"], [3, 3], 2), 1) == ["e000"], "of equals the later goes"


# ---- a shard arrives


def test_a_new_shard_costs_its_own_features_and_the_experts_that_it_changed(study_of):
    study, root = study_of(**kept_at(1.0))
    before = opened(study, root)
    assert make(study, root) == [], "the same with other limits"
    old, weights = before.need("partition"), weights_of(before)
    trunk, hashtags = before.need("trunk"), before.need("vocabulary")
    add_shard(shards_of(root), 3, posts=30)
    assert status(opened(study, root))["trunk", None] == ("fresh", "kept: made from 3 of 4 shards"), (
        "before anything ran"
    )
    assert make(study, root) == ["posts:s3", "splits", "trunk_features:s3", "partition", "mixture"]
    now = opened(study, root)
    found = now.need("partition")
    assert found.inputs["previous"] == old.version
    assert (now.need("trunk"), now.need("vocabulary")) == (trunk, hashtags)
    assert weights_of(now) == weights
    gates = [load_gate(artifact.file("gate.safetensors"))[0] for artifact in (old, found)]
    assert np.array_equal(gates[0].centroids_MP, gates[1].centroids_MP)
    rows = pl.read_parquet(found.file("assignment.parquet"))
    same = rows.filter(pl.col("shard") != "s3")
    was = pl.read_parquet(old.file("assignment.parquet"))
    assert same.select("id", "expert").equals(was.select("id", "expert"))
    assert rows.filter("late")["shard"].unique().to_list() == ["s3"]
    assert (found.metadata["moved"], found.metadata["gone"]) == (0, 0)
    assert found.metadata["new"] == found.metadata["training_posts"] - old.metadata["training_posts"] > 0
    assert make(study, root) == []
    states = status(now)
    assert {state for state, _ in states.values()} == {"fresh", "missing"}
    assert [name for (name, _), (state, _) in states.items() if state == "missing"] == (
        ["published", "evaluation"] + ["embeddings"] * 4 + ["report"]
    )
    assert states["vocabulary", None][1] == "kept: made from 3 of 4 shards"
    share = found.metadata["kept_members"]["expert"]["e001"]
    assert states["expert", "e001"][1] == f"kept: {100 * share:.1f} % of its posts changed"


def test_experts_beyond_the_threshold_go_on_from_their_old_weights_and_the_others_are_the_same_files(study_of):
    study, root = study_of()
    before = weights_of(opened(study, root))
    add_shard(shards_of(root), 3, posts=40)
    shutil.copytree(root, root.with_name("tried"))
    make(study, root.with_name("tried"), "partition")
    tried = opened(study, root.with_name("tried")).need("partition")
    churn = json.loads(tried.file("churn.json").read_text())["experts"]
    changed = sorted((one["changed"], key) for key, one in churn.items())
    limit = (changed[0][0] + changed[1][0]) / 2  # the least changed is kept
    assert changed[0][0] < limit < changed[1][0]
    study, root = study_of(**kept_at(limit))
    again = [f"expert:{key}" for key in sorted(key for share, key in changed if share > limit)]
    made = make(study, root)
    assert [name for name in made if name.startswith("expert")] == again
    now = opened(study, root)
    assert [f"expert:{key}" for key in now.need("partition").metadata["trained_again"]] == again
    for key in now.experts:
        expert = now.need("expert", key)
        if f"expert:{key}" in again:
            assert expert.metadata["continued_from"] == expert.inputs["from"] == before[key].parent.name
        else:
            assert expert.file("weights.safetensors") == before[key]
    assert make(study, root) == []


def test_a_kept_expert_whose_weights_are_gone_is_trained_on_what_it_was_trained_on(study_of):
    study, root = study_of(**kept_at(1.0))
    weights = weights_of(opened(study, root))["e001"]
    bytes_then = weights.read_bytes()
    add_shard(shards_of(root), 3, posts=30)
    make(study, root, "partition")
    shutil.rmtree(weights.parent)
    assert make(study, root, "expert") == ["expert:e001"]
    assert weights.read_bytes() == bytes_then
    shutil.rmtree(weights.parent)
    trained = opened(study, root).need("partition").path / "trained.parquet"
    assert pl.read_parquet(trained).filter(pl.col("of") == "expert")["key"].unique().sort().to_list() == [
        "e000",
        "e001",
        "e002",
    ]
    frame = pl.read_parquet(trained)
    lost = lines(3)
    with pytest.raises(ValueError, match=r"e001 was kept, but its weights are gone, and \d+ of the \d+ posts"):
        membership.rows_of(frame, "expert", "e001", lost, "digest")


def test_weights_that_it_went_on_from_may_leave_once_it_is_trained(study_of):
    study, root = study_of(**kept_at(0.0))
    old = weights_of(opened(study, root))["e000"].parent
    add_shard(shards_of(root), 3, posts=30)
    make(study, root, "expert")
    version = opened(study, root).version("expert", "e000")
    shutil.rmtree(old)
    assert opened(study, root).version("expert", "e000") == version
    assert make(study, root, "expert") == []
    shutil.rmtree(root / "expert" / "e000" / version)
    assert opened(study, root).version("expert", "e000") != version, "there is nothing to go on from"
    make(study, root, "expert")
    assert "continued_from" not in opened(study, root).need("expert", "e000").metadata


def test_experts_start_as_usual_where_that_is_said(study_of):
    study, root = study_of(**kept_at(0.0, start="usual"))
    add_shard(shards_of(root), 3, posts=30)
    make(study, root, "expert")
    assert all("from" not in opened(study, root).need("expert", key).inputs for key in opened(study, root).experts)


def test_a_kill_between_the_partition_and_its_pointer_is_mended_and_two_ways_end_equal(study_of, monkeypatch):
    study, root = study_of()
    add_shard(shards_of(root), 3, posts=40)
    shutil.copytree(root, root.with_name("other"))
    other = root.with_name("other")
    make(study, other)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(current_partition, "write_current", killed)
        with pytest.raises(KeyboardInterrupt):
            make(study, root)
    old, version = current_partition.load(opened(study, root)), opened(study, root).version("partition")
    assert old.version != version
    assert opened(study, root).find("partition"), "it is committed"
    make(study, root)
    assert current_partition.load(opened(study, root)).version == version
    one, two = opened(study, root), opened(study, other)
    for name in ("partition", "shared_decoder", "mixture"):
        assert one.need(name).content_hash == two.need(name).content_hash
    for key in one.experts:
        assert (
            one.need("expert", key).files["weights.safetensors"] == two.need("expert", key).files["weights.safetensors"]
        )


def test_an_earlier_partition_is_taken_up_again_when_its_shards_are_back(study_of):
    study, root = study_of(**kept_at(0.0))
    first = opened(study, root).version("partition")
    add_shard(shards_of(root), 3, posts=30)
    make(study, root)
    (shards_of(root) / "s3.parquet").unlink()
    now = opened(study, root)
    assert now.version("partition") == first
    before = now.current
    said = f"goes back to partition {first} from {before.version}: it was made from just these posts and settings"
    assert status(now)["partition", None] == ("fresh", said)
    assert make(study, root) == []
    assert current_partition.load(opened(study, root)).version == first
    assert current_partition.went_back(opened(study, root), before) == said
    assert status(opened(study, root))["partition", None] == ("fresh", "")


def retrain_share(study, share):
    return study.model_copy(update={"repartition": study.repartition.model_copy(update={"retrain_share": share})})


@pytest.mark.parametrize("threshold_before_the_fit", [True, False])
def test_another_threshold_goes_on_from_the_fit_that_was_asked_for(study_of, threshold_before_the_fit):
    study, root = study_of()
    other = retrain_share(study, 0.06)
    current_partition.ask_to_refit(opened(study, root))
    make(other if threshold_before_the_fit else study, root)
    refit = opened(study, root).current
    assert refit.settings["how"] == "refit"
    changed = study if threshold_before_the_fit else other
    assert make(changed, root)[:1] == ["partition"]
    now = opened(changed, root).need("partition")
    assert (now.inputs["previous"], now.metadata["how"]) == (refit.version, "assign")
    assert make(changed, root) == []
    back = other if threshold_before_the_fit else study
    assert opened(back, root).plan("partition").inputs["previous"] == now.version


def test_a_fit_that_was_asked_for_outlives_a_shard_that_is_away_for_an_hour(study_of):
    study, root = study_of(**kept_at(1.0))
    add_shard(shards_of(root), 3, posts=30)
    make(study, root)
    current_partition.ask_to_refit(opened(study, root))
    make(study, root)
    refit = opened(study, root).version("partition")
    away = shards_of(root) / "s3.parquet"
    away.rename(away.with_suffix(".away"))
    make(study, root)
    assert opened(study, root).need("partition").inputs["previous"] == refit, "not the one before the fit"
    away.with_suffix(".away").rename(away)
    assert opened(study, root).version("partition") == refit
    assert make(study, root) == []


def test_other_settings_of_the_trunk_begin_anew_and_going_back_finds_what_was_kept(study_of):
    study, root = study_of(**kept_at(1.0))
    add_shard(shards_of(root), 3, posts=30)
    make(study, root)
    version = opened(study, root).version("partition")
    other = study.model_copy(update={"trunk": study.trunk.model_copy(update={"lr": 0.1})})
    make(other, root)
    assert "previous" not in opened(other, root).need("partition").inputs
    assert len(opened(other, root).basis.shards) == 4
    assert opened(study, root).version("partition") == version
    assert make(study, root) == []


def test_until_the_partition_is_made_experts_wait_for_it(study_of):
    study, root = study_of()
    add_shard(shards_of(root), 3, posts=30)
    states = status(opened(study, root))
    assert {states["expert", f"e00{k}"] for k in range(3)} == {("stale", "waits for partition")}
    assert states["mixture", None] == ("stale", "waits for partition")


# ---- what a dry run says of it


def planned(study, root):
    context = opened(study, root)
    return outlook(context, tasks_of(context, None), workers=1)


def test_a_dry_run_says_which_experts_a_new_shard_may_train_again_and_names_no_trunk_that_is_kept(study_of):
    study, root = study_of()
    add_shard(shards_of(root), 3, posts=30)
    said = planned(study, root)
    steps = {step.name: step for step in said.steps}
    may = {name: step.why for name, step in steps.items() if step.may}
    assert may == {f"expert:e00{k}": "if more than 10 % of its posts changed" for k in range(3)} | {
        "shared_decoder": "if an expert is trained again"
    }
    assert not {"trunk", "vocabulary"} & set(steps)
    assert steps["posts:s3"].why == "missing"
    assert steps["mixture"].why == "follows from partition, expert, shared_decoder"
    slow = {name: replace(step, cost=Cost(60.0, 1)) for name, step in steps.items() if step.may or name == "partition"}
    assert Outlook(list(slow.values()), 0, 1).seconds == 300
    assert Outlook(list(slow.values()), 0, 1).least.seconds == 60
    document = said.as_json()
    assert {f"{row['asset']}:{row['key']}" for row in document["may_run"]} >= {"expert:e000", "shared_decoder:None"}
    assert not {"expert", "shared_decoder"} & {row["asset"] for row in document["will_run"]}
    assert document["estimate"]["at_least"]["bytes"] < document["estimate"]["bytes"]
    text = list(said.as_lines())
    assert any(line.startswith("expert:e000 ") and "may run: if more than 10 %" in line for line in text)
    assert any(f" would run, {len(may)} may run, " in line for line in text)
    assert "at least" in text[-1]
    assert "at most" in text[-1]


def test_a_dry_run_is_sure_of_experts_that_nothing_can_keep(study_of):
    study, root = study_of()
    add_shard(shards_of(root), 3, posts=30)
    longer = study.model_copy(update={"expert_training": study.expert_training.model_copy(update={"epochs": 2})})
    assert not [step for step in planned(longer, root).steps if step.may]
    refit = study.model_copy(update={"decoder": study.decoder.model_copy(update={"mode": "refit"})})
    assert {step.asset for step in planned(refit, root).steps if step.may} == {"expert"}
    more = study.model_copy(update={"partition": Partition(experts=4, pca=8)})
    steps = {step.name: step.may for step in planned(more, root).steps}
    assert [steps[f"expert:e00{k}"] for k in range(4)] == [True, True, True, False]
    assert not steps["shared_decoder"]


# ---- fitted again


def test_fitted_again_where_nothing_changed_nothing_moves_and_nothing_is_trained(study_of):
    study, root = study_of()
    ahead = look_ahead(opened(study, root))
    assert opened(study, root).find("partition"), "looking changed nothing"
    old, weights = opened(study, root).need("partition"), weights_of(opened(study, root))
    current_partition.ask_to_refit(opened(study, root))
    assert make(study, root) == ["partition", "mixture"]
    now = opened(study, root)
    said = now.need("partition").metadata
    assert now.need("partition").metadata["how"] == "refit"
    assert (said["moved"], said["trained_again"]) == (ahead["moved"], ahead["trained_again"])
    assert said["moved"] < 0.1 * said["training_posts"]
    assert said["kept"] == ["e000", "e001", "e002"]
    assert weights_of(now) == weights
    assert make(study, root) == [], "the request is spent"
    assert not (root / current_partition.REQUEST).exists()
    assert list(old.metadata["members"]) == list(said["members"])


def test_before_there_is_a_partition_there_is_nothing_to_fit_again(tmp_path):
    context = opened(growing_study(tmp_path), tmp_path / "store")
    with pytest.raises(ValueError, match="`hardmoe run` makes the first"):
        current_partition.ask_to_refit(context)
    with pytest.raises(ValueError, match="`hardmoe run` makes the first"):
        look_ahead(context)


@pytest.mark.parametrize("fine", [0, 8])
def test_experts_come_and_go_by_keys_that_are_never_used_twice(study_of, fine):
    from moe_core.serving.bundle import Bundle

    first = opened(*study_of()).need("mixture")
    bundles, seen = [first.path], dict(opened(*study_of()).need("partition").metadata["members"])
    ever = {key: {digest} for key, digest in seen.items()}
    for count, keys in (
        (4, ["e000", "e001", "e002", "e003"]),
        (2, None),
        (3, None),
    ):
        study, root = study_of(partition=Partition(experts=count, pca=8, fine=fine), **kept_at(0.1))
        before = current_partition.load(opened(study, root))
        keys = keys or current_partition.keys_for(before, count)
        made = make(study, root)
        now = opened(study, root)
        partition, decoder, mixture = (now.need(name) for name in ("partition", "shared_decoder", "mixture"))
        assert now.experts == keys == list(partition.metadata["members"])
        assert load_gate(partition.file("gate.safetensors"))[0].experts == count
        assert set(decoder.inputs) == {"trunk", *keys}
        again = [name.removeprefix("expert:") for name in made if name.startswith("expert:")]
        members = partition.metadata["members"]
        # an expert that has just the posts again that it once had is not trained again, but found
        found = {key for key in keys if members[key] in ever.get(key, ())}
        assert again == [key for key in partition.metadata["trained_again"] if key not in found]
        assert set(keys) - set(before.keys) <= set(again)
        for key in keys:
            if key in before.keys and key not in partition.metadata["trained_again"]:
                assert members[key] == seen[key]
        seen = dict(members)
        for key, digest in seen.items():
            ever.setdefault(key, set()).add(digest)
        assert list(Bundle(mixture.path).published) == keys
        bundles.append(mixture.path)
        assert make(study, root) == []
    assert keys[-1] == "e004", "e003 was used"
    for path in bundles:
        assert Bundle(path).gate.experts == len(Bundle(path).published)
    assert list(Bundle(first.path).published) == ["e000", "e001", "e002"]


# ---- trunk and vocabulary


@pytest.mark.parametrize(
    ("limits", "kept"),
    [({"growth": 1.5}, True), ({"growth": 1.05}, False), ({"new_tags": 0.0}, False), ({"new_tags": 10.0}, True)],
)
def test_trunk_and_vocabulary_are_kept_until_posts_or_hashtags_are_too_many(study_of, limits, kept):
    study, root = study_of(repartition=Repartition(**{"growth": 9.0, "new_tags": 10.0} | limits))
    trunk = opened(study, root).version("trunk")
    add_shard(shards_of(root), 3)
    make(study, root, "splits")
    now = opened(study, root)
    grown = json.loads((root / frozen.GROWTH).read_text())
    assert 1.05 < grown["posts"] < 1.5
    assert grown["new_tags"] > 0
    assert (now.version("trunk") == trunk) is kept
    assert (status(now)["trunk", None][0] == "fresh") is kept


def test_a_new_trunk_is_made_when_it_is_asked_for_once(study_of):
    study, root = study_of(**kept_at(1.0))
    assert not frozen.ask_to_renew(opened(study, root)), "it is that of all shards"
    add_shard(shards_of(root), 3, posts=30)
    make(study, root)
    old = opened(study, root)
    before = old.need("trunk").metadata["training_posts"]
    assert frozen.ask_to_renew(opened(study, root))
    made = make(study, root)
    assert [name for name in made if name in ("vocabulary", "trunk", "partition")] == [
        "vocabulary",
        "trunk",
        "partition",
    ]
    now = opened(study, root)
    assert now.need("partition").metadata["how"] == "refit"
    assert [name for name in made if name.startswith("expert")] == [f"expert:{key}" for key in old.experts]
    assert all("from" not in now.need("expert", key).inputs for key in now.experts)
    assert now.need("trunk").metadata["training_posts"] > before
    assert make(study, root) == []


def test_a_shard_of_the_basis_that_changed_makes_the_trunk_stale(study_of):
    study, root = study_of()
    add_shard(shards_of(root), 3, posts=30)
    add_shard(shards_of(root), 0, posts=119)
    assert status(opened(study, root))["trunk", None][0] == "stale"


def test_a_takedown_makes_the_trunk_stale_and_no_expert_goes_on_from_weights_that_saw_the_post(study_of):
    from moe_core.maintenance.takedown import forget

    study, root = study_of(**kept_at(0.0))
    add_shard(shards_of(root), 3, posts=30)
    make(study, root)
    before = opened(study, root)
    rows = pl.read_parquet(before.need("partition").file("assignment.parquet"))
    gone = rows.filter((pl.col("shard") == "s3") & (pl.col("split") == "train"))["id"][0]
    forget(opened(study, root), ids=[gone])
    now = opened(study, root)
    assert before.find("partition") is None
    assert status(now)["trunk", None][0] == "stale"
    made = make(study, root)
    assert [name for name in made if name.startswith("expert")] == [f"expert:{key}" for key in now.experts]
    now = opened(study, root)
    assert "previous" not in now.need("partition").inputs
    assert all("from" not in now.need("expert", key).inputs for key in now.experts)
    assert now.experts == before.experts


def test_tidying_leaves_what_the_next_partition_follows_and_what_the_trunk_was_made_from(study_of):
    from moe_core.maintenance.gc import tidy

    study, root = study_of()
    first = opened(study, root)
    old, splits = first.version("partition"), first.version("splits")
    add_shard(shards_of(root), 3, posts=30)
    make(study, root, "splits")
    tidy(opened(study, root), superseded=True)
    assert (root / "partition" / old).exists()
    make(study, root)
    done = tidy(opened(study, root), superseded=True)
    assert f"partition/{old}" in done.removed
    assert (root / "splits" / splits).exists()
    assert make(study, root) == []


# ---- the files that say what the study lives with


def damages(study, root):
    from moe_core.maintenance.verify import Damage, verify

    return {one.folder: one.why for one in verify(opened(study, root)) if isinstance(one, Damage)}


def grown(study, root):
    """A fourth shard by the kept trunk, then a fit that was asked for: the newest partition follows two."""
    add_shard(shards_of(root), 3, posts=30)
    make(study, root)
    current_partition.ask_to_refit(opened(study, root))
    make(study, root)


def one_character(path):
    """Of the version that it names; what it says is JSON still."""
    text = path.read_text()
    at = text.index('": "') + 4
    path.write_text(text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :])


def half(path):
    path.write_text(path.read_text()[:50])


@pytest.mark.parametrize("damage", [one_character, half, os.unlink])
@pytest.mark.parametrize("asset", ["trunk", "partition"])
def test_what_the_study_lives_with_is_written_again_from_the_store(study_of, asset, damage):
    study, root = study_of(**kept_at(1.0))
    grown(study, root)
    assert damages(study, root) == {}
    before = opened(study, root)
    path = frozen.current_file(before, asset)
    wanted, versions = path.read_text(), {name: before.version(name) for name in ("trunk", "partition", "mixture")}
    damage(path)
    if damage is not os.unlink:
        said = damages(study, root)
        assert list(said) == [path]
        assert f"from the store, where {asset} {versions[asset]} is the newest" in said[path]
    now = opened(study, root)
    assert {name: now.version(name) for name in versions} == versions
    assert make(study, root) == []
    assert path.read_text() == wanted
    assert damages(study, root) == {}


def test_a_key_is_not_given_away_again_when_the_file_is_written_from_the_store(study_of):
    more = kept_at(1.0)
    for count in (4, 3):
        study, root = study_of(partition=Partition(experts=count, pca=8), **more)
        make(study, root)
    half(frozen.current_file(opened(study, root), "partition"))
    study, root = study_of(partition=Partition(experts=4, pca=8), **more)
    assert opened(study, root).experts[-1] == "e004", "e003 was used"


def test_partitions_of_other_settings_are_not_taken_for_what_a_damaged_file_said(study_of):
    study, root = study_of()
    version = opened(study, root).version("partition")
    other = study.model_copy(update={"trunk": study.trunk.model_copy(update={"lr": 0.1})})
    make(other, root, "partition")
    half(frozen.current_file(opened(study, root), "partition"))
    half(frozen.current_file(opened(study, root), "trunk"))
    assert opened(study, root).version("partition") == version
    assert opened(other, root).version("partition") != version
    assert len(damages(other, root)) == 2, "all are looked at"
    assert make(study, root) == []


def test_files_without_a_seal_are_read_and_get_one(study_of):
    study, root = study_of(**kept_at(1.0))
    grown(study, root)
    version = opened(study, root).version("partition")
    for asset in ("trunk", "partition"):
        path = frozen.current_file(opened(study, root), asset)
        wanted = path.read_text()
        path.write_text(json.dumps({name: value for name, value in json.loads(wanted).items() if name != "checksum"}))
        assert opened(study, root).version("partition") == version
        assert damages(study, root) == {}
        assert make(study, root) == []
        assert path.read_text() == wanted


def test_where_the_store_does_not_tell_nothing_is_guessed(study_of):
    study, root = study_of()
    for asset, lost in (("trunk", "splits"), ("partition", "partition")):
        shutil.copytree(root, root.with_name(asset))
        there = root.with_name(asset)
        path = frozen.current_file(opened(study, there), asset)
        half(path)
        version = next(p for p in (there / lost).iterdir() if p.is_dir())
        shutil.rmtree(version)
        with pytest.raises(ValueError, match="restore the file from a backup") as raised:
            opened(study, there).version("partition")
        assert str(path) in str(raised.value)
        assert damages(study, there) == {path: str(raised.value)}


def test_a_dry_run_tells_of_a_damaged_file(study_of):
    from click.testing import CliRunner

    from pipelines.cli.main import main

    study, root = study_of()
    path = frozen.current_file(opened(study, root), "partition")
    half(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARDMOE_STUDY", "")
        done = CliRunner().invoke(main, ["run", "--dry-run", "--study", str(root / "study.toml")])
    assert (done.exit_code, done.stderr.startswith(f"Damaged: {path} is damaged (")) == (0, True)


def test_after_a_takedown_a_damaged_file_of_the_trunk_is_no_obstacle(study_of):
    from moe_core.maintenance.takedown import forget

    study, root = study_of()
    rows = pl.read_parquet(opened(study, root).need("partition").file("assignment.parquet"))
    forget(opened(study, root), ids=[rows.filter(pl.col("split") == "train")["id"][0]])
    half(frozen.current_file(opened(study, root), "trunk"))
    assert len(damages(study, root)) == 1
    assert "trunk" in make(study, root)
    assert damages(study, root) == {}


def test_verify_looks_at_what_is_published(study_of):
    from moe_core.serving import publication

    study, root = study_of()
    decision = publication.Decision("published", "m", "", "m", "the first", "a test")
    publication.save(root, publication.Book().with_one(decision))
    assert damages(study, root) == {}
    path = root / publication.FILE
    path.write_text(path.read_text().replace("the first", "the worst"))
    assert list(damages(study, root)) == [path]
    assert "its checksum does not match" in damages(study, root)[path]


# ---- the control


def test_the_random_partition_goes_on_and_new_posts_are_dealt_out_in_proportion(study_of):
    study, root = study_of()
    was = pl.read_parquet(opened(study, root).need("partition").file("assignment.parquet"))
    add_shard(shards_of(root), 3, posts=60)
    make(study, root, "partition")
    rows = pl.read_parquet(opened(study, root).need("partition").file("assignment.parquet"))
    assert rows.filter(pl.col("shard") != "s3").select("id", "random").equals(was.select("id", "random"))
    new = rows.filter((pl.col("shard") == "s3") & (pl.col("split") == "train"))
    assert new["random"].sort().to_list() == new["expert"].sort().to_list(), "as many to each"
    assert not new["random"].equals(new["expert"])


# ---- Dagster


def test_the_schedule_and_the_sensor_are_stopped_and_the_cron_is_that_of_the_study():
    import dagster as dg

    from pipelines.definitions import defs
    from pipelines.repartition import drift, weekly_repartition

    assert weekly_repartition.default_status == dg.DefaultScheduleStatus.STOPPED
    assert drift.default_status == dg.DefaultSensorStatus.STOPPED
    assert weekly_repartition.cron_schedule == Repartition().cron
    with dg.instance_for_test() as instance:
        asked = weekly_repartition.evaluate_tick(dg.build_schedule_context(instance=instance))
    assert len(asked.run_requests) == 1
    assert weekly_repartition.job_name == "repartition"
    assert defs.get_job_def("repartition")
    with pytest.raises(ValueError, match="must have five fields"):
        Repartition(cron="weekly")


def test_the_time_zone_of_the_schedule_is_a_setting(tmp_path):
    from dagster._utils.schedules import schedule_execution_time_iterator

    file = tmp_path / "study.toml"
    found = {}
    for zone in ("UTC", "Europe/Berlin", "America/New_York"):
        file.write_text(f'[repartition]\ntimezone = "{zone}"\n')
        look = "from pipelines.repartition import weekly_repartition as w"
        code = f"{look}; print(w.cron_schedule, w.execution_timezone, sep='|')"
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"HARDMOE_STUDY": str(file)}, capture_output=True, text=True
        )
        cron, said = done.stdout.strip().split("|")
        assert said == zone, done.stderr
        for day in ("2026-01-05", "2026-07-06"):  # Mondays
            midnight = datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()
            at = next(schedule_execution_time_iterator(midnight, cron, said, ascending=True))
            found[zone, day[5:7]] = at.astimezone(UTC).hour
    assert found == {
        ("UTC", "01"): 3,
        ("UTC", "07"): 3,
        ("Europe/Berlin", "01"): 2,
        ("Europe/Berlin", "07"): 1,  # summer time
        ("America/New_York", "01"): 8,
        ("America/New_York", "07"): 7,
    }


@pytest.mark.parametrize(
    "zone", ["Berlin", "", "CET+1", "Europe", "../UTC", "/etc/localtime", "Europe/Berlin\0", "é", "a" * 999]
)
def test_a_time_zone_that_is_none_is_one_line(tmp_path, zone):
    (tmp_path / "study.toml").write_text(f"[repartition]\ntimezone = {json.dumps(zone)}\n", "utf-8")
    with pytest.raises(ValueError, match=r"repartition.timezone = .*: no such time zone: wanted an IANA name") as said:
        load_study(tmp_path / "study.toml")
    assert "\n" not in str(said.value)


def test_the_sensor_asks_once_for_each_partition_that_drifted(study_of, monkeypatch):
    import dagster as dg

    from pipelines import repartition

    def look(**limits):
        more = {"drift_far": 1.0, "drift_ambiguous": 1.0, "drift_imbalance": 9.0} | limits
        study, root = study_of(**kept_at(0.1, **more))
        monkeypatch.setattr(repartition, "study", lambda: study)
        monkeypatch.setattr(repartition, "root", lambda: root)
        with dg.instance_for_test() as instance:
            return study, root, repartition.drift(dg.build_sensor_context(instance=instance))

    study, root, first = look()
    assert first.skip_reason.skip_message == "no shard came since the gate was fitted"
    add_shard(shards_of(root), 3)
    make(study, root, "partition")
    said = opened(study, root).need("partition").metadata["drift"]
    assert said["posts_since_fit"] == 119, "one is damaged"
    assert look()[2].skip_reason.skip_message.startswith("no drift")
    for name in ("far", "ambiguous"):
        assert said[name] > 0
        asked = look(**{f"drift_{name}": 0.0})[2].run_requests
        assert [request.run_key for request in asked] == [f"drift-{opened(study, root).version('partition')}"]
    assert said["imbalance"] > 0
    assert bool(look(drift_imbalance=1.0)[2].run_requests) == (said["imbalance"] > 1)


STALE = """
import dagster as dg
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest
from pipelines.definitions import defs
with dg.DagsterInstance.get() as instance:
    graph = defs.resolve_asset_graph()
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    for key in sorted(graph.get_all_asset_keys()):
        partitions = graph.get(key).partitions_def
        for name in partitions.get_partition_keys(dynamic_partitions_store=instance) if partitions else [None]:
            state = resolver.get_status(key, name).value
            if state not in ("FRESH", "MISSING"):
                print(key.to_user_string(), name)
"""
JOB = """
import dagster as dg
from pipelines.definitions import defs
with dg.DagsterInstance.get() as instance:
    config = {"ops": {"fit_again": {"config": {"then": "partition"}}}}
    assert defs.get_job_def("repartition").execute_in_process(run_config=config, instance=instance).success
"""


@pytest.mark.slow
def test_through_dagster_only_what_changed_is_stale_and_what_is_kept_is_not(tmp_path):
    for number in range(2):
        add_shard(tmp_path / "source", number)
    study, root = growing_study(tmp_path / "source", experts=2, **kept_at(1.0)), tmp_path / "store"
    opened(study, root)
    environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}
    inside = environment | {"HARDMOE_STUDY": str(root / "study.toml"), "DAGSTER_HOME": str(root / "dagster")}

    def hardmoe(*arguments):
        command = [sys.executable, "-m", "pipelines.cli.main", arguments[0], "--study", str(root / "study.toml")]
        done = subprocess.run([*command, *arguments[1:]], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def python(code):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=inside)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    hardmoe("run", "--until", "mixture")
    weights = weights_of(opened(study, root))
    add_shard(tmp_path / "source", 2, posts=30)
    made = hardmoe("run", "--until", "mixture")
    assert "expert" not in made
    assert weights_of(opened(study, root)) == weights
    assert python(STALE) == []
    assert "0 made" in hardmoe("run", "--until", "mixture")
    said = json.loads(hardmoe("repartition", "--dry-run", "--json"))
    assert {"moved", "new", "gone", "trained_again", "kept"} <= set(said)
    version = opened(study, root).version("partition")
    python(JOB)
    now = opened(study, root)
    assert now.need("partition").inputs["previous"] == version
    assert {line.split()[0] for line in python(STALE)} == {"shared_decoder", "mixture"}
    assert weights_of(now) == weights
