"""`original`: where the source has the image of a post, kept by ingest."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.formats import WRITERS, random_posts, table_of
from moe_core.data.ingest import POSTS, ingest
from moe_core.data.rejects import REJECTS
from moe_core.data.sources.shards import find_shards, read_shard
from moe_core.data.takedowns import Takedowns
from moe_core.errors import BadSource
from moe_core.settings import Data, Source
from moe_core.tables.location import tables_in
from moe_core.tables.reading import read_rows, take_rows
from moe_core.tables.shards import locate, replace_rows

POST = "d000000001"
FILES = {
    **dict.fromkeys(["parquet", "parquet_uri", "parquet_hugging_face", "parquet_captions"], "posts.parquet#1"),
    "parquet_odd_types": "posts.parquet#1",
    "arrow_file": "posts.arrow#1",
    "arrow_stream": "posts.arrow#1",
    "feather": "posts.feather#1",
    "lance": "posts.lance#1",
    **dict.fromkeys(["folder_csv", "folder_tsv", "folder_jsonl"], f"pictures/{POST}.png"),
    "parquet_hugging_face_paths": f"pictures/{POST}.png",
    "webdataset": f"posts.tar#{POST}.png",
    "webdataset_txt": f"posts.tar#{POST}.png",
    "webdataset_gz": f"posts.tar.gz#{POST}.png",
    "img2dataset": "https://x.test/a.png",
    **dict.fromkeys(["yfcc_23", "yfcc_25_bz2", "yfcc_tars"], "http://x.test/d.jpg"),
}


@pytest.fixture(scope="module")
def posts():
    return random_posts(12)


def originals(source):
    """By id, as the source's reader gives them."""
    rows = (row for shard in find_shards(source) for batch in read_shard(source, shard) for row in batch.to_pylist())
    return {row["id"]: row["original"] for row in rows}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_tells_where_an_image_is(name, posts, tmp_path):
    assert originals(WRITERS[name](posts, tmp_path))[POST] == FILES[name]


def test_an_absolute_path_within_the_source_is_relative_to_it(posts, tmp_path):
    source = WRITERS["parquet_hugging_face_paths"](posts, tmp_path)  # whose first path is absolute
    assert originals(source)["d000000000"] == "pictures/d000000000.png"


def test_class_folders_and_coco_tell_paths(posts, tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "1.png").write_bytes(posts[1]["image"])
    assert originals(Source(format="imagefolder", uri=str(tmp_path))) == {"train/cat/1.png": "train/cat/1.png"}
    images = [{"id": 1, "file_name": "1.png", "coco_url": "http://x.test/1"}]
    categories, annotations = [{"id": 5, "name": "cat"}], [{"image_id": 1, "category_id": 5}]
    about = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "train" / "cat" / "instances_x.json").write_text(json.dumps(about))
    source = Source(format="coco", uri=str(tmp_path / "train" / "cat"))
    assert list(originals(source).values()) == ["1.png"]
    assert list(originals(source.model_copy(update={"original_column": "coco_url"})).values()) == ["http://x.test/1"]


def test_a_column_of_urls_counts_before_the_place_in_the_file(posts, tmp_path):
    urls = ["http://x.test/0", None, *["http://x.test/" + "x" * 3000] * 10]
    pq.write_table(table_of(posts).append_column("image_url", pa.array(urls)), tmp_path / "posts.parquet")
    source = Source(format="parquet", uri=str(tmp_path))
    found = originals(source)
    assert (found["d000000000"], found[POST]) == ("http://x.test/0", "posts.parquet#1")
    (shard,) = find_shards(source)
    tables = tables_in(tmp_path / "store")
    done = ingest(tables, shard.key, read_shard(source, shard), Data(min_side=1, max_reject_rate=1), lambda _: None)
    kept = read_rows(tables.posts, done.posts_version, shard.key, ["id", "original"]).to_pylist()
    assert {row["id"]: row["original"] for row in kept}["d000000002"] is None, "what is longer is no address"
    numbers = table_of(posts).append_column("url", pa.array(range(12)))
    pq.write_table(numbers, tmp_path / "posts.parquet")
    assert originals(source)[POST] == "posts.parquet#1"
    with pytest.raises(BadSource, match="column url is no text"):
        originals(source.model_copy(update={"original_column": "url"}))


def test_a_study_from_before_is_not_stale(posts, tmp_path):
    source = WRITERS["parquet"](posts, tmp_path)
    (shard,) = find_shards(source)
    (named,) = find_shards(source.model_copy(update={"original_column": "user"}))
    assert shard.content_hash != named.content_hash
    assert "original_column" not in json.dumps(source.model_dump(exclude_defaults=True))


def test_a_post_that_is_taken_down_leaves_no_original(posts, tmp_path):
    source = WRITERS["parquet"](posts, tmp_path)
    (shard,) = find_shards(source)
    tables, takedowns = tables_in(tmp_path / "store"), Takedowns().adding("id", [POST])
    data = Data(min_side=1, max_reject_rate=1)
    done = ingest(tables, shard.key, read_shard(source, shard), data, lambda _: None, taken_down=takedowns.holds)
    kept = read_rows(tables.posts, done.posts_version, shard.key, ["original"])["original"].to_pylist()
    assert "posts.parquet#1" not in kept
    assert "posts.parquet#2" in kept
    rejects = read_rows(tables.rejects, done.rejects_version, shard.key, REJECTS.names)
    assert "posts.parquet#1" not in str(rejects.to_pylist())


def test_a_table_from_before_keeps_its_rows_beside_new_ones(tmp_path):
    older = pa.schema(list(POSTS)[:-1])
    table = tables_in(tmp_path).posts

    def rows(shard, count, schema, **more):
        columns = {"shard": [shard] * count, "position": list(range(count)), "id": list("abcd")[:count]} | more
        nulls = {field.name: [None] * count for field in schema if field.name not in columns}
        return [pa.record_batch(columns | nulls, schema=schema)]

    replace_rows(table, older, "a", rows("a", 3, older), ["posts.a.1"])
    replace_rows(table, older, "b", rows("b", 2, older), ["posts.b.1"])
    newest = replace_rows(table, POSTS, "b", rows("b", 4, POSTS, original=["x"] * 4), ["posts.b.2"])
    assert table.open().schema == POSTS
    assert read_rows(table, newest, "a", ["id", "original"]).to_pydict() == {"id": [*"abc"], "original": [None] * 3}
    version, runs = locate(table, [("a", "posts.a.1"), ("b", "posts.b.1")])  # the old rows of b come back
    rows_of_both = take_rows(table, version, runs[np.arange(5)], ["shard", "original"]).to_pydict()
    assert rows_of_both == {"shard": [*"aaabb"], "original": [None] * 5}
    assert read_rows(table, "posts.b.2", "b", ["original"])["original"].to_pylist() == ["x"] * 4
