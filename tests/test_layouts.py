"""Layouts that people bring: how tags, pictures and splits of one post are spread over rows, members and files."""

import csv
import io
import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from helpers.formats import tar_of, yfcc_line
from moe_core.data.ingest import ingest
from moe_core.data.sources import find_shards, guess_format, read_shard
from moe_core.data.sources.path_splits import split_of_path
from moe_core.data.sources.preview import preview
from moe_core.errors import BadSource
from moe_core.settings import Data, Source
from moe_core.tables import read_rows

ANYTHING = Data(image_size=16, max_reject_rate=1)


def picture(seed=0, kind="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def rows_of(source):
    return [row for s in find_shards(source) for batch in read_shard(source, s) for row in batch.to_pylist()]


def tags_of(source):
    return [(row["id"], row["tags"]) for row in rows_of(source)]


def ingested(source, root):
    """Posts by id, reasons by id, and (read, accepted, rejected)."""
    posts, reasons, counts = {}, {}, np.zeros(3, int)
    for shard in find_shards(source):
        done = ingest(root, shard.key, read_shard(source, shard, root / "cache"), ANYTHING, lambda _: None)
        kept = read_rows(root / "posts.lance", done.posts_version, shard.key, ["id", "tags", "given"])
        posts |= {row["id"]: row for row in kept.to_pylist()}
        rejects = read_rows(root / "rejects.lance", done.rejects_version, shard.key, ["id", "reason", "detail"])
        reasons |= {row["id"]: row["reason"] for row in rejects.to_pylist()}
        counts += [done.count.read, done.count.accepted, done.count.rejected]
    return posts, reasons, tuple(counts.tolist())


def described(source):
    return preview(source, find_shards(source)).lines


def table(folder, rows, name="t.csv"):
    """A table of text beside pictures 0.png, 1.png ..."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t" if name.endswith(".tsv") else ",").writerows(rows)
    for n in range(4):
        (folder / f"{n}.png").write_bytes(picture(n))
    return Source(format="folder", uri=str(folder))


# Tags in one text


@pytest.mark.parametrize("mark", [";", " ; ", "|", ",", "、", "#"])
def test_tags_of_twenty_posts_or_more_are_counted_right(tmp_path, mark):
    words = ["dresden", "new york", "elbe", "altstadt", "saxony", "rare"]
    rows = [["id", "file", "tags"]]
    for n in range(40):
        tags = [word for k, word in enumerate(words) if n % (k + 1) == 0]  # 40, 20, 14, 10, 8 and 7 posts
        rows.append([str(n), f"{n % 4}.png", mark + mark.join(tags) + mark])
    posts, reasons, counts = ingested(table(tmp_path / "in", rows), tmp_path / "store")
    assert (reasons, counts) == ({}, (40, 40, 0))
    found = Counter(tag for post in posts.values() for tag in post["tags"])
    assert found == {"dresden": 40, "newyork": 20, "elbe": 14, "altstadt": 10, "saxony": 8, "rare": 7}
    assert sum(n >= 20 for n in found.values()) == 2


def test_tags_in_text_are_separated_alike_in_every_format(tmp_path):
    texts = ["lake;boat;summer", "['lake', 'boat']", "#lake#boat"]
    rows = [["file", "tags"], *([f"{n}.png", text] for n, text in enumerate(texts))]
    wanted = [["lake", "boat", "summer"], ["lake", "boat"], ["#lake", "#boat"]]
    assert [tags for _, tags in tags_of(table(tmp_path / "csv", rows))] == wanted
    columns = {"id": [*"abc"], "image": [picture()] * 3, "tags": texts}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert [tags for _, tags in tags_of(Source(format="parquet", uri=str(tmp_path / "x.parquet")))] == wanted
    lines = [json.dumps({"file": f"{n}.png", "tags": text}) for n, text in enumerate(texts)]
    (tmp_path / "csv" / "t.csv").unlink()
    (tmp_path / "csv" / "t.jsonl").write_text("\n".join(lines))
    assert [tags for _, tags in tags_of(Source(format="folder", uri=str(tmp_path / "csv")))] == wanted


def test_tags_that_are_an_object_are_one_bad_row(tmp_path):
    columns = {"id": [*"ab"], "image": [picture()] * 2, "tags": ['{"cat": 0.9}', "cat"]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    found = rows_of(Source(format="parquet", uri=str(tmp_path)))
    assert [(row["reason"], row["detail"]) for row in found] == [
        ("bad_row", "tags holds an object, wanted text"),
        (None, None),
    ]


def test_init_shows_five_posts_with_their_tags_and_warns_of_separators_within_one(tmp_path):
    tags = [["lake;boat", "cat"], ["a|b"], ["#x#y"], ["plain"], ["new york"], ["C#"]]
    columns = {"id": [*"abcdef"], "image": [picture(n) for n in range(6)], "tags": tags}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    lines = described(Source(format="parquet", uri=str(tmp_path)))
    shown = [line for line in lines if line.startswith("Tags as read")]
    assert shown[0] == 'Tags as read, for example of a: "lake;boat" "cat"'
    assert len(shown) == 5
    (warning,) = [line for line in lines if line.startswith("Warning: ")]
    assert warning.startswith('Warning: 3 of 6 posts have tags that hold separators, such as "lake;boat"')


# A row for each tag

LABELS = [("0.png", "cat"), ("1.png", "cat"), ("0.png", "pet"), ("2.png", "dog"), ("2.png", "pet"), ("3.png", "dog")]
JOINED = [("0.png", ["cat", "pet"]), ("1.png", ["cat"]), ("2.png", ["dog", "pet"]), ("3.png", ["dog"])]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "arrow", "lance"])
@pytest.mark.parametrize("order", [1, -1])
def test_rows_of_one_picture_are_one_post(tmp_path, kind, order):
    labels = sorted(LABELS, key=lambda row: row[1])[::order]  # by label: the rows of a picture lie apart
    table(tmp_path, [])
    (tmp_path / "t.csv").unlink()
    columns = pa.table({"file": [name for name, _ in labels], "label": [label for _, label in labels]})
    if kind in ("csv", "tsv"):
        table(tmp_path, [("file", "label"), *labels], f"t.{kind}")
    elif kind == "jsonl":
        lines = [json.dumps({"file": name, "label": label}) for name, label in labels]
        (tmp_path / "t.jsonl").write_text("\n".join(lines))
    elif kind == "parquet":
        pq.write_table(columns, tmp_path / "t.parquet", row_group_size=2)
    elif kind == "arrow":
        with pa.ipc.new_file(tmp_path / "t.arrow", columns.schema) as file:
            file.write_table(columns, max_chunksize=2)
    else:
        import lance

        lance.write_dataset(columns, str(tmp_path / "t.lance"))
    source = Source(format=guess_format(str(tmp_path)), uri=str(tmp_path))
    assert sorted((name, sorted(tags)) for name, tags in tags_of(source)) == JOINED
    assert {row["image"] for row in rows_of(source)} == {picture(n) for n in range(4)}


def test_rows_of_one_id_and_picture_are_joined_and_others_are_not(tmp_path):
    rows = [("id", "file", "label"), ("a", "0.png", "x"), ("a", "0.png", "y"), ("a", "1.png", "z"), ("b", "0.png", "x")]
    source = table(tmp_path / "in", rows)
    assert tags_of(source) == [("a", ["x", "y"]), ("a", ["z"]), ("b", ["x"])]
    posts, _, counts = ingested(source, tmp_path / "store")
    assert counts == (3, 2, 1)
    assert posts["a"]["tags"] == ["x", "y"]
    numbered = source.model_copy(update={"id_column": "#row"})
    assert [tags for _, tags in tags_of(numbered)] == [["x"], ["y"], ["z"], ["x"]]
    by_name = source.model_copy(update={"id_column": "file"})
    assert tags_of(by_name) == [("0.png", ["x", "y", "x"]), ("1.png", ["z"])]


def test_captions_of_one_picture_are_joined(tmp_path):
    rows = [("file", "text"), ("0.png", "a #cat"), ("1.png", "#dog"), ("0.png", "the #tail of it"), ("0.png", "")]
    source = table(tmp_path, rows).model_copy(update={"caption_column": "text"})
    assert tags_of(source) == [("0.png", ["cat", "tail"]), ("1.png", ["dog"])]


def test_a_bad_row_takes_no_tags_of_its_picture_with_it(tmp_path):
    table(tmp_path, [])
    (tmp_path / "t.csv").unlink()
    lines = [{"file": "0.png", "tags": {"a": 1}}, {"file": "0.png", "tags": ["x"]}, {"file": "0.png", "tags": ["y"]}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = rows_of(Source(format="folder", uri=str(tmp_path)))
    assert [(row["reason"], row["tags"]) for row in found] == [("bad_row", None), (None, ["x", "y"])]


def test_many_scattered_rows_are_joined(tmp_path):
    rows = [("file", "label"), *((f"{n % 4}.png", f"t{n}") for n in range(3000))]
    found = tags_of(table(tmp_path, rows))
    assert found == [(f"{n}.png", [f"t{k}" for k in range(n, 3000, 4)]) for n in range(4)]


def test_init_says_that_rows_are_joined_and_that_ids_or_pictures_come_again(tmp_path):
    source = table(tmp_path / "labels", [("file", "label"), *LABELS])
    lines, seen = preview(source, find_shards(source))
    assert seen.posts == 4
    assert "Rows that agree on id and image are one post with all their tags: 6 rows are 4 posts" in lines
    assert not [line for line in lines if line.startswith("Warning")]
    rows = [("id", "file", "label"), ("a", "0.png", "x"), ("a", "1.png", "y"), ("b", "0.png", "z")]
    warnings = [line for line in described(table(tmp_path / "ids", rows)) if line.startswith("Warning")]
    assert warnings[0].startswith("Warning: 1 of 3 posts have the id of a post before (duplicate_id), such as a:")
    assert warnings[1].startswith(
        "Warning: 1 of 3 posts have the image file of a post with another id, such as a and b."
    )


# Members of a tar


def tar(path, members):
    path.parent.mkdir(exist_ok=True)
    return tar_of(
        path, [(name, data if isinstance(data, bytes) else json.dumps(data).encode()) for name, data in members]
    )


def samples(tmp_path, members):
    """Id, picture, tags and reason of each row."""
    tar(tmp_path / "x.tar", members)
    source = Source(format="webdataset", uri=str(tmp_path / "x.tar"))
    return [(row["id"], row["image"], row["tags"], row["reason"]) for row in rows_of(source)]


RED, BLUE = picture(1, "JPEG"), picture(2, "JPEG")


def test_a_text_is_of_the_picture_that_has_its_whole_name(tmp_path):
    members = [("clip_1.0.jpg", RED), ("clip_1.5.json", {"tags": ["blue"]}), ("clip_1.5.jpg", BLUE)]
    assert samples(tmp_path, members) == [("clip_1.0", RED, None, None), ("clip_1.5", BLUE, ["blue"], None)]
    posts, reasons, counts = ingested(Source(format="webdataset", uri=str(tmp_path)), tmp_path / "store")
    assert (posts["clip_1.5"]["tags"], reasons, counts) == (["blue"], {"clip_1.0": "no_tags"}, (2, 1, 1))
    found = samples(tmp_path, [("clip_1.0.jpg", RED), ("clip_1.5.json", {"tags": ["blue"]})])
    assert [(name, reason) for name, _, _, reason in found] == [("clip_1.0", None), ("clip_1.5", "no_image_file")]


@pytest.mark.parametrize("names", [["22.05", "22.10", "23.05"], ["a.b.c", "a.b.d", "a.e"], ["d/x.v2", "d/x", "e/x"]])
@pytest.mark.parametrize("ways", [("jpg", "json"), ("json", "jpg"), ("JPG", "json")])
def test_keys_with_dots_are_told_apart(tmp_path, names, ways):
    members = [
        (f"{name}.{way}", RED if way.lower() == "jpg" else {"tags": [f"t{n}"]})
        for n, name in enumerate(names)
        for way in ways
    ]
    assert samples(tmp_path, members) == [(name, RED, [f"t{n}"], None) for n, name in enumerate(names)]


def test_keys_with_dots_are_told_apart_where_a_prefix_has_thousands(tmp_path):
    members = [m for n in range(500) for m in ((f"set.{n}.jpg", RED), (f"set.{n}.txt", f"t{n}".encode()))]
    assert samples(tmp_path, members) == [(f"set.{n}", RED, [f"t{n}"], None) for n in range(500)]
    pictures = samples(tmp_path, [(f"set.{n}.jpg", RED) for n in range(500)])
    assert [name for name, *_ in pictures] == [f"set.{n}" for n in range(500)]


@pytest.mark.parametrize(
    "names",
    [
        ["0.depth.png", "0.jpg"],
        ["0.png", "0.jpg"],
        ["0.seg.jpg", "0.webp"],
        ["0.mask.jpg", "0.photo.png"],
        ["0.depth_map.jpg", "0.seg-mask.jpg", "0.rgb.png"],
        ["0.condition.jpg", "0.jpg"],
        ["0.thumbnail.jpg", "0.original.jpg"],
        ["0.png", "0.avif"],
        ["0.heic", "0.png"],
    ],
)
@pytest.mark.parametrize("turn", [1, -1])
def test_what_lies_beside_a_picture_is_not_taken_for_it(tmp_path, names, turn):
    members = [*((name, RED if name == names[-1] else BLUE) for name in names[::turn]), ("0.json", {"tags": ["x"]})]
    assert samples(tmp_path, members) == [("0", RED, ["x"], None)]
    assert samples(tmp_path, members[::-1]) == [("0", RED, ["x"], None)]


def test_texts_beside_a_picture_are_its_own(tmp_path):
    members = [("0.photo.jpg", RED), ("0.meta.json", {"tags": ["x"]}), ("1.jpg", BLUE), ("1.jpg.json", {"tags": ["y"]})]
    members += [("2.jpg", RED), ("2.depth.png", BLUE), ("2.depth.json", {"tags": ["no"]}), ("2.json", {"tags": ["z"]})]
    found = samples(tmp_path, members)
    assert found == [("0", RED, ["x"], None), ("1", BLUE, ["y"], None), ("2", RED, ["z"], None)]


def test_the_image_column_names_the_member(tmp_path):
    tar(tmp_path / "x.tar", [("0.jpg", RED), ("0.depth.png", BLUE), ("0.json", {"tags": ["x"]})])
    source = Source(format="webdataset", uri=str(tmp_path), image_column="depth.png")
    assert [row["image"] for row in rows_of(source)] == [BLUE]
    source = source.model_copy(update={"image_column": "PNG"})
    assert [row["image"] for row in rows_of(source)] == [BLUE]


SUFFIXES = ["jpg", "JPEG", "jfif", "jpe", "avif", "webp", "png", "gif", "bmp", "tif", "tiff", "heic", "heif", "jxl"]
WANTED = {"tif": "not_an_image", "tiff": "not_an_image", "heic": "not_an_image", "heif": "not_an_image"}
WANTED |= {"jxl": "not_an_image"}


def file_of(suffix, seed):
    kinds = {"jpg": "JPEG", "jfif": "JPEG", "jpe": "JPEG", "tif": "TIFF"}
    if suffix in ("heic", "heif"):
        return b"\0\0\0\x18ftypheic" + b"\0" * 100
    return b"\xff\x0a" + b"\0" * 100 if suffix == "jxl" else picture(seed, kinds.get(suffix, suffix.upper()))


@pytest.mark.parametrize("kind", ["webdataset", "folder", "yfcc", "yfcc tars"])
def test_every_picture_is_a_row_whatever_its_suffix(tmp_path, kind):
    folder = tmp_path / "in"
    folder.mkdir()
    files = {f"{n}.{suffix}": file_of(suffix, n) for n, suffix in enumerate(SUFFIXES)}
    if kind == "webdataset":
        members = [m for name, data in files.items() for m in ((name, data), (name.split(".")[0] + ".txt", b"cat"))]
        tar(folder / "x.tar", members)
        source = Source(format=kind, uri=str(folder))
    else:
        for name, data in files.items():
            (folder / name.lower()).write_bytes(data)
        if kind == "folder":
            table(folder, [("id", "file", "tags"), *((n, name.lower(), "cat") for n, name in enumerate(files))])
            source = Source(format="folder", uri=str(folder))
        else:
            lines = [yfcc_line({"id": str(n), "user": "u", "taken_at": "2020", "tags": ["cat"]}, 23) for n in range(14)]
            (folder / "yfcc100m_dataset").write_text("".join(lines))
            images = folder
            if kind == "yfcc tars":
                images = tar(tmp_path / "x.tar", list(files.items()))
            source = Source(format="yfcc", uri=str(folder), images=str(images))
    posts, reasons, counts = ingested(source, tmp_path / "store")
    wanted = {str(n): WANTED[suffix] for n, suffix in enumerate(SUFFIXES) if suffix in WANTED}
    assert reasons == wanted
    assert sorted(posts, key=int) == [str(n) for n, suffix in enumerate(SUFFIXES) if suffix not in WANTED]
    assert counts == (14, 9, 5)
    assert "looks like HEIC, which is not read: convert it to JPEG" in str(details(tmp_path / "store"))


def details(root):
    import lance

    return lance.dataset(str(root / "rejects.lance")).to_table(["id", "detail"]).to_pylist()


def test_an_index_of_tars_made_before_a_suffix_was_known_is_made_again(tmp_path):
    import sqlite3

    tar(tmp_path / "x.tar", [("1.avif", picture(1, "AVIF"))])
    (tmp_path / "yfcc100m_dataset").write_text(yfcc_line({"id": "1", "user": "u", "taken_at": "", "tags": ["cat"]}, 23))
    source = Source(format="yfcc", uri=str(tmp_path / "yfcc100m_dataset"), images=str(tmp_path / "*.tar"))
    cache = tmp_path / "cache"

    def reasons():
        return [
            row["reason"] for s in find_shards(source) for b in read_shard(source, s, cache) for row in b.to_pylist()
        ]

    assert reasons() == [None]
    with sqlite3.connect(cache / "tars.sqlite") as index:
        index.execute("DELETE FROM members")
    index.close()
    assert reasons() == ["no_image_file"]  # the index is believed
    with sqlite3.connect(cache / "tars.sqlite") as index:
        index.execute("PRAGMA user_version = 0")
    index.close()
    assert reasons() == [None]


# By-products beside the data


def parquet(path, ids, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = [int(name.strip("abcdefghijklmnopqrstuvwxyz") or 0) for name in ids]
    columns = {"id": list(ids), "image": [picture(n) for n in numbers], "tags": [["cat"]] * len(ids)} | more
    pq.write_table(pa.table(columns), path)
    return path


MARKS = {
    "Delta": ["_delta_log/00000000000000000000.json"],
    "Iceberg": ["metadata/00000-0b1c.metadata.json", "metadata/snap-1.avro"],
    "Iceberg of Hadoop": ["metadata/version-hint.text", "metadata/v1.metadata.json"],
    "Hudi": [".hoodie/hoodie.properties"],
}


@pytest.mark.parametrize("kind", MARKS)
@pytest.mark.parametrize("where", ["part-0.parquet", "date=1/part-0.parquet", "data/a/b/part-0.parquet"])
def test_tables_with_a_log_are_refused_by_name(tmp_path, kind, where):
    file = parquet(tmp_path / "t" / where, ["p0"])
    for name in MARKS[kind]:
        (tmp_path / "t" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "t" / name).write_text("{}")
    wanted = rf"{tmp_path}/t is an? {kind.split()[0]} table: .* Export its current rows"
    for uri in (tmp_path, tmp_path / "t", file.parent, tmp_path / "t" / "**" / "*.parquet"):
        with pytest.raises(ValueError, match=wanted):
            find_shards(Source(format="parquet", uri=str(uri)))
    assert len(find_shards(Source(format="parquet", uri=str(file)))) == 1  # which was asked for by its name
    (tmp_path / "t" / "metadata").mkdir(exist_ok=True)


def test_a_table_with_a_log_elsewhere_is_refused():
    import fsspec

    memory = fsspec.filesystem("memory")
    with memory.open("lake/t/part-0.parquet", "wb") as file:
        pq.write_table(pa.table({"id": ["a"], "image": [picture()], "tags": [["cat"]]}), file)
    with memory.open("lake/t/_delta_log/0.json", "wb") as file:
        file.write(b"{}")
    with pytest.raises(ValueError, match="memory://lake/t is a Delta table"):
        find_shards(Source(format="parquet", uri="memory://lake"))


def test_a_folder_called_metadata_is_no_iceberg(tmp_path):
    parquet(tmp_path / "a.parquet", ["p0"])
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "notes.json").write_text("{}")
    assert len(find_shards(Source(format="parquet", uri=str(tmp_path)))) == 1


def arrow(path, ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = pa.table({"id": list(ids), "image": [picture()] * len(ids), "tags": [["cat"]] * len(ids)})
    with pa.ipc.new_stream(path, columns.schema) as file:
        file.write_table(columns)


def saved(folder, ids, **state):
    """As `save_to_disk` of Hugging Face's datasets writes it, in two files."""
    for n, name in enumerate(ids):
        arrow(folder / f"data-{n:05d}-of-{len(ids):05d}.arrow", [name])
    names = [{"filename": f"data-{n:05d}-of-{len(ids):05d}.arrow"} for n in range(len(ids))]
    (folder / "state.json").write_text(json.dumps({"_data_files": names, "_split": None} | state))
    (folder / "dataset_info.json").write_text("{}")


def ids_of(source):
    return sorted(row["id"] for row in rows_of(source))


def test_saved_datasets_are_read_by_their_state(tmp_path):
    saved(tmp_path / "d", ["a", "b"])
    arrow(tmp_path / "d" / "cache-0123456789abcdef.arrow", ["x"])
    arrow(tmp_path / "d" / "data-00000-of-00001.arrow", ["old"])  # of a state before
    assert guess_format(str(tmp_path / "d")) == "arrow"
    for uri in (tmp_path / "d", tmp_path / "d" / "*.arrow"):
        assert ids_of(Source(format="arrow", uri=str(uri))) == ["a", "b"]
    (tmp_path / "d" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(ValueError, match=r"state.json names data-00001-of-00002.arrow, which is not there"):
        find_shards(Source(format="arrow", uri=str(tmp_path / "d")))


def test_splits_of_saved_datasets_are_splits_and_others_are_not_read(tmp_path):
    for split in ("train", "test", "old"):
        saved(tmp_path / split, [split])
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    source = Source(format="arrow", uri=str(tmp_path))
    assert {row["id"]: row["split"] for row in rows_of(source)} == {"train": "train", "test": "test"}


def test_rows_that_an_index_picks_are_refused(tmp_path):
    saved(tmp_path, ["a"], _indices_data_files=[{"filename": "indices.arrow"}])
    arrow(tmp_path / "indices.arrow", ["0"])
    with pytest.raises(ValueError, match=r"state.json picks rows by an index file.*flatten_indices"):
        find_shards(Source(format="arrow", uri=str(tmp_path)))


def test_caches_of_datasets_are_no_shards(tmp_path):
    arrow(tmp_path / "cats-train.arrow", ["a"])
    for name in ("cache-0123456789abcdef.arrow", "cache-01ab_00000_of_00004.arrow", "indices.arrow"):
        arrow(tmp_path / name, ["x"])
    assert ids_of(Source(format="arrow", uri=str(tmp_path))) == ["a"]
    (tmp_path / "cats-train.arrow").unlink()
    with pytest.raises(ValueError, match="but caches"):
        find_shards(Source(format="arrow", uri=str(tmp_path)))


@pytest.mark.parametrize("glob", [False, True])
def test_companions_of_yfcc_are_no_sources(tmp_path, glob):
    line = yfcc_line({"id": "1", "user": "u", "taken_at": "", "tags": ["cat"]}, 23)
    (tmp_path / "yfcc100m_dataset").write_text(line)
    for name in ("yfcc100m_hash", "yfcc100m_autotags-v1.bz2", "YFCC100M_places", "yfcc100m_exif.gz", "yfcc100m_lines"):
        (tmp_path / name).write_text("1\tx\n")
    (tmp_path / "1.png").write_bytes(picture())
    uri = f"{tmp_path}/{'yfcc100m_*' if glob else ''}"
    unready = []
    source = Source(format="yfcc", uri=uri, images=str(tmp_path))
    (shard,) = find_shards(source, None, unready)
    assert (shard.path, unready) == (str(tmp_path / "yfcc100m_dataset"), [])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("photos.zip", "photos.zip is an archive, which is not read: unpack it"),
        ("posts.csv.gz", "posts.csv.gz is a compressed table, which is not read: unpack it"),
        ("posts.jsonl.zst", "posts.jsonl.zst is a compressed table"),
        ("posts.json", "posts.json is one JSON document, which is not read: write one object a line"),
        ("posts.tar.bz2", "posts.tar.bz2 is a compressed tar, which is not read: unpack it to a .tar"),
        ("posts.xlsx", "posts.xlsx is a spreadsheet, which is not read: save it as CSV"),
        ("posts.sqlite", "posts.sqlite is a database"),
        ("posts.tfrecord", "posts.tfrecord is a record file"),
    ],
)
def test_files_of_formats_that_are_not_read_are_named(tmp_path, name, why):
    (tmp_path / name).write_bytes(b"x" * 100)
    for uri in (tmp_path / name, tmp_path):
        with pytest.raises(ValueError, match=r".") as caught:
            guess_format(str(uri))
        assert why in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"which is not read|wanted one of"):
        find_shards(Source(format="folder", uri=str(tmp_path / name)))


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


