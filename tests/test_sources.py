"""Every format gives the same posts; nothing in a source crashes a reader, is believed, or is lost without a count."""

import ast
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from datetime import datetime
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from helpers.formats import WRITERS, drawn_posts, hash_of, table_of, tar_of, yfcc_line
from moe_core.data.ingest import ingest
from moe_core.data.sources import RAW, ContentHashes, find_shards, guess_format, parquet, raw, read_shard
from moe_core.data.sources.columns import choose
from moe_core.data.sources.preview import preview
from moe_core.data.sources.raw import MAX_LINE, in_batches, tags_of_text, time_of
from moe_core.errors import BadSource
from moe_core.recipes import demo
from moe_core.settings import Data, Source, dump_study
from moe_core.tables import read_rows
from moe_core.text import shown

ANYTHING = Data(image_size=16, max_reject_rate=1)
KEPT = ["id", "image", "tags", "user", "taken_at", "given"]


@pytest.fixture(scope="module")
def posts():
    return drawn_posts()


def png(color="red"):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(file, "PNG")
    return file.getvalue()


def ingested(source, root):
    """Accepted posts and reasons of the rejected ones, by id."""
    accepted, rejected = {}, {}
    for shard in find_shards(source):
        done = ingest(root, shard.key, read_shard(source, shard, root / "cache"), ANYTHING, lambda _: None)
        for row in read_rows(root / "posts.lance", done.posts_version, shard.key, KEPT).to_pylist():
            accepted[row["id"]] = row
        rejects = read_rows(root / "rejects.lance", done.rejects_version, shard.key, ["id", "reason"])
        rejected |= {row["id"]: row["reason"] for row in rejects.to_pylist()}
    return accepted, rejected


def rows_of(source, cache=None):
    return [row for s in find_shards(source) for batch in read_shard(source, s, cache) for row in batch.to_pylist()]


def reasons(source, cache=None):
    return {row["id"]: row["reason"] for row in rows_of(source, cache)}


def one_line(lines, start):
    (line,) = [line for line in lines if line.startswith(start)]
    return line


