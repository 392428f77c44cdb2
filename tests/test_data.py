import io
import json

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from PIL import Image

from moe_core.data.ingest import POSTS, ingest
from moe_core.data.loading import Labels, Place, open_images, open_posts, read_labels
from moe_core.data.rejects import REJECTS
from moe_core.data.sources.guessing import guess_format
from moe_core.data.sources.preview import preview
from moe_core.data.sources.scan import ContentHashes, Shard
from moe_core.data.sources.shards import find_shards, read_shard
from moe_core.data.vocabulary import Vocabulary, choose_from
from moe_core.errors import BadSource, CorruptArtifact
from moe_core.settings import Data, Source, Training
from moe_core.tables.location import tables_in
from moe_core.tables.reading import read_rows
from moe_core.training.order import moves_of


def chosen(posts, data):
    return choose_from(lambda: [posts], data)


def png(color="red"):
    file = io.BytesIO()
    image = Image.new("RGB", (10, 10), color)
    image.putpixel((0, 0), (0, 0, 0))  # pictures of one color are rejected
    image.save(file, "PNG")
    return file.getvalue()


def png_of(image_HWC):
    file = io.BytesIO()
    Image.fromarray(image_HWC).save(file, "PNG")
    return file.getvalue()


def parquet(path, rows, **columns):
    table = {"id": [f"p{n}" for n in range(rows)], "image": [png()] * rows, "tags": [["Cat"]] * rows} | columns
    pl.DataFrame({name: values for name, values in table.items() if values is not None}).write_parquet(path)
    return Source(format="parquet", uri=str(path))


def everything(source, root, data=None):
    shards = find_shards(source)
    return [
        ingest(tables_in(root), s.key, read_shard(source, s), data or Data(image_size=8), lambda _: None)
        for s in shards
    ]


def test_accepted_and_rejected_are_all_that_was_read(tmp_path):
    images = [png(), b"", png()[:-32], b"nonsense", png(), png()]
    tags = [["cat"], ["cat"], ["cat"], ["cat"], ["!!", "a:b=c"], ["dog", "#Dog"]]
    ids = ["a", "b", "c", "d", "e", "a"]
    source = parquet(tmp_path / "x.parquet", 6, image=images, tags=tags, id=ids)
    (done,) = everything(source, tmp_path, Data(image_size=8, max_reject_rate=1))
    assert (done.count.read, done.count.accepted, done.count.rejected) == (6, 1, 5)
    assert dict(done.count.reasons) == {
        "empty": 1,
        "truncated": 1,
        "not_an_image": 1,
        "no_tags": 1,
        "duplicate_id": 1,
    }
    rejects = read_rows(tables_in(tmp_path).rejects, done.rejects_version, "x", ["position", "reason"])
    assert rejects.to_pylist()[0] == {"position": 1, "reason": "empty"}


def test_too_many_rejects_stop_the_ingest_and_leave_nothing(tmp_path):
    source = parquet(tmp_path / "x.parquet", 2, tags=[[], None])
    with pytest.raises(BadSource, match=r"2 of 2 posts rejected \(no_tags 2; for example row 0: no_tags"):
        everything(source, tmp_path)
    import lance

    assert lance.dataset(str(tmp_path / "posts.lance")).count_rows() == 0


def test_a_shard_ingested_again_replaces_its_rows_and_the_old_version_stays(tmp_path):
    source = parquet(tmp_path / "x.parquet", 3)
    (first,) = everything(source, tmp_path)
    parquet(tmp_path / "x.parquet", 2, tags=[["dog"], ["cow"]])
    (second,) = everything(source, tmp_path)
    tags = [
        read_rows(tables_in(tmp_path).posts, done.posts_version, "x", ["tags"])["tags"].to_pylist()
        for done in (first, second)
    ]
    assert tags == [[["cat"]] * 3, [["dog"], ["cow"]]]


def test_posts_come_back_in_their_order_whatever_was_ingested_first(tmp_path):
    for key in ("b", "a"):
        shard = Shard(key, str(tmp_path / f"{key}.parquet"), "")
        source = parquet(shard.path, 2, tags=[[f"{key}0"], [f"{key}1"]])
        done = ingest(tables_in(tmp_path), key, read_shard(source, shard), Data(image_size=8), lambda _: None)
    places = [Place("a", done.posts_version), Place("b", done.posts_version)]
    labels = read_labels(tables_in(tmp_path).posts, places, Vocabulary(["a0", "a1", "b0", "b1"], {}), tmp_path)
    assert labels.tags_T.tolist() == [0, 1, 2, 3]