# Types of columns


def blob(kind):
    """Two pictures as Lance keeps large values apart: in a column, in a field of a struct, or in its newer type."""
    from lance import blob_array, blob_field

    pictures, mark = [picture(0), picture(1)], {"lance-encoding:blob": "true"}
    if kind == "type":
        return blob_array(pictures), blob_field("image")
    if kind == "column":
        return pa.array(pictures, pa.large_binary()), pa.field("image", pa.large_binary(), metadata=mark)
    held = pa.struct([pa.field("bytes", pa.large_binary(), metadata=mark), pa.field("path", pa.string())])
    return pa.array([{"bytes": data, "path": "x"} for data in pictures], held), pa.field("image", held)


@pytest.mark.parametrize("kind", ["column", "struct", "type"])
def test_blobs_of_lance_are_pictures(tmp_path, kind):
    import lance

    array, field = blob(kind)
    schema = pa.schema([("id", pa.string()), field, ("tags", pa.list_(pa.string()))])
    rows = pa.table([pa.array(["a", "b"]), array, pa.array([["cat"], ["dog"]])], schema=schema)
    lance.write_dataset(rows, str(tmp_path / "x.lance"), data_storage_version="2.2" if kind == "type" else "stable")
    source = Source(format="lance", uri=str(tmp_path / "x.lance"))
    assert [(row["image"], row["tags"]) for row in rows_of(source)] == [(picture(0), ["cat"]), (picture(1), ["dog"])]
    assert "Problems: none in 2 images decoded" in described(source)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "lance"])