@pytest.fixture(scope="module")
def reference(posts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    return ingested(WRITERS["parquet"](posts, folder), folder / "store")


def test_the_reference_has_posts_of_every_kind(posts, reference):
    accepted, rejected = reference
    assert len(accepted) + len(rejected) == len(posts)
    assert {"empty", "truncated", "not_an_image", "no_tags"} <= set(rejected.values())


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_posts(name, posts, reference, tmp_path):
    (tmp_path / "in").mkdir()
    source = WRITERS[name](posts, tmp_path / "in")
    accepted, rejected = ingested(source, tmp_path / "store")
    assert rejected == reference[1]
    if name.startswith("yfcc"):  # which has no split
        accepted, wanted = ({k: v | {"given": None} for k, v in some.items()} for some in (accepted, reference[0]))
    else:
        wanted = reference[0]
    assert accepted == wanted


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_is_recognized_and_described(name, posts, tmp_path):
    source = WRITERS[name](posts, tmp_path)
    if name != "folder_jsonl":  # a table that lies deeper is said
        assert guess_format(source.uri) == source.format
    lines = preview(source, find_shards(source)).lines
    assert lines[0].startswith(f"Found 1 shard of format {source.format} at {source.uri}")
    # a table of text has its lines counted, not its rows
    assert lines[1] == "Rows: 120" or name in ("folder_csv", "folder_tsv", "folder_jsonl")
    said = "\n".join(lines)
    assert "\nOf a sample of 120 posts: " in said
    assert " distinct users" in said
    assert "not_an_image 2, empty 1, truncated 1" in one_line(lines, "Problems: ")
    assert "\nEstimate for the ingest" in said
    assert ("\nColumns: " in said) == (source.format != "yfcc")


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_small_batches_of_one_schema(name, posts, tmp_path, monkeypatch):
    monkeypatch.setattr(raw, "BATCH_BYTES", 3000)
    for module in ("arrow", "parquet", "lance_table"):
        monkeypatch.setattr(f"moe_core.data.sources.{module}.BATCH_BYTES", 3000)
    source = WRITERS[name](posts, tmp_path)
    (shard,) = find_shards(source)
    batches = list(read_shard(source, shard))
    assert all(batch.schema.equals(RAW) for batch in batches)
    assert sum(map(len, batches)) == len(posts)
    assert max(sum(len(data or b"") for data in batch["image"].to_pylist()) for batch in batches) < 3000 + 2000
    assert len(batches) > 20


# Shards


def test_keys_of_old_files_stay_when_new_ones_come(posts, tmp_path):
    def keys():
        return {s.path: s.key for s in find_shards(Source(format="parquet", uri=str(tmp_path)))}

    def put(name):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(table_of(posts[:1]), tmp_path / name)

    for name in ("x.parquet", "sub/x.parquet", "a b.parquet"):
        put(name)
    before = keys()
    for name in ("a/x.parquet", "a-b.parquet", "A.parquet", "x.pq", "_hidden.parquet", ".hidden.parquet"):
        put(name)
    after = keys()
    assert before.items() <= after.items()
    assert len(set(after.values())) == len(after) == 7
    assert before[str(tmp_path / "x.parquet")] == "x"


def test_a_digest_is_of_content_and_of_what_is_read_from_it(posts, tmp_path):
    source = WRITERS["folder_csv"](posts[:3], tmp_path)
    (before,) = find_shards(source)
    assert find_shards(source) == [before]
    (named,) = find_shards(source.model_copy(update={"user_column": "note"}))
    assert named.content_hash != before.content_hash
    (tmp_path / "pictures" / "new.png").write_bytes(png())
    (after,) = find_shards(source)
    assert after.content_hash != before.content_hash


def test_known_files_are_not_read_again(posts, tmp_path, monkeypatch):
    source = WRITERS["parquet"](posts[:3], tmp_path)
    hashes = ContentHashes(tmp_path / "hashes.json")
    before = find_shards(source, hashes)
    assert not (tmp_path / "hashes.json").exists(), "a scan wrote"
    hashes.save()
    opened = []
    look = parquet._schema
    monkeypatch.setattr(parquet, "_schema", lambda file, source: opened.append(file.path) or look(file, source))
    monkeypatch.setattr("moe_core.data.sources.files._hash_of_content", lambda *_: pytest.fail("hashed again"))
    assert find_shards(source, ContentHashes(tmp_path / "hashes.json")) == before
    assert len(opened) == 1  # the first, to see whether its images lie beside it


def test_files_elsewhere_are_read_through_fsspec(posts):
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in ("bucket/a/x.parquet", "bucket/y.parquet"):
        with memory.open(name, "wb") as file:
            pq.write_table(table_of(posts[:3]), file)
    with memory.open("bucket/t.tar", "wb") as file:
        tar_of_bytes = io.BytesIO()
        with tarfile.open(fileobj=tar_of_bytes, mode="w") as tar:
            info = tarfile.TarInfo("a.png")
            info.size = len(png())
            tar.addfile(info, io.BytesIO(png()))
        file.write(tar_of_bytes.getvalue())
    source = Source(format="parquet", uri="memory://bucket")
    assert [s.path for s in find_shards(source)] == ["memory://bucket/a/x.parquet", "memory://bucket/y.parquet"]
    assert len(rows_of(source)) == 6
    assert len(rows_of(source.model_copy(update={"uri": "memory://bucket/*.parquet"}))) == 3
    assert guess_format("memory://bucket/*.parquet") == "parquet"
    assert guess_format("memory://bucket/a") == "parquet"
    assert len(rows_of(Source(format="webdataset", uri="memory://bucket/t.tar"))) == 1


# Errors, each in one line


def said(source):
    with pytest.raises(ValueError, match=r".") as caught:
        rows_of(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_scheme_that_nobody_knows():
    assert "no file system for it" in said(Source(format="parquet", uri="gibberish://x/y.parquet"))
    assert "reads local files only" in said(Source(format="folder", uri="s3://x/y"))


@pytest.mark.parametrize(("kind", "suffix"), [("parquet", "parquet"), ("arrow", "arrow"), ("webdataset", "tar")])
def test_files_that_are_empty_or_not_what_they_are_called(tmp_path, kind, suffix):
    path = tmp_path / f"x.{suffix}"
    source = Source(format=kind, uri=str(path))
    assert f"no {'tar of samples' if suffix == 'tar' else kind.capitalize() + ' file'} at" in said(source)
    path.write_bytes(b"")
    assert "is empty (0 bytes)" in said(source)
    path.write_bytes(b"nonsense" * 200)
    assert "is not a readable" in said(source) or "is damaged" in said(source)


@pytest.mark.parametrize("name", ["parquet", "arrow_file", "arrow_stream", "webdataset", "webdataset_gz"])
def test_files_that_are_cut_short_anywhere(name, posts, tmp_path):
    source = WRITERS[name](posts, tmp_path)
    path = Path(find_shards(source)[0].path)
    data = path.read_bytes()
    for kept in (len(data) - 1, len(data) * 2 // 3, 513, 20):
        if name == "webdataset" and kept == len(data) - 1:
            continue  # zeros after the end mark are padding
        path.write_bytes(data[:kept])
        assert f"{path} is" in said(source)


def test_a_tar_cut_between_members_is_not_taken_for_a_whole_one(posts, tmp_path):
    source = WRITERS["webdataset"](posts[:4], tmp_path)
    path = tmp_path / "posts.tar"
    with tarfile.open(path) as tar:
        ends = [member.offset for member in tar.getmembers()]
    data = path.read_bytes()
    for kept in (ends[3], ends[3] + 100):
        path.write_bytes(data[:kept])
        assert "cut short after 3 members" in said(source)


def test_tars_joined_by_cat_are_an_error(posts, tmp_path):
    source = WRITERS["webdataset"](posts[:4], tmp_path)
    path = tmp_path / "posts.tar"
    path.write_bytes(path.read_bytes() * 2)
    assert "there is more after the end-of-archive mark" in said(source)


def test_an_arrow_stream_cut_between_batches_is_not_taken_for_a_whole_one(posts, tmp_path):
    source = WRITERS["arrow_stream"](posts[:50], tmp_path)
    path = tmp_path / "posts.arrow"
    (shard,) = find_shards(source)
    os.truncate(path, path.stat().st_size - 8)  # without the mark of the end
    assert "is cut short, or still being copied: it has no end-of-stream mark" in said(source)
    with pytest.raises(ValueError, match="damaged after row 50: no end-of-stream mark"):
        list(read_shard(source, shard))


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "lance"])
def test_damage_anywhere_gives_rows_or_one_line(name, tmp_path):
    source = WRITERS[name](drawn_posts(20), tmp_path)
    path = Path(find_shards(source)[0].path)
    good, draw = path.read_bytes(), random.Random(name)
    for _ in range(25):
        data = bytearray(good)
        for _ in range(draw.choice((1, 1, 5))):
            at = draw.randrange(len(data))
            piece = draw.choice((b"\t", b"\n", b'"', b"\0", b"\xff", b"{", b"../", b"", bytes([draw.randrange(256)])))
            data[at : at + draw.choice((0, 1, 1, 40))] = piece
        path.write_bytes(data)
        wrong = []
        try:
            for shard in find_shards(source):
                for batch in read_shard(source, shard):
                    batch.validate(full=True)
        except ValueError as error:
            wrong.append(error)
        assert not wrong or (type(wrong[0]) is BadSource and "\n" not in str(wrong[0]))


def test_a_damaged_page_names_the_row(posts, tmp_path):
    source = WRITERS["parquet"](posts, tmp_path)
    path = tmp_path / "posts.parquet"
    find_shards(source)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 20000] = b"\xff" * len(data[len(data) // 2 : len(data) // 2 + 20000])
    footer = path.read_bytes()[-2000:]
    path.write_bytes(bytes(data[:-2000]) + footer)
    assert str(path) in said(source)


@pytest.mark.parametrize(
    ("column", "values", "why"),
    [
        ("image", [1], "column image is int64, wanted binary"),
        ("id", [1.5], "wanted text or whole numbers"),
        ("id", [[1]], "column id is list<element: int64>, wanted text or whole numbers"),
        ("tags", [1.5], "column tags is double, wanted a list of strings, or text"),
        ("tags", [[1.5]], "wanted a list of strings, or text"),
        ("user", [b"x"], "column user is binary, wanted text"),
    ],
)
def test_wrong_types(tmp_path, column, values, why):
    columns = {"id": ["a"], "image": [png()], "tags": [["cat"]], "user": ["u"]} | {column: values}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert why in said(Source(format="parquet", uri=str(tmp_path)))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"user_column": "owner"}, "has no column owner (source.user_column): it has id, image, tags"),
        ({"caption_column": "text"}, "has no column text (source.caption_column)"),
        ({"id_column": "key"}, "has no column key (source.id_column)"),
    ],
)
def test_a_named_column_that_is_not_there(tmp_path, settings, why):
    pq.write_table(pa.table({"id": ["a"], "image": [png()], "tags": [["cat"]]}), tmp_path / "x.parquet")
    assert why in said(Source(format="parquet", uri=str(tmp_path), **settings))


def test_a_column_that_is_there_twice(tmp_path):
    table = pa.table([["a"], [png()], [["cat"]], [["dog"]]], names=["id", "image", "tags", "tags"])
    pq.write_table(table, tmp_path / "x.parquet")
    assert "has two columns tags: rename one" in said(Source(format="parquet", uri=str(tmp_path)))