def test_posts_are_loaded_with_the_vocabularys_ids(tmp_path):
    source = parquet(tmp_path / "x.parquet", 3, tags=[["Cat", "cow"], ["kitty"], ["dog", "cat"]], image=[png()] * 3)
    (done,) = everything(source, tmp_path)
    words = Vocabulary(["dog", "cat"], {"kitty": "cat"})
    places = [Place("x", done.posts_version)]
    table = tables_in(tmp_path).posts
    posts = open_posts(table, places, read_labels(table, places, words, tmp_path), 8)
    assert posts.tags_T.tolist() == [1, 1, 0, 1]
    assert posts.starts_N1.tolist() == [0, 1, 2, 4]
    images = posts.images.read(np.arange(3))
    assert images.shape == (3, 8, 8, 3)
    assert images[0, 4, 4].tolist() == [255, 0, 0]


def numbered(path, count, first=0):
    """Posts whose red is their number."""
    pictures = [png(color=(first + n, 99, 0)) for n in range(count)]
    return parquet(path, count, id=[f"p{first + n:03d}" for n in range(count)], image=pictures)


def test_stored_images_come_in_the_order_asked_for_from_shards_of_several_versions(tmp_path):
    places = []
    for key, first in (("b", 100), ("a", 0)):
        source = numbered(tmp_path / f"{key}.parquet", 20, first)
        shard = Shard(key, str(tmp_path / f"{key}.parquet"), "")
        done = ingest(tables_in(tmp_path), key, read_shard(source, shard), Data(image_size=8), lambda _: None)
        places.append(Place(key, done.posts_version))
    images = open_images(tables_in(tmp_path).posts, places, 8)
    rows = np.array([39, 0, 20, 19, 0])
    assert images.read(rows)[:, 4, 4, 0].tolist() == [19, 100, 0, 119, 100]
    assert images.subset(np.array([20, 5])).read(np.array([1, 0]))[:, 4, 4, 0].tolist() == [105, 0]


def test_hashtags_for_other_posts_are_refused(tmp_path):
    (done,) = everything(numbered(tmp_path / "x.parquet", 3), tmp_path)
    with pytest.raises(CorruptArtifact, match=r"hashtags of 1 posts, .* holds 3"):
        open_posts(
            tables_in(tmp_path).posts,
            [Place("x", done.posts_version)],
            Labels(np.array([0]), np.array([0, 1])),
            8,
        )


@pytest.mark.parametrize("store", ["raw", "jpeg", "png", "webp"])
def test_pictures_are_loaded_however_they_are_stored(tmp_path, store):
    source = parquet(tmp_path / "x.parquet", 3, image=[png("red"), png("lime"), png("blue")])
    (done,) = everything(source, tmp_path, Data(image_size=8, store=store))
    images = open_images(tables_in(tmp_path).posts, [Place("x", done.posts_version)], 8).read(np.arange(3))
    for n, color in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)]):
        assert images[n, 6, 6].tolist() == pytest.approx(color, abs=20)


@pytest.mark.parametrize("side", [8, 13])
@pytest.mark.parametrize("store", ["raw", "jpeg", "png", "webp"])
def test_stored_pictures_are_moved_as_pictures_in_memory(tmp_path, store, side):
    noise = np.random.default_rng(0).integers(0, 256, (40, 20, 20, 3), np.uint8)
    source = parquet(tmp_path / "x.parquet", 40, image=[png_of(image) for image in noise])
    (done,) = everything(source, tmp_path, Data(image_size=side, store=store))
    images, rows = (
        open_images(tables_in(tmp_path).posts, [Place("x", done.posts_version)], side),
        np.arange(40)[::-1],
    )
    for crop in (0, 3, 2 * side):  # the last leaves nothing of some
        moves = moves_of((40,), Training(crop=crop), 0)
        wanted = moves.of(images.read(rows))
        assert np.array_equal(images.read(rows, moves), wanted)
        fetched, some = images.fetched(rows), np.array([7, 0, 39])
        assert np.array_equal(fetched.read(some, moves[some]), wanted[some])
        assert np.array_equal(fetched.subset(some).read(np.arange(3), moves[some]), wanted[some])


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BadSource, match="no Parquet file at"):
        find_shards(Source(format="parquet", uri=str(tmp_path / "none.parquet")))
    with pytest.raises(BadSource, match="nothing at"):
        guess_format(str(tmp_path / "none"))


def test_a_column_that_is_not_there(tmp_path):
    source = parquet(tmp_path / "x.parquet", 1, tags=None)
    with pytest.raises(BadSource, match=r"has no column tags or raw_tags \(source.tags_column\): it has id, image"):
        find_shards(source)


def test_tags_that_are_no_list(tmp_path):
    source = parquet(tmp_path / "x.parquet", 1, tags=[1.5])
    with pytest.raises(BadSource, match="wanted a list of strings"):
        find_shards(source)