def test_columns_of_extension_types_are_read(tmp_path, kind):
    from uuid import UUID

    import lance

    names = [str(UUID(int=n)) for n in (1, 2, 3)]
    ids = pa.array([UUID(name).bytes for name in names[:2]] + [None], pa.binary(16))
    texts = pa.array(['["cat", "new york"]', None, '["dog"]'])
    columns = {
        "id": pa.ExtensionArray.from_storage(pa.uuid(), ids),
        "tags": pa.ExtensionArray.from_storage(pa.json_(), texts),
        "user": pa.ExtensionArray.from_storage(pa.opaque(pa.string(), "name", "vendor"), pa.array(["u", "v", "w"])),
        "image": [picture()] * 3,
    }
    if kind == "lance":
        columns["user"] = ["u", "v", "w"]  # lance does not store this type
    rows = pa.table(columns)
    path = tmp_path / f"x.{kind}"
    if kind == "parquet":
        pq.write_table(rows, path)
    elif kind == "arrow":
        with pa.ipc.new_file(path, rows.schema) as file:
            file.write_table(rows)
    else:
        lance.write_dataset(rows, str(path))
    found = rows_of(Source(format=kind, uri=str(path)))
    assert [row["id"] for row in found] == [*names[:2], None]
    assert [row["tags"] for row in found] == [["cat", "new york"], None, ["dog"]]
    assert [row["user"] for row in found] == ["u", "v", "w"]