def test_errors_of_lance_and_yfcc(tmp_path, posts):
    (tmp_path / "x.lance" / "_versions").mkdir(parents=True)
    assert "is not a readable Lance table" in said(Source(format="lance", uri=str(tmp_path / "x.lance")))
    assert "no Lance table at" in said(Source(format="lance", uri=str(tmp_path / "x.lance" / "_versions")))
    path = tmp_path / "yfcc100m_dataset"
    path.write_text("a\tb\n")
    assert "source.images is empty" in said(Source(format="yfcc", uri=str(path)))
    source = Source(format="yfcc", uri=str(path), images=str(tmp_path))
    assert "its first line has 2 fields parted by tabs, wanted YFCC100M's 23 or 25" in said(source)
    path.write_text("")
    assert "is empty, wanted YFCC100M metadata" in said(source)
    path.write_text(yfcc_line(posts[0], 23))
    assert "no folder at" in said(source.model_copy(update={"images": str(tmp_path / "none")}))
    tar_of(tmp_path / "x.tar", [("a.jpg", png())], "w:gz")
    assert "is compressed" in said(source.model_copy(update={"images": str(tmp_path / "*.tar")}))


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("t.csv", b"", "is empty (0 bytes)"),
        ("t.csv", "file,tags\n".encode("utf-16"), "is UTF-16, wanted UTF-8"),
        ("t.csv", b"file,tags,tags\n", "has two columns tags"),
        ("t.csv", b"name,words\n", "has no column image (source.image_column), tags or raw_tags (source.tags_column)"),
        ("t.jsonl", b"not json\n", "line 1: not JSON"),
        ("t.jsonl", b'{"file": "a.png"}\n', "has no column tags or raw_tags (source.tags_column): it has file"),
    ],
)
def test_errors_of_tables(tmp_path, name, data, why):
    (tmp_path / name).write_bytes(data)
    assert why in said(Source(format="folder", uri=str(tmp_path)))


def test_two_formats_in_one_folder_are_asked_about(posts, tmp_path):
    WRITERS["parquet"](posts[:2], tmp_path)
    WRITERS["arrow_file"](posts[:2], tmp_path)
    with pytest.raises(ValueError, match="holds arrow and parquet: choose one with --format"):
        guess_format(str(tmp_path))
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match="is of no known format"):
        guess_format(str(tmp_path / "notes.txt"))


# Rows that cannot be used


