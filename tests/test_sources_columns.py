"""What the columns of a source mean: ids, text, tags, times, classes, folders of Hive."""

import json
from datetime import datetime

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.reading import png, reasons, rows_of
from moe_core.data.sources.columns import choose
from moe_core.data.sources.shards import find_shards
from moe_core.data.sources.text_values import tags_of_text, time_of
from moe_core.errors import BadSource
from moe_core.settings import Source


def test_ids_of_tables(tmp_path):
    def ids(column, **settings):
        pq.write_table(pa.table({**column, "image": [png()] * 2, "tags": [["cat"]] * 2}), tmp_path / "x.parquet")
        return [row["id"] for row in rows_of(Source(format="parquet", uri=str(tmp_path), **settings))]

    assert ids({"id": [1, 2**62]}) == ["1", str(2**62)]
    assert ids({"id": [3.0, None]}) == ["3", None]
    assert ids({"id": pa.array(["a", "b"]).dictionary_encode()}) == ["a", "b"]
    assert ids({}, id_column="#row") == ["x/0", "x/1"]
    with pytest.raises(BadSource, match=r'set source.id_column = "#row" to number the rows'):
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
