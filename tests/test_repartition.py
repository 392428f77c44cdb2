"""Shards that arrive, a gate that is fitted again, experts that come and go: what is made again and what is kept."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from helpers.arrivals import kept_at, shards_of, status, weights_of
from helpers.growing import add_shard, growing_study, make, opened
from moe_core.clustering.gate import load_gate
from moe_core.settings import Partition
from moe_core.stages.gate import current_partition, membership
from moe_core.stages.gate.refit import preview
from moe_core.store import pointer
from moe_core.store.layout import Layout

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
    rows = pl.read_parquet(found.path / "assignment")
    same = rows.filter(pl.col("shard") != "s3")
    was = pl.read_parquet(old.path / "assignment")
    assert same.select("id", "expert").equals(was.select("id", "expert"))
    assert rows.filter("new_since_fit")["shard"].unique().to_list() == ["s3"]
    assert (found.metadata["moved"], found.metadata["gone"]) == (0, 0)
    assert found.metadata["new"] == found.metadata["training_posts"] - old.metadata["training_posts"] > 0
    assert make(study, root) == []
    states = status(now)
    assert {state for state, _ in states.values()} == {"fresh", "missing"}
    assert [name for (name, _), (state, _) in states.items() if state == "missing"] == (
        ["published", "evaluation"] + ["embeddings"] * 4 + ["search_index", "report"]
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
    context, scratch = opened(study, root), root.parent / "scratch"
    scratch.mkdir()
    with pytest.raises(ValueError, match=r"e001 was kept, but its weights are gone, and 0 of the \d+ posts"):
        membership.rows_of(context, trained, "expert", {"e001": "another hash"}, scratch)


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
        patch.setattr(current_partition, "pointer", SimpleNamespace(**vars(pointer) | {"write": killed}))
        with pytest.raises(KeyboardInterrupt):
            make(study, root)
    state, version = opened(study, root).planner.state, opened(study, root).version("partition")
    old = current_partition.current_of(state)
    assert old.version != version
    assert opened(study, root).find("partition"), "it is committed"
    make(study, root)
    assert current_partition.current_of(opened(study, root).planner.state).version == version
    one, two = opened(study, root), opened(study, other)
    for name in ("partition", "shared_decoder", "mixture"):
        assert one.need(name).content_hash == two.need(name).content_hash
    for key in one.experts:
        assert (
            one.need("expert", key).files["weights.safetensors"] == two.need("expert", key).files["weights.safetensors"]
        )


def test_a_shard_that_was_away_for_an_hour_trains_nothing_again(study_of):
    """The partition is another, since it follows another; the experts, with the posts that they had, are found."""
    study, root = study_of(**kept_at(0.0))
    add_shard(shards_of(root), 3, posts=30)
    make(study, root)
    experts = weights_of(opened(study, root))
    away = shards_of(root) / "s3.parquet"
    away.rename(away.with_suffix(".away"))
    make(study, root)
    assert weights_of(opened(study, root)) != experts
    away.with_suffix(".away").rename(away)
    assert not [name for name in make(study, root) if name.startswith("expert")]
    assert weights_of(opened(study, root)) == experts


def retrain_share(study, share):
    return study.model_copy(update={"repartition": study.repartition.model_copy(update={"retrain_share": share})})


@pytest.mark.parametrize("threshold_before_the_fit", [True, False])
def test_another_threshold_goes_on_from_the_fit_that_was_asked_for(study_of, threshold_before_the_fit):
    study, root = study_of()
    other = retrain_share(study, 0.06)
    current_partition.request_refit(opened(study, root))
    make(other if threshold_before_the_fit else study, root)
    refit = current_partition.current_of(opened(study, root).planner.state)
    assert refit.settings["how"] == "refit"
    changed = study if threshold_before_the_fit else other
    assert make(changed, root)[:1] == ["partition"]
    now = opened(changed, root).need("partition")
    assert (now.inputs["previous"], now.metadata["how"]) == (refit.version, "assign")
    assert make(changed, root) == []
    back = other if threshold_before_the_fit else study
    assert opened(back, root).spec("partition").inputs["previous"] == now.version


def test_other_settings_of_the_trunk_start_from_scratch_and_the_earlier_ones_find_what_was_kept(study_of):
    study, root = study_of(**kept_at(1.0))
    add_shard(shards_of(root), 3, posts=30)
    make(study, root)
    version = opened(study, root).version("partition")
    other = study.model_copy(update={"trunk": study.trunk.model_copy(update={"lr": 0.1})})
    make(other, root)
    assert "previous" not in opened(other, root).need("partition").inputs
    assert opened(other, root).planner.frozen is None
    assert opened(study, root).version("partition") == version
    assert make(study, root) == []


# ---- fitted again


def test_fitted_again_where_nothing_changed_nothing_moves_and_nothing_is_trained(study_of):
    study, root = study_of()
    ahead = preview(opened(study, root, requests=["refit"]))
    assert opened(study, root).find("partition"), "looking changed nothing"
    old, weights = opened(study, root).need("partition"), weights_of(opened(study, root))
    current_partition.request_refit(opened(study, root))
    assert make(study, root) == ["partition", "mixture"]
    now = opened(study, root)
    said = now.need("partition").metadata
    assert now.need("partition").metadata["how"] == "refit"
    assert (said["moved"], said["trained_again"]) == (ahead["moved"], ahead["trained_again"])
    assert said["moved"] < 0.1 * said["training_posts"]
    assert said["kept"] == ["e000", "e001", "e002"]
    assert weights_of(now) == weights
    assert make(study, root) == [], "the request is spent"
    assert not Layout(root).request("partition").exists()
    assert list(old.metadata["members"]) == list(said["members"])


def test_before_there_is_a_partition_there_is_nothing_to_fit_again(tmp_path):
    context = opened(growing_study(tmp_path), tmp_path / "store")
    with pytest.raises(ValueError, match="`hardmoe run` fits one from scratch"):
        current_partition.request_refit(context)
    with pytest.raises(ValueError, match="`hardmoe run` fits one from scratch"):
        preview(context)


@pytest.mark.parametrize("fine", [0, 8])
def test_experts_come_and_go_by_keys_that_are_never_used_twice(study_of, fine):
    from moe_core.serving.bundle import Bundle

    first = opened(*study_of()).need("mixture")
    bundles, seen = [first.path], dict(opened(*study_of()).need("partition").metadata["members"])
    ever = {key: {content_hash} for key, content_hash in seen.items()}
    for count, keys in (
        (4, ["e000", "e001", "e002", "e003"]),
        (2, None),
        (3, None),
    ):
        study, root = study_of(partition=Partition(experts=count, pca=8, fine=fine), **kept_at(0.1))
        before = current_partition.current_of(opened(study, root).planner.state)
        keys = keys or list(current_partition.keys_for(before, count))
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
        for key, content_hash in seen.items():
            ever.setdefault(key, set()).add(content_hash)
        assert list(Bundle(mixture.path).published) == keys
        bundles.append(mixture.path)
        assert make(study, root) == []
    assert keys[-1] == "e004", "e003 was used"
    for path in bundles:
        assert Bundle(path).gate.experts == len(Bundle(path).published)
    assert list(Bundle(first.path).published) == ["e000", "e001", "e002"]


def test_superseded_leaves_what_the_next_partition_follows_and_what_the_trunk_was_made_from(study_of):
    from moe_core.maintenance.gc import collect

    study, root = study_of()
    first = opened(study, root)
    old, splits = first.version("partition"), first.version("splits")
    add_shard(shards_of(root), 3, posts=30)
    make(study, root, "splits")
    collect(opened(study, root), superseded=True)
    assert (root / "partition" / old).exists()
    make(study, root)
    done = collect(opened(study, root), superseded=True)
    assert f"partition/{old}" in done.removed
    assert (root / "splits" / splits).exists()
    assert make(study, root) == []


# ---- the control


def test_the_random_partition_goes_on_and_new_posts_are_dealt_out_in_proportion(study_of):
    study, root = study_of()
    was = pl.read_parquet(opened(study, root).need("partition").path / "assignment")
    add_shard(shards_of(root), 3, posts=60)
    make(study, root, "partition")
    rows = pl.read_parquet(opened(study, root).need("partition").path / "assignment")
    assert rows.filter(pl.col("shard") != "s3").select("id", "random").equals(was.select("id", "random"))
    new = rows.filter((pl.col("shard") == "s3") & (pl.col("split") == "train"))
    assert new["random"].sort().to_list() == new["expert"].sort().to_list(), "as many to each"
    assert not new["random"].equals(new["expert"])