def test_file_names_that_lead_elsewhere(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    (folder / "a.png").write_bytes(png())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "inside.png").symlink_to(folder / "a.png")
    (folder / "ring.png").symlink_to(folder / "ring.png")
    (folder / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.png")
    (folder / "dir.png").mkdir()
    wanted = {
        "a.png": None,
        "inside.png": None,
        "../secret.png": "outside_folder",
        "dir.png/../a.png": "outside_folder",
        str(tmp_path / "secret.png"): "outside_folder",
        str(folder / "a.png"): "outside_folder",
        "..\\secret.png": "outside_folder",
        "C:\\a.png": "outside_folder",
        "link.png": "outside_folder",
        "up/secret.png": "outside_folder",
        "ring.png": "no_image_file",
        "pipe.png": "no_image_file",
        "dir.png": "no_image_file",
        "gone.png": "no_image_file",
        "a\x00.png": "no_image_file",
        "x" * 5000: "no_image_file",
        "https://x.test/a.png": "no_image_file",
    }
    lines = [json.dumps({"file": name, "tags": ["cat"]}) for name in wanted]
    (folder / "t.jsonl").write_text("\n".join(lines))
    assert reasons(Source(format="folder", uri=str(folder))) == wanted


def test_ragged_and_broken_rows_of_a_csv(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    rows = [
        b"id,file,tags,user",
        b"1,a.png,cat,ann",
        b"2,a.png,cat",  # too few
        b"3,a.png,cat,ann,more",  # too many
        b'4,a.png,"cat, dog",ann',
        b"",
        b"5,a.png,caf\xe9,ann",  # Latin-1
        b'6,a.png,"cat"x,ann',
        b"NaN,a.png,cat,null",
        b'7,a.png,"never closed,ann',
        b"8,a.png,cat,ann",
    ]
    (tmp_path / "t.csv").write_bytes(b"\r\n".join(rows))
    found = rows_of(Source(format="folder", uri=str(tmp_path)))
    assert [(row["id"], row["reason"]) for row in found] == [
        ("1", None),
        ("line 3", "bad_row"),
        ("line 4", "bad_row"),
        ("4", None),
        ("line 7", "bad_row"),
        ("line 8", "bad_row"),
        (None, None),  # the ingest says no_id
        ("line 10", "bad_row"),
        ("8", None),  # which the quote had swallowed
    ]
    assert found[1]["detail"] == "line 3: 3 fields, wanted 4"
    assert found[3]["tags"] == ["cat", "dog"]
    assert found[6]["user"] is None


def test_odd_rows_of_json_lines(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    lines = [
        '{"file": "a.png", "tags": ["cat", 7, null], "id": 12345678901234567890}',
        "[1, 2]",
        '{"file": "a.png", "tags": {"a": 1}, "id": "object"}',
        '{"file": "a.png", "tags": ["\\ud800"], "id": "half"}',
        '{"file": "a.png", "tags": NaN, "id": 3.0, "user": NaN}',
        '{"file": "a.png", "tags": ["cat"], "id": "new", "user": "late", "taken_at": "yesterday"}',
        '{"file": "a.png", "tags"',
        '{"tags": ["cat"], "id": "nofile"}',
        "[" * 100000,
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    found = rows_of(Source(format="folder", uri=str(tmp_path)))
    assert [(row["id"], row["reason"]) for row in found] == [
        ("12345678901234567890", None),
        ("line 2", "bad_row"),
        ("object", "bad_row"),
        ("half", "bad_row"),
        ("3", None),
        ("new", None),
        ("line 7", "bad_row"),
        ("nofile", "no_image_file"),
        ("line 9", "bad_row"),
    ]
    assert found[0]["tags"] == ["cat", "7"]
    assert (found[4]["user"], found[5]["user"]) == (None, "late")
    assert found[5]["taken_at"] is None


def test_a_post_with_a_million_tags_is_read(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "t.csv").write_text('file,tags\na.png,"' + ",".join(f"t{n}" for n in range(1_000_000)) + '"\n')
    (row,) = rows_of(Source(format="folder", uri=str(tmp_path)))
    assert len(row["tags"]) == 1_000_000


def endless(path, before, after):
    """A file with a line of 200 MB, which takes no disk."""
    with open(path, "wb") as file:
        file.write(before)
        file.truncate(len(before) + 200_000_000)
        file.seek(0, 2)
        file.write(after)


def yfcc_line_of(photo):
    """Of 23 fields."""
    return "\t".join([photo, *([""] * 7), "cat", *([""] * 13), "0"]).encode()


GROWTH = """
import sys
from moe_core.data.sources import find_shards, read_shard
from moe_core.settings import Source
source = Source.model_validate_json(sys.argv[1])
peak = lambda: int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
before = peak()
rows = [row for shard in find_shards(source) for batch in read_shard(source, shard) for row in batch.to_pylist()]
print([[row["id"], row["reason"]] for row in rows])
print((peak() - before) // 1024)
"""


def test_an_endless_line_is_one_reject_and_not_held_in_memory(tmp_path):
    (tmp_path / "1.png").write_bytes(png())
    first, last = (yfcc_line_of(str(n)) for n in (1, 3))
    endless(tmp_path / "t.jsonl", b'{"id": 1, "file": "1.png", "tags": "cat"}\n', b'\n{"id": 3, "file": "1.png"}')
    endless(tmp_path / "t.csv", b"id,file,tags\n1,1.png,cat\n", b"\n3,1.png,cat\n")
    endless(tmp_path / "yfcc", first + b"\n", b"\n" + last)
    sources = [
        Source(format="folder", uri=str(tmp_path), table="t.jsonl"),
        Source(format="folder", uri=str(tmp_path), table="t.csv"),
        Source(format="yfcc", uri=str(tmp_path / "yfcc"), images=str(tmp_path)),
    ]
    for source, where in zip(sources, ("line 2", "line 3", None), strict=True):
        command = [sys.executable, "-c", GROWTH, source.model_dump_json()]
        rows, grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        missing = "no_image_file" if source.format == "yfcc" else None
        assert ast.literal_eval(rows) == [["1", None], [where, "too_long"], ["3", missing]]
        assert int(grown) < 150, f"MiB, of a line of 200 MB in {source.format} {source.table}"


def test_an_endless_line_in_quotes_costs_no_other_row(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    lines = ["id,file,tags", '1,a.png,"cat', "x" * MAX_LINE, "2,a.png,cat", '3,a.png,"' + "\n" * 10_000, "4,a.png,cat"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    found = rows_of(Source(format="folder", uri=str(tmp_path)))
    assert [(row["id"], row["reason"]) for row in found] == [
        ("line 2", "bad_row"),
        ("line 3", "too_long"),
        ("2", None),
        ("line 5", "bad_row"),
        ("4", None),
    ]
    assert "line 3 has 16,777,216 characters or more" in found[1]["detail"]


def entry(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_tricks_in_a_tar(tmp_path):
    text = json.dumps({"tags": ["cat"]}).encode()
    members = [
        (entry("dir", tarfile.DIRTYPE), b""),
        ("dir/a.png", png()),
        ("dir/a.json", text),
        ("../up.png", png()),
        ("../up.json", text),
        ("/etc/abs.png", png()),
        ("x/../../y.png", png()),
        (entry("link.png", tarfile.SYMTYPE, "/etc/passwd"), b""),
        ("link.json", text),
        (entry("hard.png", tarfile.LNKTYPE, "dir/a.png"), b""),
        (entry("dev.png", tarfile.CHRTYPE), b""),
        (entry("fifo.png", tarfile.FIFOTYPE), b""),
        ("twice.png", png()),
        ("twice.json", text),
        ("twice.png", png()),
        ("twice.json", text),
        ("alone.json", text),
        ("broken.png", png()),
        ("broken.json", b"{"),
        ("latin.png", png()),
        ("latin.txt", b"caf\xe9"),
        ("._a.png", b"macOS"),
        (".DS_Store", b"x"),
        (".png", png()),
        ("README", b"x"),
        ("cls.1.PNG", png()),
        ("cls.cls", b"7\n"),
        ("both.jpg", png()),
        ("both.png", png()),
        ("both.json", json.dumps({"tags": "cat dog", "user": 5, "taken_at": 1.7e9}).encode()),
    ]
    tar_of(tmp_path / "x.tar", members)
    before = set(tmp_path.parent.rglob("*"))
    found = rows_of(Source(format="webdataset", uri=str(tmp_path)))
    assert set(tmp_path.parent.rglob("*")) == before
    assert [(row["id"], row["reason"]) for row in found] == [
        ("dir/a", None),
        ("../up", "outside_folder"),
        ("/etc/abs", "outside_folder"),
        ("x/../../y", "outside_folder"),
        ("link", "bad_row"),
        ("hard", "bad_row"),
        ("dev", "bad_row"),
        ("fifo", "bad_row"),
        ("twice", None),
        ("twice", None),
        ("alone", "no_image_file"),
        ("broken", "bad_row"),
        ("latin", "bad_row"),
        (".png", None),
        ("cls", None),
        ("both", None),
    ]
    by = {row["id"]: row for row in found}
    assert by["cls"]["tags"] == ["7"]
    assert (by["both"]["tags"], by["both"]["user"]) == (["cat", "dog"], "5")
    assert by["both"]["taken_at"] == datetime(2023, 11, 14, 22, 13, 20)


def test_videos_and_missing_images_of_yfcc(posts, tmp_path):
    few = [post | {"id": str(n)} for n, post in enumerate(posts[10:16])]
    lines = [yfcc_line(post, 25, marker="1" if n == 1 else "0") for n, post in enumerate(few)]
    lines[2] = "1\t2\t3\n"
    lines[3] = lines[3].replace(hash_of(few[3]), "../../../../etc/x")
    lines[4] = lines[4].replace(",".join(few[4]["tags"]), "x").replace("A+title", "%ZZ%FF")
    lines.append(yfcc_line(few[0] | {"id": "../0"}, 25))
    lines.append("\n")
    (tmp_path / "yfcc100m_dataset-0").write_text("".join(lines))
    for number in (0, 3, 4):
        (tmp_path / f"{number}.jpg").write_bytes(png())
    found = reasons(Source(format="yfcc", uri=str(tmp_path), images=str(tmp_path)))
    assert found == {"0": None, "1": "bad_row", "3": None, "4": None, "5": "no_image_file", "../0": "bad_row"} | {
        "1": found["1"]
    }
    rows = rows_of(Source(format="yfcc", uri=str(tmp_path), images=str(tmp_path)))
    assert Counter(row["reason"] for row in rows) == Counter({None: 3, "video": 1, "bad_row": 2, "no_image_file": 1})


def test_tags_of_yfcc_are_parted_before_they_are_decoded(posts, tmp_path):
    post = posts[10] | {"tags": ["New York", "a,b", "c+d", "50%"], "id": "7"}
    (tmp_path / "yfcc").write_text(yfcc_line(post, 23))
    (tmp_path / "7.png").write_bytes(png())
    (row,) = rows_of(Source(format="yfcc", uri=str(tmp_path / "yfcc"), images=str(tmp_path)))
    assert row["tags"] == ["New York", "a,b", "c+d", "50%", "geo:lat=1", "camera:iso=2"]
    assert row["taken_at"] == post["taken_at"]


def test_tars_are_indexed_once(posts, tmp_path, monkeypatch):
    source = WRITERS["yfcc_tars"](posts[:10], tmp_path)
    before = rows_of(source, tmp_path / "cache")
    monkeypatch.setattr("moe_core.data.sources.tars._places", lambda _: pytest.fail("read again"))
    assert rows_of(source, tmp_path / "cache") == before
    assert {row["reason"] for row in before} == {None}


def test_paths_of_hugging_face_stay_in_the_folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    images = [{"bytes": None, "path": p} for p in (str(tmp_path / "secret.png"), "../secret.png", "gone.png", None)]
    images.append({"bytes": png(), "path": "/elsewhere/x.png"})
    images.append(None)
    table = pa.table({"id": [*"abcdef"], "image": images, "tags": [["cat"]] * 6})
    pq.write_table(table, tmp_path / "in" / "x.parquet")
    found = reasons(Source(format="parquet", uri=str(tmp_path / "in")))
    wanted = ["outside_folder", "outside_folder", "no_image_file", "no_image_file", None, "no_image_file"]
    assert list(found.values()) == wanted


def test_ids_of_tables(tmp_path):
    def ids(column, **settings):
        pq.write_table(pa.table({**column, "image": [png()] * 2, "tags": [["cat"]] * 2}), tmp_path / "x.parquet")
        return [row["id"] for row in rows_of(Source(format="parquet", uri=str(tmp_path), **settings))]

    assert ids({"id": [1, 2**62]}) == ["1", str(2**62)]
    assert ids({"id": [3.0, None]}) == ["3", None]
    assert ids({"id": pa.array(["a", "b"]).dictionary_encode()}) == ["a", "b"]
    assert ids({}, id_column="#row") == ["x/0", "x/1"]
    with pytest.raises(ValueError, match=r'say source.id_column = "#row" to number the rows'):
        ids({})


def test_text_that_is_no_text_is_one_bad_row(tmp_path):
    buffers = pa.array([b"ok", b"\xff\xfe"]).buffers()
    user = pa.Array.from_buffers(pa.string(), 2, buffers)
    pq.write_table(
        pa.table({"id": ["a", "b"], "image": [png()] * 2, "tags": [["cat"]] * 2, "user": user}), tmp_path / "x.parquet"
    )
    assert reasons(Source(format="parquet", uri=str(tmp_path))) == {"a": None, "b": "bad_row"}


def test_columns_are_found_by_setting_then_by_usual_names():
    names = ["Filename", "Labels", "Owner", "tags"]
    assert choose(names, Source(), "x") == {"image": "Filename", "tags": "tags", "user": "Owner"}
    said = Source(tags_column="Labels", caption_column="Owner")
    assert choose(names, said, "x") == {"image": "Filename", "tags": "Labels", "user": "Owner", "caption": "Owner"}


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("cat, New York,,", ["cat", "New York"]),
        ("cat dog", ["cat", "dog"]),
        ("New York\ncat\n", ["New York", "cat"]),
        ('["a b", 7, null]', ["a b", "7"]),
        (" NaN ", []),
        ("", []),
        # separators
        ("lake;boat; New York ;", ["lake", "boat", "New York"]),
        (";lake;boat;", ["lake", "boat"]),
        ("lake|New York", ["lake", "New York"]),
        (
            "\uff2e\uff39\uff0c\u6771\u4eac\u3001\u5927\u962a\uff1bcat",
            ["\uff2e\uff39", "\u6771\u4eac", "\u5927\u962a", "cat"],
        ),
        ("\u0642\u0637\u0629\u060c \u0643\u0644\u0628", ["\u0642\u0637\u0629", "\u0643\u0644\u0628"]),
        ("New York\tcat", ["New York", "cat"]),
        ("New York, cat\ndog", ["New York", "cat", "dog"]),
        # hashes
        ("#lake#boat#summer", ["#lake", "#boat", "#summer"]),
        ("#lake #boat, #summer", ["#lake", "#boat", "#summer"]),
        ("\uff03lake\uff03boat", ["\uff03lake", "\uff03boat"]),
        ("#\U0001f600#boat", ["#\U0001f600", "#boat"]),
        ("#new york#cat#", ["#new york", "#cat#"]),
        ("#cat C#", ["#cat", "C#"]),
        ("#New York, C#, F#", ["#New York", "C#", "F#"]),
        # quotes
        ('"New York" cat', ["New York", "cat"]),
        ("'lake', 'boat'", ["lake", "boat"]),
        ('"Paris, France", cat', ["Paris, France", "cat"]),
        ("\u201cNew York\u201d, \u201ccat\u201d", ["New York", "cat"]),
        ("rock 'n' roll, don't; '90s", ["rock 'n' roll", "don't", "'90s"]),
        ('5" lens, 7" lens', ['5" lens', '7" lens']),
        # lists as Python, numpy, Postgres and others write them
        ("['a', 'b c', None, nan]", ["a", "b c"]),
        ("['a' 'b c'\n 'd']", ["a", "b c", "d"]),
        ('{a,"b c"}', ["a", "b c"]),
        ("('a',)", ["a"]),
        ("[a, b c]", ["a", "b c"]),
        ("['it\\'s', \"don't\", 'x, y']", ["it's", "don't", "x, y"]),
        ("['\\U0001f468\\u200d\\U0001f469', 'caf\\xe9']", ["\U0001f468\u200d\U0001f469", "caf\u00e9"]),
        ("[]", []),
        ("[x] and (y)", ["[x]", "and", "(y)"]),
        # entities
        ("R&amp;B, rock &#39;n&#39; roll", ["R&B", "rock 'n' roll"]),
        ("R&B; cat", ["R&B", "cat"]),
    ],
)
def test_tags_in_one_text(written, wanted):
    assert tags_of_text(written) == wanted


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("2024-01-02T03:04:05Z", datetime(2024, 1, 2, 3, 4, 5)),
        ("2024-01-02 03:04:05.0", datetime(2024, 1, 2, 3, 4, 5)),
        ("2024-01-02T03:04:05+02:00", datetime(2024, 1, 2, 1, 4, 5)),
        ("2024:01:02 03:04:05", datetime(2024, 1, 2, 3, 4, 5)),
        ("Tue Jan 02 03:04:05 +0000 2024", datetime(2024, 1, 2, 3, 4, 5)),
        (1704164645, datetime(2024, 1, 2, 3, 4, 5)),
        ("1704164645000", datetime(2024, 1, 2, 3, 4, 5)),
        (float("nan"), None),
        (float("inf"), None),
        (1e300, None),
        ("2024-00-00", None),
        ("0001-01-01T00:00:00+05:00", None),
        (True, None),
    ],
)
def test_times(written, wanted):
    assert time_of(written) == wanted


def test_times_beyond_the_calendar_are_left_out(tmp_path):
    taken = pa.array([0, 2**62, -(2**62)], pa.int64()).cast(pa.timestamp("us"))
    pq.write_table(
        pa.table({"id": [*"abc"], "image": [png()] * 3, "tags": [["cat"]] * 3, "taken_at": taken}),
        tmp_path / "x.parquet",
    )
    found = rows_of(Source(format="parquet", uri=str(tmp_path)))
    assert [row["taken_at"] for row in found] == [datetime(1970, 1, 1), None, None]


def test_batches_are_cut_by_bytes(monkeypatch):
    monkeypatch.setattr(raw, "BATCH_BYTES", 100)
    rows = [{"id": str(n), "image": b"x" * size} for n, size in enumerate((98, 1, 500, 10))]  # an id has a byte
    assert [len(batch) for batch in in_batches(rows)] == [2, 1, 1]


def test_what_users_wrote_is_shown_without_control_characters(tmp_path):
    assert shown("a\x1b[31mb\n\u202ec") == "a\\x1b[31mb\\n\\u202ec"
    assert len(shown("x" * 1000)) == 60
    names = ["\x1b]0;pwned\x07", "b"]
    pq.write_table(pa.table({"id": names, "image": [b"", png()], "tags": [["cat"]] * 2}), tmp_path / "x.parquet")
    source = Source(format="parquet", uri=str(tmp_path))
    lines = preview(source, find_shards(source)).lines
    assert "for example \\x1b]0;pwned\\x07: empty" in one_line(lines, "Problems: ")
    assert "".join(lines).isprintable()


@pytest.mark.parametrize("name", ["emoji", "tinyimagenet"])
def test_real_data_are_read(name):
    path = Path(__file__).parents[2] / "shared" / "data" / f"{name}.parquet"
    if not path.exists():
        pytest.skip(f"no data at {path}")
    source = Source(format=guess_format(str(path)), uri=str(path))
    lines = preview(source, find_shards(source)).lines
    assert "Problems: none in 200 images decoded" in lines
    assert lines[-1] == "Split: the source's own"


# The command


def hardmoe(*arguments):
    environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}
    command = [sys.executable, "-m", "pipelines.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_init_says_what_it_found_and_run_ingests_it(posts, tmp_path):
    (tmp_path / "in").mkdir()
    source = WRITERS["yfcc_tars"](posts, tmp_path / "in")
    done = hardmoe("init", tmp_path / "cats", "--source", source.uri, "--images", source.images)
    assert done.returncode == 0, done.stderr
    assert "Found 1 shard of format yfcc" in done.stdout
    study = tmp_path / "cats" / "study.toml"
    ran = hardmoe("run", "--study", study, "--until", "posts")
    assert "1 made, 0 fresh, 0 failed" in ran.stdout, ran.stdout + ran.stderr
    assert (tmp_path / "cats" / ".sources" / "tars.sqlite").exists()
    said = json.loads(hardmoe("status", "--study", study, "--json").stdout)["posts"]
    assert said["read"] == len(posts) == said["accepted"] + said["rejected"]


def test_init_writes_nothing_when_the_source_is_wrong(posts, tmp_path):
    (tmp_path / "x\x1b.parquet").write_bytes(b"no")
    done = hardmoe("init", tmp_path / "cats", "--source", tmp_path / "x\x1b.parquet")
    assert done.returncode == 1
    assert "x\\x1b.parquet is not a readable Parquet file" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "cats").exists()


# What Hugging Face and Spark write


def test_folders_of_hive_are_columns(tmp_path):
    table = pa.table({"id": ["a"], "image": [png()], "tags": [["cat"]]})
    own = table.append_column("split", pa.array(["test"]))
    for folder, one in (("split=train/user=ann%20b", table), ("split=x/user=__HIVE_DEFAULT_PARTITION__", own)):
        (tmp_path / folder).mkdir(parents=True)
        pq.write_table(one, tmp_path / folder / "part-0.parquet")
    source = Source(format="parquet", uri=str(tmp_path))
    wanted = [("train", "ann b"), ("test", None)]  # the file's own column comes first
    assert [(row["split"], row["user"]) for row in rows_of(source)] == wanted
    glob = source.model_copy(update={"uri": str(tmp_path / "split=*" / "**" / "*.parquet")})
    assert [(row["split"], row["user"]) for row in rows_of(glob)] == wanted
    inside = source.model_copy(update={"uri": str(tmp_path / "split=train")})
    assert [(row["split"], row["user"]) for row in rows_of(inside)] == [(None, "ann b")]
    before = find_shards(inside)[0].content_hash
    (tmp_path / "split=train" / "user=ann%20b").rename(tmp_path / "split=train" / "user=bob")
    assert find_shards(inside)[0].content_hash != before


@pytest.mark.parametrize("kind", ["parquet", "arrow", "lance"])
def test_classes_of_hugging_face_are_tags_by_their_names(tmp_path, kind):
    label = {"names": ["cat", "hot dog"], "_type": "ClassLabel"}
    for feature, values in (
        (label, [1, 0, -1, None, 2]),
        ({"feature": label, "_type": "List"}, [[1], [0], [], None, [0, 2]]),
        ([label], [[1], [0], [-1], None, [2]]),
    ):
        said = {"info": {"features": {"label": feature, "image": {"_type": "Image"}}}}
        table = pa.table({"image": [png()] * 5, "id": [*"abcde"], "label": values})
        table = table.replace_schema_metadata({"huggingface": json.dumps(said)})
        if kind == "parquet":
            pq.write_table(table, tmp_path / "x.parquet")
        elif kind == "arrow":
            with pa.ipc.new_stream(tmp_path / "x.arrow", table.schema) as file:
                file.write_table(table)
        else:
            lance.write_dataset(table, str(tmp_path / "x.lance"), mode="overwrite")
        found = rows_of(Source(format=kind, uri=str(tmp_path)))
        assert [row["tags"] or [] for row in found] == [["hot dog"], ["cat"], [], [], []]
        assert [row["reason"] for row in found] == [None] * 4 + ["bad_row"]
        assert found[4]["detail"] == f"class {[0, 2] if values[4] == [0, 2] else [2]}, of 2 named ones"


@pytest.mark.parametrize(
    "said", [b"no", b"{}", b"[]", b'{"info": {"features": {"label": {"_type": "Value"}}}}', b"[" * 9999]
)
def test_numbers_without_names_are_tags_as_they_are(tmp_path, said):
    table = pa.table({"image": [png()], "id": ["a"], "label": [1]}).replace_schema_metadata({"huggingface": said})
    pq.write_table(table, tmp_path / "x.parquet")
    assert rows_of(Source(format="parquet", uri=str(tmp_path)))[0]["tags"] == ["1"]


@pytest.mark.parametrize("image", [{"path": "a.png"}, {"bytes": None, "path": "a.png"}])
def test_images_that_a_struct_names_count_in_its_digest(tmp_path, image):
    (tmp_path / "a.png").write_bytes(png())
    pq.write_table(pa.table({"image": [image], "tags": [["cat"]]}), tmp_path / "x.parquet")
    source = Source(format="parquet", uri=str(tmp_path))
    assert rows_of(source)[0]["image"] == png()
    before = find_shards(source)[0].content_hash
    (tmp_path / "a.png").write_bytes(png() + b"more")
    assert find_shards(source)[0].content_hash != before


# Half a file


@pytest.mark.parametrize("name", ["parquet", "arrow_file", "arrow_stream", "webdataset", "webdataset_gz"])
def test_half_a_new_file_is_named_and_left_out_until_it_is_whole(name, posts, tmp_path):
    whole = WRITERS[name](posts[:20], tmp_path)
    source = whole.model_copy(update={"uri": str(tmp_path)})
    path = Path(find_shards(whole)[0].path)
    data, hashes = path.read_bytes(), ContentHashes()
    (before,) = find_shards(source, hashes)
    other = path.with_name(f"another{''.join(path.suffixes)}")
    other.write_bytes(data[: len(data) // 2])
    unready = []
    assert find_shards(source, hashes, unready) == [before]
    assert [file.path for file in unready] == [str(other)]
    assert f"{other} is" in unready[0].why
    with pytest.raises(ValueError, match=f"{other} is"):
        find_shards(source, hashes)
    other.write_bytes(data)
    unready = []
    assert len(find_shards(source, hashes, unready)) == 2
    assert unready == []
    path.write_bytes(data[: len(data) // 2])  # a file whose posts the study has: they do not leave it for that
    with pytest.raises(ValueError, match=f"{path} is"):
        find_shards(source, hashes, unready)


def test_half_a_new_lance_table_is_named_and_left_out(posts, tmp_path):
    WRITERS["lance"](posts[:20], tmp_path)
    half = tmp_path / "half.lance" / "_versions"
    half.mkdir(parents=True)
    (half / "1.manifest").write_bytes(b"no")
    unready = []
    found = find_shards(Source(format="lance", uri=str(tmp_path)), None, unready)
    assert ([shard.key for shard in found], [file.path for file in unready]) == (["posts"], [str(half.parent)])


def test_a_source_of_nothing_but_half_files_is_an_error(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"a.parquet is not a readable Parquet file"):
        find_shards(Source(format="parquet", uri=str(tmp_path)), None, [])


def test_a_run_goes_on_without_half_a_new_file_and_ends_with_an_error_that_names_it(posts, tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    WRITERS["parquet"](posts, folder)
    half = folder / "half.parquet"
    data = (folder / "posts.parquet").read_bytes()
    half.write_bytes(data[:1000])
    study = demo().model_copy(update={"source": Source(format="parquet", uri=str(folder)), "data": ANYTHING})
    file = tmp_path / "study.toml"
    file.write_text(dump_study(study), "utf-8")

    def run(*arguments):
        command = [sys.executable, "-m", "pipelines.cli.main", *arguments, "--study", str(file)]
        environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    done = run("run", "--until", "posts")
    assert done.returncode == 1
    assert "1 made, 0 fresh, 1 failed" in done.stdout
    warning, error = (line for line in done.stderr.splitlines() if "half.parquet" in line)
    assert warning.startswith(f"Left out until it can be read: {half} is not a readable Parquet file")
    assert error.startswith(f"Error: source {half}: {half} is not a readable Parquet file")
    assert json.loads(run("status", "--json").stdout)["unready"].keys() == {str(half)}
    half.write_bytes(data)
    done = run("run", "--until", "posts")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 made, 1 fresh, 0 failed" in done.stdout


# The sensor


def test_the_sensor_asks_for_each_new_or_changed_shard_once(posts, tmp_path, monkeypatch):
    import dagster as dg

    from moe_core.engine.context import Context
    from moe_core.engine.stage import build
    from moe_core.recipes import small
    from moe_core.stages.graph import GRAPH
    from pipelines import sensors

    (tmp_path / "in").mkdir()
    source = WRITERS["parquet"](posts, tmp_path / "in").model_copy(update={"uri": str(tmp_path / "in")})
    study = small().model_copy(update={"source": source})
    monkeypatch.setattr(sensors, "study", lambda: study)
    monkeypatch.setattr(sensors, "root", lambda: tmp_path)
    assert sensors.new_shards.default_status == dg.DefaultSensorStatus.STOPPED
    with dg.instance_for_test() as instance:

        def look():
            result = sensors.new_shards(dg.build_sensor_context(instance=instance))
            for request in result.dynamic_partitions_requests:
                instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
            return result

        first = look()
        version = Context(study, tmp_path).version("posts", "posts")
        (asked,) = first.run_requests
        assert (asked.partition_key, asked.run_key) == ("posts", f"posts-{version}")
        assert instance.get_dynamic_partitions(str(sensors.SHARDS.name)) == ["posts"]
        assert look().run_requests[0].run_key == asked.run_key  # the daemon starts one run a run key
        context = Context(study, tmp_path)
        build(context, GRAPH["posts"], "posts")
        done = look()
        assert not done.run_requests
        assert done.skip_reason.skip_message == "all 1 shards are ingested"
        pq.write_table(table_of(posts[:9]), tmp_path / "in" / "posts.parquet")
        pq.write_table(table_of(posts[9:20]), tmp_path / "in" / "a.parquet")
        again = look()
        assert [request.partition_key for request in again.run_requests] == ["a", "posts"]
        assert again.run_requests[1].run_key != asked.run_key
        assert again.dynamic_partitions_requests[0].partition_keys == ["a"]
        (tmp_path / "in" / "half.parquet").write_bytes(b"PAR1")
        assert [request.partition_key for request in look().run_requests] == ["a", "posts"]
        for key in ("a", "posts"):
            build(Context(study, tmp_path), GRAPH["posts"], key)
        assert "half.parquet is not a readable Parquet file" in look().skip_reason.skip_message


def test_a_file_that_takes_longer_than_a_tick_is_read_once_beside_the_ticks(tmp_path, posts, monkeypatch):
    """The file's bytes stop coming until the test lets them: a slow disk, at any size."""
    import dagster as dg

    from moe_core.data.sources import files
    from moe_core.recipes import small
    from moe_core.store.hashing import file_hash
    from pipelines import sensors

    (tmp_path / "in").mkdir()
    source = WRITERS["parquet"](posts, tmp_path / "in").model_copy(update={"uri": str(tmp_path / "in")})
    study = small().model_copy(update={"source": source})
    read, go_on = [], threading.Event()

    def slow(path):
        read.append(path.name)
        assert go_on.wait(120)
        return file_hash(path)

    monkeypatch.setattr(files, "file_hash", slow)
    monkeypatch.setattr(files, "LARGE", 1)
    monkeypatch.setattr(sensors, "study", lambda: study)
    monkeypatch.setattr(sensors, "root", lambda: tmp_path)
    monkeypatch.setattr(sensors, "READ_SECONDS", 0.2)
    with dg.instance_for_test() as instance:

        def look():
            return sensors.new_shards(dg.build_sensor_context(instance=instance))

        for _ in range(3):
            said = look()
            assert not said.run_requests
            assert said.skip_reason.skip_message.startswith("new or changed files are read since ")
        assert read == ["posts.parquet"], "the ticks did not read beside each other"
        monkeypatch.setattr(sensors, "READ_SECONDS", 120.0)
        go_on.set()
        (asked,) = look().run_requests
        assert asked.partition_key == "posts"
        assert read == ["posts.parquet"], "a later tick knew it"
        pq.write_table(table_of(posts[:9]), tmp_path / "in" / "posts.parquet")
        (again,) = look().run_requests
        assert again.run_key != asked.run_key
        assert read == ["posts.parquet"] * 2
        shutil.rmtree(tmp_path / "in")
        with pytest.raises(ValueError, match="Parquet"):  # the thread's error is the tick's
            look()
        assert not sensors._looks


def test_a_look_that_ended_between_two_ticks_is_not_the_answer(tmp_path, posts, monkeypatch):
    import dagster as dg

    from moe_core.data.sources import files
    from moe_core.recipes import small
    from moe_core.store.hashing import file_hash
    from pipelines import sensors

    (tmp_path / "in").mkdir()
    source = WRITERS["parquet"](posts, tmp_path / "in").model_copy(update={"uri": str(tmp_path / "in")})
    study = small().model_copy(update={"source": source})
    go_on = threading.Event()
    monkeypatch.setattr(files, "file_hash", lambda path: go_on.wait(120) and file_hash(path))
    monkeypatch.setattr(sensors, "study", lambda: study)
    monkeypatch.setattr(sensors, "root", lambda: tmp_path)
    monkeypatch.setattr(sensors, "READ_SECONDS", 0.2)
    with dg.instance_for_test() as instance:
        assert not sensors.new_shards(dg.build_sensor_context(instance=instance)).run_requests
        go_on.set()
        sensors._looks[tmp_path].thread.join(120)
        pq.write_table(table_of(posts[:9]), tmp_path / "in" / "more.parquet")
        monkeypatch.setattr(sensors, "READ_SECONDS", 120.0)
        found = sensors.new_shards(dg.build_sensor_context(instance=instance)).run_requests
        assert [request.partition_key for request in found] == ["more", "posts"]


def test_what_was_read_before_a_look_was_cut_short_is_not_read_again(tmp_path, monkeypatch):
    from moe_core.data.sources import files
    from moe_core.store.hashing import file_hash

    for name in "abcde":
        (tmp_path / name).write_bytes(name.encode() * 40)
    read = []

    def until_the_fourth(path):
        read.append(path.name)
        if len(read) == 4:
            raise MemoryError
        return file_hash(path)

    monkeypatch.setattr(files, "file_hash", until_the_fourth)
    monkeypatch.setattr(files, "LARGE", 80)
    all_of_them = [files.file_of(tmp_path / name, tmp_path) for name in "abcde"]
    first = ContentHashes(tmp_path / "hashes.json", autosave=True)
    with pytest.raises(MemoryError):
        list(map(first.of, all_of_them))
    again = ContentHashes(tmp_path / "hashes.json", autosave=True)
    files._hash_of_content.cache_clear()  # another process
    assert [again.of(file) for file in all_of_them] == [file_hash(tmp_path / name) for name in "abcde"]
    assert "".join(read) == "abcd" + "cde"


def test_two_who_look_at_a_large_file_at_once_read_it_once(tmp_path, monkeypatch):
    from moe_core.data.sources import files
    from moe_core.store.hashing import file_hash

    (tmp_path / "large").write_bytes(b"x" * 100)
    read, both = [], threading.Barrier(2)

    def slow(path):
        read.append(path)
        return file_hash(path)

    monkeypatch.setattr(files, "file_hash", slow)
    monkeypatch.setattr(files, "LARGE", 100)
    files._hash_of_content.cache_clear()  # as in two processes
    monkeypatch.setattr(files, "_hash_of_content", files._hash_of_content.__wrapped__)
    found = []

    def look():
        hashes = ContentHashes(tmp_path / "hashes.json", autosave=True)
        both.wait()  # neither knows it
        found.append(hashes.of(files.file_of(tmp_path / "large", tmp_path)))

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [file_hash(tmp_path / "large")] * 2
    assert len(read) == 1


@pytest.mark.parametrize(("suffix", "mark"), [(".csv", ","), (".tsv", "\t")])
def test_a_stray_quote_costs_its_line_and_no_other(tmp_path, suffix, mark):
    lines = [f"{n}.jpg{mark}cat{mark}u{n}" for n in range(1000)]
    for bad in (5, 700):
        lines[bad] = f'{bad}.jpg{mark}"cat{mark}u'
    lines[300] = f'300.jpg{mark}"cat\ndog"{mark}u300'  # a quote that is meant, over two lines
    (tmp_path / f"table{suffix}").write_text(f"file{mark}tags{mark}user\n" + "\n".join(lines) + "\n")
    rows = rows_of(Source(format="folder", uri=str(tmp_path)))
    assert len(rows) == 1000
    assert [n for n, row in enumerate(rows) if row["reason"] == "bad_row"] == [5, 700]
    assert rows[300]["tags"] == ["cat", "dog"]


def test_a_row_deleted_from_a_lance_table_changes_its_digest(tmp_path):
    import lance

    table = pa.table({"id": ["a", "b"], "image": [png(), png()], "tags": [["cat"], ["cat"]]})
    data = lance.write_dataset(table, str(tmp_path / "x.lance"))
    source = Source(format="lance", uri=str(tmp_path / "x.lance"))
    before = find_shards(source)[0].content_hash
    data.delete("id = 'b'")
    assert find_shards(source)[0].content_hash != before
    assert [row["id"] for row in rows_of(source)] == ["a"]


def test_an_image_with_an_underscore_before_its_name_counts(tmp_path):
    (tmp_path / "_DSC1.jpg").write_bytes(png())
    (tmp_path / "table.csv").write_text("file,tags\n_DSC1.jpg,cat\n")
    source = Source(format="folder", uri=str(tmp_path))
    before = find_shards(source)[0].content_hash
    (tmp_path / "_DSC1.jpg").write_bytes(png() + b"more")
    assert find_shards(source)[0].content_hash != before


def test_an_image_that_a_parquet_file_names_counts(tmp_path):
    pq.write_table(pa.table({"id": ["a"], "image": ["a.png"], "tags": [["cat"]]}), tmp_path / "x.parquet")
    source = Source(format="parquet", uri=str(tmp_path / "x.parquet"))
    before = find_shards(source)[0].content_hash
    assert [row["reason"] for row in rows_of(source)] == ["no_image_file"]
    (tmp_path / "a.png").write_bytes(png())
    assert find_shards(source)[0].content_hash != before
    assert [row["reason"] for row in rows_of(source)] == [None]