def test_a_file_that_is_no_parquet(tmp_path):
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(BadSource, match="is not a readable Parquet file"):
        find_shards(Source(format="parquet", uri=str(tmp_path)))


def test_a_source_without_posts(tmp_path):
    source = parquet(tmp_path / "x.parquet", 1)
    pq.write_table(pq.read_table(source.uri)[:0], source.uri)
    with pytest.raises(BadSource, match="holds no post"):
        preview(source, find_shards(source))


def test_raw_tags_serve_where_there_are_no_tags_or_when_asked_for(tmp_path):
    source = parquet(tmp_path / "x.parquet", 1, raw_tags=[["a", "b"]])
    assert next(read_shard(source, find_shards(source)[0]))["tags"].to_pylist() == [["Cat"]]
    asked = source.model_copy(update={"tags_column": "raw_tags"})
    assert next(read_shard(asked, find_shards(asked)[0]))["tags"].to_pylist() == [["a", "b"]]


def test_a_shards_content_hash_is_of_its_content(tmp_path):
    source = parquet(tmp_path / "x.parquet", 1)
    hashes = ContentHashes()
    (before,) = find_shards(source, hashes)
    (again,) = find_shards(source, hashes)
    parquet(tmp_path / "x.parquet", 2)
    (after,) = find_shards(source, hashes)
    assert before == again
    assert before.content_hash != after.content_hash


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_folder_of_images_with_a_table(tmp_path, kind):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(png())
    rows = [{"file": "sub/a.png", "tags": "cat, New York"}, {"file": "gone.png", "tags": "dog"}]
    rows.append({"file": "../outside.png", "tags": "dog"})
    if kind == "csv":
        pl.DataFrame(rows).write_csv(tmp_path / "t.csv")
    else:
        (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    source = Source(format="folder", uri=str(tmp_path))
    (done,) = everything(source, tmp_path / "store", Data(image_size=8, max_reject_rate=1))
    assert dict(done.count.reasons) == {"no_image_file": 1, "outside_folder": 1}
    stored = read_rows(tables_in(tmp_path / "store").posts, done.posts_version, "t", ["id", "tags"]).to_pylist()
    assert stored == [{"id": "sub/a.png", "tags": ["cat", "newyork"]}]


def test_a_folder_without_a_table(tmp_path):
    with pytest.raises(BadSource, match="has 0 tables"):
        find_shards(Source(format="folder", uri=str(tmp_path)))


def frame(tags, users=None):
    return pl.DataFrame({"tags": tags, "user": users or [None] * len(tags)}, schema_overrides={"user": pl.String})


def test_a_tag_needs_posts_and_users():
    tags = [["cat", "spam"], ["cat", "spam"], ["cat", "dog"]]
    kept, dropped, _ = chosen(frame(tags, ["ann", "ann", "bob"]), Data(min_posts_per_tag=2, min_users_per_tag=2))
    assert kept["tag"].to_list() == ["cat"]
    assert dict(dropped.select("tag", "reason").iter_rows()) == {"spam": "too_few_users", "dog": "too_few_posts"}


def test_stop_tags_synonyms_and_the_limit(tmp_path):
    (tmp_path / "stop").write_text("#Love\n")
    (tmp_path / "same").write_text("kitty = cat\n")
    tags = [["cat", "love"], ["kitty"], ["dog"]]
    data = Data(min_posts_per_tag=1, max_tags=1, stop_tags=str(tmp_path / "stop"), synonyms=str(tmp_path / "same"))
    kept, dropped, synonyms = chosen(frame(tags), data)
    assert list(kept.select("tag", "posts").iter_rows()) == [("cat", 2)]
    assert dict(dropped.select("tag", "reason").iter_rows()) == {"love": "stop_list", "dog": "beyond_max_tags"}
    assert synonyms == {"kitty": "cat"}


def test_a_vocabulary_of_nothing_is_an_error():
    with pytest.raises(
        ValueError, match=r"no hashtag is left: 1 tags on 1 training posts.*lower data.min_posts_per_tag"
    ):
        chosen(frame([["cat"]]), Data(min_posts_per_tag=2))


def test_schemas_name_their_shard_and_position():
    assert POSTS.names[:2] == REJECTS.names[:2] == ["shard", "position"]


def test_names_of_given_splits_are_ours_whatever_their_case_and_spaces(tmp_path):
    written = ["train", " Val ", "valid", "ROUTER", None, " "]
    (done,) = everything(parquet(tmp_path / "x.parquet", 6, split=written), tmp_path)
    rows = read_rows(tables_in(tmp_path).posts, done.posts_version, "x", ["given"])
    assert rows["given"].to_pylist() == ["train", "validation", "validation", "router", None, None]
    assert dict(done.count.splits) == {"train": 1, "validation": 2, "router": 1, "none": 2}
