"""Wrong types, broken and odd rows, endless lines: counted with a reason, and no other row is lost."""

import ast
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.formats import WRITERS, random_posts, tar_of, yfcc_line
from helpers.reading import png, reasons, rows_of, said
from moe_core.data.sources.guessing import guess_format
from moe_core.data.sources.text_values import MAX_LINE
from moe_core.errors import BadSource
from moe_core.settings import Source


@pytest.fixture(scope="module")
def posts():
    return random_posts()


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
    assert "its first line has 2 tab-separated fields, wanted YFCC100M's 23 or 25" in said(source)
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
    with pytest.raises(BadSource, match="holds arrow and parquet: choose one with --format"):
        guess_format(str(tmp_path))
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(BadSource, match="is of no known format"):
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
from moe_core.data.sources.shards import find_shards, read_shard
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