# Class folders


def pictures(folder, *names):
    for n, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(n))


def posts_of(folder, **settings):
    source = Source(format=guess_format(str(folder)), uri=str(folder), **settings)
    return source.format, {row["id"]: (row["tags"], row["split"], row["reason"]) for row in rows_of(source)}


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
    with pytest.raises(ValueError, match="no image below"):
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


# COCO


def coco(path, names, annotations, first=1, **more):
    """`annotations`: (number of the picture, category or caption)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    categories = [{"id": 17, "name": "cat", "supercategory": "animal"}, {"id": 58, "name": "hot dog"}]
    said = {"info": {"year": 2017}, "licenses": [{"id": 1, "name": "images"}]}
    said["images"] = [{"id": first + n, "file_name": name, "width": 16} for n, name in enumerate(names)]
    said["annotations"] = [
        {"id": n, "image_id": first + number, **({"category_id": what} if isinstance(what, int) else {"caption": what})}
        for n, (number, what) in enumerate(annotations)
    ]
    path.write_text(json.dumps(said | {"categories": categories} | more))
    return path


def test_instances_and_captions_of_a_split_are_joined(tmp_path):
    for split, n in (("train2017", 0), ("val2017", 1)):
        pictures(tmp_path / split, "0.jpg")
        where = tmp_path / "annotations"
        coco(where / f"instances_{split}.json", ["0.jpg"], [(0, 17), (0, 58), (0, 17)][n:], first=7)
        coco(
            where / f"captions_{split}.json", ["0.jpg"], [(0, "The CAT is on a mat."), (0, "Two cats, a café")], first=7
        )
        coco(where / f"person_keypoints_{split}.json", ["0.jpg"], [(0, 17)], first=7)
    tags = {"train2017/0.jpg": ["cat", "hot dog", "cat", "mat", "cats", "café"]}
    tags["val2017/0.jpg"] = ["hot dog", "cat", "cat", "mat", "cats", "café"]
    for uri in (tmp_path, tmp_path / "annotations"):
        kind, found = posts_of(uri)
        assert kind == "coco"
        assert {name: said for name, (said, _, _) in found.items()} == tags
        assert [said[1:] for said in found.values()] == [("train", None), ("validation", None)]
    source = Source(format="coco", uri=str(tmp_path / "annotations" / "captions_*.json"))
    assert [row["tags"] for row in rows_of(source)] == [["cat", "mat", "cats", "café"]] * 2
    single = Source(format="coco", uri=str(tmp_path / "annotations" / "instances_val2017.json"))
    assert [(row["id"], row["tags"]) for row in rows_of(single)] == [("val2017/0.jpg", ["hot dog", "cat"])]
    lines = described(Source(format="coco", uri=str(tmp_path)))
    assert "Columns: id from file_name, image from file_name, tags from categories and words of captions" in lines
    assert lines[-1] == "Split: by the names of files (train 1, validation 1); test posts: by hash"


def test_coco_beside_its_pictures_in_folders_of_splits(tmp_path):
    for split in ("train", "valid", "test"):
        coco(tmp_path / split / "_annotations.coco.json", ["0.jpg", "gone.jpg", "../x.jpg"], [(0, 17), (1, 58)])
        pictures(tmp_path / split, "0.jpg")
    kind, found = posts_of(tmp_path)
    assert kind == "coco"
    assert found["valid/0.jpg"] == (["cat"], "validation", None)
    assert found["test/gone.jpg"] == (["hot dog"], "test", "no_image_file")
    assert found["train/../x.jpg"][2] == "outside_folder"
    assert len(found) == 9


def test_coco_with_its_pictures_elsewhere_and_its_own_ids(tmp_path):
    file = coco(tmp_path / "labels.json", ["a/0.jpg"], [(0, 17)], first=40)
    pictures(tmp_path / "far", "a/0.jpg")
    source = Source(format=guess_format(str(file)), uri=str(file), images=str(tmp_path / "far"))
    assert [(row["id"], row["tags"], row["reason"]) for row in rows_of(source)] == [("a/0.jpg", ["cat"], None)]
    (shard,) = find_shards(source)
    pictures(tmp_path / "far", "a/1.jpg")
    assert find_shards(source)[0].content_hash != shard.content_hash
    numbered = source.model_copy(update={"id_column": "id"})
    assert [row["id"] for row in rows_of(numbered)] == ["40"]


def test_coco_in_any_order_and_of_any_size_is_read_piece_by_piece(tmp_path, monkeypatch):
    from moe_core.data.sources import coco as reader

    names = [f"{n}.jpg" for n in range(200)]
    file = coco(tmp_path / "x.json", names, [(n, 17 if n % 2 else "a long bridge") for n in range(200)])
    said = json.loads(file.read_text())
    (tmp_path / "y.json").write_text(json.dumps(dict(reversed(said.items())), indent=3, ensure_ascii=True))
    wanted = list(reader._elements(file))
    assert wanted[1] == ("images", {"id": 1, "file_name": "0.jpg", "width": 16})
    for block in (1, 7, 300):
        monkeypatch.setattr(reader, "BLOCK", block)
        assert list(reader._elements(file)) == wanted
        assert sorted(map(str, reader._elements(tmp_path / "y.json"))) == sorted(map(str, wanted))
        assert (
            reader.count(Source(format="coco", uri=str(file)), find_shards(Source(format="coco", uri=str(file))))[0]
            == 200
        )
    found = [rows_of(Source(format="coco", uri=str(tmp_path / name))) for name in ("x.json", "y.json")]
    assert [row["tags"] for row in found[0]] == [row["tags"] for row in found[1]]
    assert found[0][0]["tags"] == ["long", "bridge"]


@pytest.mark.parametrize("kept", [10, 500, -1])
def test_coco_that_is_cut_short_is_named(tmp_path, kept):
    file = coco(tmp_path / "x.json", ["0.jpg"] * 20, [(n, 17) for n in range(20)])
    data = file.read_text()
    file.write_text(data[:kept])
    with pytest.raises(ValueError, match=r"x.json is cut short|no COCO JSON"):
        rows_of(Source(format="coco", uri=str(file)))


def test_damage_in_coco_gives_rows_or_one_line(tmp_path):
    import random

    file = coco(tmp_path / "x.json", [f"{n}.jpg" for n in range(9)], [(n, 17) for n in range(9)])
    good, draw = file.read_bytes(), random.Random(5)
    for _ in range(100):
        data = bytearray(good)
        at = draw.randrange(len(data))
        data[at : at + draw.choice((0, 1, 30))] = draw.choice(
            (b"\xff", b"{", b"]", b"\\ud800", b"[" * 5000, b"null", b"0")
        )
        file.write_bytes(data)
        wrong = None
        try:
            rows_of(Source(format="coco", uri=str(file)))
        except ValueError as error:
            wrong = error
        assert wrong is None or (type(wrong) is BadSource and "\n" not in str(wrong))


# What init says


def test_init_says_which_columns_it_takes_and_ignores(tmp_path):
    columns = {"Photo_ID": ["a"], "image": [picture()], "tags": [["cat"]], "url": ["x"], "width": [16]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    lines = described(Source(format="parquet", uri=str(tmp_path)))
    assert "Columns: id from Photo_ID, image from image, tags from tags; ignored: url, width" in lines
    lines = described(table(tmp_path / "csv", [("file", "tags", "note"), ("0.png", "cat", "hello")]))
    assert "Columns: image from file, tags from tags; ignored: note" in lines


def hardmoe(*arguments):
    environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}
    command = [sys.executable, "-m", "pipelines.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_init_refuses_a_source_without_one_picture_that_can_be_used(tmp_path):
    columns = {"id": [*"abc"], "image": [b"", b"<html>", None], "tags": [["cat"]] * 3}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    done = hardmoe("init", tmp_path / "study", "--source", tmp_path / "x.parquet")
    assert done.returncode == 1
    assert "none of the 3 posts sampled has a usable picture (empty 2, not_an_image 1;" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "study").exists()
    few = columns | {"image": [b"", b"", picture()]}
    pq.write_table(pa.table(few), tmp_path / "x.parquet")
    assert "Problems: 2 of 3 images (empty 2)" in "".join(described(Source(format="parquet", uri=str(tmp_path))))


def test_commands_that_init_prints_have_their_paths_quoted(tmp_path):
    source = table(tmp_path / "in", [("file", "tags"), ("0.png", "cat")])
    done = hardmoe("init", tmp_path / "my cats' study", "--source", source.uri)
    assert done.returncode == 0, done.stderr
    quoted = "'" + str(tmp_path / "my cats' study" / "study.toml").replace("'", "'\"'\"'") + "'"
    assert f"Next: hardmoe run --study {quoted}" in done.stdout
