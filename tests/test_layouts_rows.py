"""Tags in one text, and posts that are spread over several rows."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.layouts import LABELS, ingested, picture, rows_of, table
from moe_core.data.sources.guessing import guess_format
from moe_core.settings import Source


def tags_of(source):
    return [(row["id"], row["tags"]) for row in rows_of(source)]


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
