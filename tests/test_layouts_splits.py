"""Splits that a file's name says, folders of splits and of classes."""

import pytest

from helpers.layouts import RED, described, ingested, parquet, pictures, posts_of, rows_of, table, tar
from moe_core.data.sources.path_splits import split_of_path
from moe_core.data.sources.shards import find_shards
from moe_core.errors import BadSource
from moe_core.settings import Source

# Splits by names


def test_files_of_a_hub_are_splits_by_their_names(tmp_path):
    for name, ids in (("train-00000-of-00002", "ab"), ("train-00001-of-00002", "c"), ("test-00000-of-00001", "d")):
        parquet(tmp_path / "data" / f"{name}.parquet", ids)
    source = Source(format="parquet", uri=str(tmp_path))
    assert {row["id"]: row["split"] for row in rows_of(source)} == dict.fromkeys("abc", "train") | {"d": "test"}
    assert described(source)[-1] == "Split: by the names of files (train 2, test 1)"
    posts, _, _ = ingested(source, tmp_path / "store")
    assert {post["given"] for post in posts.values()} == {"train", "test"}
    off = source.model_copy(update={"split_column": "#none"})
    assert {row["split"] for row in rows_of(off)} == {None}
    assert described(off)[-1] == "Split: by hash (data.test, data.validation)"


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00001.parquet", "train"),
        ("cats-train.arrow", "train"),
        ("validation-0.parquet", "validation"),
        ("dev.parquet", "validation"),
        ("photos_val_003.tar", "validation"),
        ("val2017.tar.gz", "validation"),
        ("annotations/instances_train2017.json", "train"),
        ("valid/_annotations.coco.json", "validation"),
        ("test/part-0.parquet", "test"),
        ("eval.parquet", "test"),
        ("train/test-0.parquet", "test"),
        ("Training/x.csv", "train"),
        ("contest-2020.parquet", None),
        ("trains.parquet", None),
        ("my-test-photos.parquet", None),
        ("latest.parquet", None),
        ("attrain/x.parquet", None),
    ],
)
def test_the_split_that_a_name_says(name, split):
    assert split_of_path(f"/data/test/{name}", "/data/test") == split
    assert split_of_path(f"/data/test/{name}", "/data/test/**/*") == split
    assert split_of_path(f"s3://bucket/test/{name}", "s3://bucket/test") == split
    assert split_of_path(f"/data/test/{name}", f"/data/test/{name}") is None


def test_a_column_of_splits_comes_before_the_name(tmp_path):
    parquet(tmp_path / "test-0.parquet", "ab", split=["train", None])
    assert [row["split"] for row in rows_of(Source(format="parquet", uri=str(tmp_path)))] == ["train", "test"]
    named = Source(format="parquet", uri=str(tmp_path), split_column="split")
    assert [row["split"] for row in rows_of(named)] == ["train", None]
    lines = described(Source(format="parquet", uri=str(tmp_path)))
    assert "nothing is left to train on" in lines[-1]


def test_tars_and_tables_are_splits_by_their_names(tmp_path):
    for name in ("train", "val"):
        tar(tmp_path / "tars" / f"cats-{name}-000000.tar", [(f"{name}.jpg", RED), (f"{name}.txt", b"cat")])
        table(tmp_path / "tables" / name, [("file", "tags"), ("0.png", "cat")], "metadata.csv")
    found = rows_of(Source(format="webdataset", uri=str(tmp_path / "tars")))
    assert {row["id"]: row["split"] for row in found} == {"train": "train", "val": "validation"}
    source = Source(format="folder", uri=str(tmp_path / "tables"))
    assert [(row["id"], row["split"]) for row in rows_of(source)] == [
        ("train/0.png", "train"),
        ("val/0.png", "validation"),
    ]


def test_class_folders_are_tags(tmp_path):
    pictures(tmp_path, "cat/1.jpg", "hot dog/1.JPG", "animal/bird/2.avif", "animal/3.png")
    (tmp_path / "cat" / "notes.txt").write_text("hello")
    pictures(tmp_path, "cat/.hidden.jpg", "__MACOSX/cat/1.jpg")
    kind, found = posts_of(tmp_path)
    assert kind == "imagefolder"
    assert found == {
        "cat/1.jpg": (["cat"], None, None),
        "hot dog/1.JPG": (["hot dog"], None, None),
        "animal/bird/2.avif": (["animal", "bird"], None, None),
        "animal/3.png": (["animal"], None, None),
    }
    source = Source(format="imagefolder", uri=str(tmp_path))
    posts, reasons, counts = ingested(source, tmp_path / "store")
    assert (posts["animal/bird/2.avif"]["tags"], reasons, counts) == (["animal", "bird"], {}, (4, 4, 0))
    lines = described(source)
    assert lines[1:3] == ["Rows: 4", "Columns: id from paths, image from files, tags from names of folders"]


@pytest.mark.parametrize("above", ["", "images/", "a/b/"])
def test_folders_of_splits_hold_class_folders(tmp_path, above):
    pictures(
        tmp_path, *(f"{above}{split}/{name}/1.jpg" for split in ("train", "val", "test") for name in ("cat", "dog"))
    )
    kind, found = posts_of(tmp_path)
    assert kind == "imagefolder"
    assert len(found) == 6
    assert found[f"{above}val/cat/1.jpg"] == (["cat"], "validation", None)
    assert found[f"{above}test/dog/1.jpg"] == (["dog"], "test", None)
    source = Source(format="imagefolder", uri=str(tmp_path))
    assert [shard.key for shard in find_shards(source)] == ["test", "train", "val"]
    before = {shard.key: shard.content_hash for shard in find_shards(source)}
    pictures(tmp_path, f"{above}train/cat/2.jpg")
    after = {shard.key: shard.content_hash for shard in find_shards(source)}
    assert {key for key in before if before[key] != after[key]} == {"train"}
    assert described(source)[-1] == "Split: the source's own"


def test_a_class_called_train_is_no_split(tmp_path):
    pictures(tmp_path, "train/1.jpg", "bus/1.jpg", "car/1.jpg")
    assert posts_of(tmp_path)[1]["train/1.jpg"] == (["train"], None, None)


def test_one_class_folder_and_pictures_without_a_class(tmp_path):
    pictures(tmp_path / "one", "cat/1.jpg")
    assert posts_of(tmp_path / "one")[1] == {"cat/1.jpg": (["cat"], None, None)}
    pictures(tmp_path / "loose", "cat/1.jpg", "2.jpg")
    source = Source(format="imagefolder", uri=str(tmp_path / "loose"))
    _, reasons, counts = ingested(source, tmp_path / "store")
    assert (reasons, counts) == ({"2.jpg": "no_tags"}, (2, 1, 1))
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    with pytest.raises(BadSource, match="no image below"):
        find_shards(Source(format="imagefolder", uri=str(tmp_path / "empty")))


def test_links_out_of_class_folders_are_not_followed(tmp_path):
    pictures(tmp_path, "secret.jpg", "in/cat/1.jpg", "other/2.jpg")
    (tmp_path / "in" / "cat" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "in" / "far").symlink_to(tmp_path / "other")
    found = posts_of(tmp_path / "in")[1]
    assert {name: reason for name, (_, _, reason) in found.items()} == {
        "cat/1.jpg": None,
        "cat/link.jpg": "outside_folder",
    }
