"""Ids are found in whatever form an encoder left them, and not inside of other ids, words and numbers."""

import json
import sqlite3
import zlib

import pytest

from helpers.escapes import FORMS, ODD
from moe_core.data.traces import CHUNK, Traces, telling


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("form", FORMS)
def test_an_id_is_found_however_it_was_escaped(name, form):
    there = FORMS[form](ODD[name])
    traces = Traces([ODD[name], "another-id-1"])
    assert traces.within(b"post " + there + b": no_tags")
    assert traces.within(b'["' + there + b'"]')
    assert traces.within(there)
    assert not Traces(["another-id-1"]).within(there)


def test_text_of_utf_16_is_read_where_its_mark_says_so():
    assert Traces(["café-1"]).within("id café-1".encode("utf-16"))


def test_a_long_id_that_was_cut_to_be_shown_is_found():
    from moe_core.text import shown

    assert Traces(["y" * 300 + "1"]).within(shown("y" * 300 + "1").encode())


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("12345-a", b"12345-ab x12345-a 12345-a_b 12345-a-b"),
        ("123456", b"0.123456 1123456 1234567 ab123456 123456.5 00-123456"),
        ("é", "café idée".encode()),
        ("post-1xx", "post-1xxé épost-1xx".encode()),
        ("2024-01", b"2024-01-15T10:00"),
    ],
)
def test_an_id_inside_of_another_or_of_a_number_is_none(text, other):
    assert not Traces([text]).within(other)
    assert Traces([text]).within(other + b" (" + text.encode() + b")")


def test_ids_that_any_text_may_hold_are_not_looked_for():
    assert not any(map(telling, ["1", "12345", "a", "summer", "-------", "", "ab-1"]))
    traces = Traces(["1", "summer"])
    assert not traces
    assert traces.short == {"1", "summer"}
    assert not traces.within(b'{"read": 1, "tags": ["summer"]}')


def test_an_id_across_two_blocks_of_a_file_is_found(tmp_path):
    with open(tmp_path / "log", "wb") as file:
        file.seek(CHUNK - 5)
        file.write(b" post-000123 ")
    assert Traces(["post-000123"]).occur_in(tmp_path / "log")
    assert not Traces(["post-000124"]).occur_in(tmp_path / "log")


def test_a_long_text_of_a_database_is_found_though_it_is_scattered_over_pages(tmp_path):
    name = "é" * 5000 + "-1"
    with sqlite3.connect(tmp_path / "a.db") as database:
        database.execute("CREATE TABLE events (run_id TEXT, event TEXT)")
        database.execute("INSERT INTO events VALUES ('r1', ?)", (json.dumps({"id": name}),))
        database.execute("CREATE TABLE snapshots (body BLOB)")
        database.execute("INSERT INTO snapshots VALUES (?)", (zlib.compress(b'"compressed-1"'),))
    database.close()
    rows = list(Traces([name]).rows_with_ids(tmp_path / "a.db"))
    assert [(table, row["run_id"]) for table, row in rows] == [("events", b"r1")]
    assert Traces([name]).occur_in(tmp_path / "a.db")
    assert Traces(["compressed-1"]).occur_in(tmp_path / "a.db")
    assert not Traces(["compressed-2"]).occur_in(tmp_path / "a.db")
