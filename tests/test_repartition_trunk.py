"""When trunk and vocabulary are kept, and when they are trained again."""

import polars as pl
import pytest

from helpers.arrivals import kept_at, shards_of, status
from helpers.growing import add_shard, make, opened
from moe_core.settings import Repartition
from moe_core.stages.trunk import frozen

# ---- trunk and vocabulary


@pytest.mark.parametrize(("growth", "kept"), [(1.5, True), (1.05, False)])
def test_trunk_and_vocabulary_are_kept_until_posts_are_too_many(study_of, growth, kept):
    study, root = study_of(repartition=Repartition(growth=growth))
    trunk = opened(study, root).version("trunk")
    before = opened(study, root).need("splits").metadata["splits"]["train"]
    add_shard(shards_of(root), 3)
    assert opened(study, root).planner.provisional == {("splits", None)}, "nobody knows before the splits"
    make(study, root, "splits")
    now = opened(study, root)
    assert 1.05 < now.need("splits").metadata["splits"]["train"] / before < 1.5
    assert (now.version("trunk") == trunk) is kept
    assert (status(now)["trunk", None][0] == "fresh") is kept


def test_a_new_trunk_is_made_when_it_is_asked_for_once(study_of):
    study, root = study_of(**kept_at(1.0))
    assert not frozen.request_renewal(opened(study, root)), "it is that of all shards"
    add_shard(shards_of(root), 3, posts=30)
    make(study, root)
    old = opened(study, root)
    before = old.need("trunk").metadata["training_posts"]
    assert frozen.request_renewal(opened(study, root))
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
    rows = pl.read_parquet(before.need("partition").path / "assignment")
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
