import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from moe_core.data.splits import ALONE, SPLITS, Places, across, decide, given_of, leaks, place_of
from moe_core.engine.build import build_all
from moe_core.settings import Data, Source, Study
from moe_core.stages.data.split_check import check
from moe_core.stages.data.stages import SPLITS as STAGE
from moe_core.workspace import open_study

HALF = Data(test=0.3, validation=0.2, router=0.1)


def frame(ids, users=None, given=None):
    none = [None] * len(ids)
    values = {"id": ids, "user": users or none, "given": given or none}
    return pl.DataFrame(values, schema=dict.fromkeys(values, pl.String))


def splits_of(ids, groups=None, users=None, given=None, data=HALF):
    group_N = np.array(range(len(ids)) if groups is None else groups, np.int64)
    return decided(frame(ids, users, given), group_N, data)


def decided(posts, group_N, data):
    group_N = np.where(group_N == ALONE, len(posts), group_N)
    return np.array(SPLITS)[decide(group_N, given_of(posts), Places(data).of(posts), data)].tolist()


def named(split, data=HALF):
    """An id whose place lies in a split."""
    edges = np.cumsum([0, data.test, data.validation, data.router])
    low, high = {"test": edges[:2], "validation": edges[1:3], "router": edges[2:4], "train": (edges[3], 1)}[split]
    return next(str(n) for n in range(1000) if low <= place_of(str(n)) < high)


def test_no_posts():
    assert splits_of([]) == []


def test_the_hash_decides_where_nothing_is_given():
    ids = [named(split) for split in ("train", "validation", "test", "router")]
    assert splits_of(ids) == ["train", "validation", "test", "router"]


def test_shares_are_those_of_the_settings():
    found = pl.Series(splits_of([str(n) for n in range(20_000)])).value_counts(normalize=True)
    shares = dict(found.iter_rows())
    assert shares["test"] == pytest.approx(0.3, abs=0.01)
    assert shares["validation"] == pytest.approx(0.2, abs=0.01)
    assert shares["router"] == pytest.approx(0.1, abs=0.01)


def test_posts_of_a_user_are_not_parted_but_those_of_nobody_are():
    ids = [str(n) for n in range(50)]
    assert len(set(splits_of(ids, users=["ann"] * 50))) == 1
    assert len(set(splits_of(ids, users=[""] * 50))) == 4
    assert len(set(splits_of(ids, users=["ann"] * 50, data=HALF.model_copy(update={"split_by": "id"})))) == 4


def test_a_group_goes_with_its_first_post():
    train, test = named("train"), named("test")
    assert splits_of([train, test, test + "b"], groups=[0, 0, 0]) == ["train"] * 3
    assert splits_of(["a", "b"], groups=[0, 0], users=[test, train]) == ["test"] * 2


def test_a_given_split_stays_but_for_what_is_taken_out_of_train():
    ids = [str(n) for n in range(200)]
    assert set(splits_of(ids, given=["test"] * 200)) == {"test"}
    assert set(splits_of(ids, given=["validation"] * 200)) == {"validation"}
    assert set(splits_of(ids, given=["test"] + ["train"] * 199)[1:]) == {"train", "validation", "router"}


def test_a_source_that_gives_nothing_to_test_on_has_it_taken_out_of_train():
    ids = [named(split) for split in ("train", "validation", "test", "router")]
    assert splits_of(ids, given=["train"] * 4) == ["train", "validation", "test", "router"]
    assert splits_of(ids, given=["train"] * 3 + ["validation"]) == ["train", "validation", "test", "validation"]
    assert splits_of([*ids, named("test")], given=["train"] * 4 + [None])[2] != "test"


def test_what_is_taken_out_of_train_are_whole_groups():
    ids = [str(n) for n in range(200)]
    found = splits_of([*ids, "t"], groups=[*(n - n % 2 for n in range(200)), 200], given=["train"] * 200 + ["test"])
    assert found[:200:2] == found[1:200:2]
    assert set(found[:200]) == {"train", "validation", "router"}


def test_a_post_without_a_given_split_goes_with_its_copy():
    assert splits_of([named("train"), "b"], groups=[0, 0], given=[None, "test"]) == ["test"] * 2


@pytest.mark.parametrize(
    ("rule", "splits"),
    [("report", ["train", "test", "dropped"]), ("remove", ["dropped", "test", "dropped"])],
)
def test_leaks_of_given_splits(rule, splits):
    data = HALF.model_copy(update={"leaks": rule})
    assert splits_of(["a", "b", "c"], groups=[0, 0, 0], given=["train", "test", None], data=data) == splits


def test_leaks_are_listed_with_their_posts():
    posts = frame(["a", "b", "c", "d"], given=["train", "test", "train", "train"]).with_columns(
        shard=pl.lit("s"),
        position=pl.Series(range(4)),
        group=pl.Series([0, 0, 0, 3]),
        split=pl.Series(["train", "test", "train", "train"]),
    )
    found = leaks(posts, np.array([7, 7, 8, 9]))
    assert found["id"].to_list() == ["a", "b", "c"]
    assert found["same"].to_list() == [True, True, False]


def test_of_equal_ids_the_first_stays():
    assert splits_of([named("train")] * 2, groups=[0, ALONE]) == ["train", "dropped"]


def test_a_picture_in_two_splits_is_counted_as_ours_or_the_sources():
    split = pl.Series(["train", "test", "train", "test", "train", "dropped"])
    given = pl.Series(["train", "test", None, None, None, None], dtype=pl.String)
    assert across(split, given, np.array([0, 0, 1, 1, 2, 2])) == (1, 1)


def test_shares_that_leave_nothing_to_train_on():
    with pytest.raises(ValueError, match=r"test 0.5, validation 0.3 and router 0.2 leave nothing to train on"):
        Data(test=0.5, validation=0.3, router=0.2)


def png(number):
    """A picture of its own for each number."""
    blocks = np.random.default_rng(number).integers(20, 200, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(blocks.repeat(2, 0).repeat(2, 1)).save(file, "PNG")
    return file.getvalue()


def shard(folder, name, numbers, ids=None, **columns):
    """A Parquet file of one post a number, which is its picture."""
    ids = ids or [f"{name}{place}" for place in range(len(numbers))]
    table = {"id": ids, "image": [png(n) for n in numbers], "tags": [["cat"]] * len(ids)} | columns
    pl.DataFrame(table).write_parquet(folder / f"{name}.parquet")


def made(folder, **data):
    settings = Data(**({"image_size": 16, "test": 0.3, "validation": 0.2} | data))
    study = Study(source=Source(format="parquet", uri=f"{folder}/*.parquet"), data=settings)
    context = open_study(study, folder / "store")
    build_all(context, ("posts", "splits"))
    artifact = context.need("splits")
    return context, pl.read_parquet(artifact.file("splits.parquet")), artifact.metadata


def test_copies_in_other_shards_lie_in_one_split(tmp_path):
    shard(tmp_path, "a", range(60))
    shard(tmp_path, "b", range(30, 90))
    context, posts, said = made(tmp_path)
    assert posts["shard"].to_list() == ["a"] * 60 + ["b"] * 60
    assert posts["group"].to_list() == [*range(60), *range(30, 60), *range(90, 120)]
    assert posts.group_by("group").agg(pl.col("split").n_unique())["split"].unique().to_list() == [1]
    assert posts["split"].n_unique() == 3
    assert (said["posts"], said["pictures"], said["groups"], said["largest_group"]) == (120, 90, 30, 2)
    assert said["near_duplicates"] == said["equal_signatures"] == 30
    assert check(context).good
    assert check(context).searched > 20


def test_one_post(tmp_path):
    shard(tmp_path, "a", [0])
    context, posts, said = made(tmp_path)
    assert posts["group"].to_list() == [0]
    assert said["groups"] == 0
    assert check(context).good


def test_all_posts_with_one_picture(tmp_path):
    shard(tmp_path, "a", [0] * 50)
    context, posts, said = made(tmp_path)
    assert set(posts["group"]) == {0}
    assert posts["split"].n_unique() == 1
    assert (said["largest_group"], said["pictures"]) == (50, 1)
    assert check(context).good


def test_an_id_in_two_shards_is_used_once_whichever_is_ingested_first(tmp_path):
    shard(tmp_path, "b", [0, 1], ids=["x", "y"])
    _, before, _ = made(tmp_path)
    shard(tmp_path, "a", [2, 3], ids=["x", "z"])
    context, posts, said = made(tmp_path)
    assert before.filter(pl.col("split") == "dropped").is_empty()
    assert posts.filter(pl.col("split") == "dropped").select("shard", "id").rows() == [("b", "x")]
    assert posts["group"].to_list() == [0, 1, ALONE, 3]
    assert said["duplicate_ids"] == said["splits"]["dropped"] == 1
    assert check(context).good


def test_a_new_shard_moves_no_old_post(tmp_path):
    shard(tmp_path, "a", range(100), user=[f"u{n % 30}" for n in range(100)])
    _, before, _ = made(tmp_path)
    shard(tmp_path, "b", range(50, 150), user=[f"u{n % 40}" for n in range(100)])
    _, after, said = made(tmp_path)
    assert after[:100]["split"].to_list() == before["split"].to_list()
    assert said["users_apart"] > 0  # u30 to u39 repeat posts of others, which lie where those lie


def test_users_lie_in_one_split_where_nobody_repeats_another(tmp_path):
    shard(tmp_path, "a", range(100), user=[f"u{n % 30}" for n in range(100)])
    assert made(tmp_path)[2]["users_apart"] == 0


def test_without_groups_copies_go_their_own_ways(tmp_path):
    shard(tmp_path, "a", [0] * 50)
    context, posts, said = made(tmp_path, near_duplicates="off")
    assert posts["split"].n_unique() == 3
    assert said["groups"] == 0
    assert check(context).good


def test_a_split_of_another_name_is_a_reject(tmp_path):
    shard(tmp_path, "a", [0, 1], split=["train", "holdout"])
    context, posts, _ = made(tmp_path)
    assert len(posts) == 1
    assert context.need("posts", "a").metadata["reasons"] == {"bad_split": 1}


@pytest.mark.parametrize(("rule", "given", "removed"), [("report", 1, 0), ("remove", 0, 1)])
def test_leaks_of_the_source_are_reported_or_removed(tmp_path, rule, given, removed):
    shard(tmp_path, "a", [0, 1, 0, 2], split=["train", "train", "test", "test"])
    context, posts, said = made(tmp_path, leaks=rule, validation=0)
    assert posts["split"].to_list() == ["dropped" if removed else "train", "train", "test", "test"]
    assert (said["leaking_groups"], said["leaking_posts"], said["leaks_removed"]) == (1, 2, removed)
    found = check(context)
    assert found.good
    assert found.given == given


def test_the_check_finds_a_copy_that_was_put_elsewhere(tmp_path):
    shard(tmp_path, "a", range(40))
    shard(tmp_path, "b", range(40))
    context, posts, _ = made(tmp_path)
    at = posts["split"].to_list().index("test")
    tampered = posts.with_columns(
        pl.when((pl.col("position") == at) & (pl.col("shard") == "b"))
        .then(pl.lit("train"))
        .otherwise("split")
        .alias("split")
    )
    assert violations(context, tampered) == {"equal_signatures": 1, "near_duplicates": 1}


def test_the_check_finds_an_id_used_twice(tmp_path):
    shard(tmp_path, "a", [0])
    shard(tmp_path, "b", [1], ids=["a0"])
    context, posts, _ = made(tmp_path)
    assert violations(context, posts.with_columns(split=pl.lit("train"))) == {"ids": 1}


def test_the_check_finds_a_table_of_other_posts(tmp_path):
    shard(tmp_path, "a", range(3))
    context, posts, _ = made(tmp_path)
    assert violations(context, posts[:2]) == {"rows": 1}


def test_the_check_finds_a_signature_that_is_not_of_its_picture(tmp_path, monkeypatch):
    import moe_core.data.ingest as ingest

    other = ingest.signature(np.zeros((1, 16, 16, 3), np.uint8) + np.arange(16, dtype=np.uint8)[:, None] * 9)

    monkeypatch.setattr(ingest, "signature", lambda pixels: np.repeat(other, len(pixels), 0))
    shard(tmp_path, "a", range(3), split=["test"] * 3)
    context, posts, _ = made(tmp_path)
    assert violations(context, posts) == {"stale_signatures": 3}


def violations(context, posts):
    """What the check says of other splits than were written."""
    import moe_core.stages.reading as reading

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "split_batches", lambda _: iter([posts]))
        return {kind: count for kind, count in check(context).violations.items() if count}


def test_settings_of_splits_leave_the_posts_alone(tmp_path):
    shard(tmp_path, "a", range(3))
    one, other = (made(tmp_path, router=router)[0] for router in (0.0, 0.4))
    assert one.version("posts", "a") == other.version("posts", "a")
    assert one.version("splits") != other.version("splits")
    assert STAGE.reads == ("posts",)
    assert Path(one.need("splits").path).name == one.version("splits")
