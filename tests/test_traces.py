"""Ids are found in whatever form an encoder left them, and not inside of other ids, words and numbers."""

import html
import json
import sqlite3
import zlib
from urllib.parse import quote

import pytest

from moe_core.data.traces import CHUNK, Traces, telling

ODD = {
    "accent": "café-1",
    "quote": 'a"b-123456',
    "backslash": "back\\slash-99",
    "windows": "C:\\new\\temp1",
    "line end": "line\nend-77",
    "line separator": "\u2028sep-12345",
    "leading space": " leading-1",
    "emoji": "cat🐱",
    "one letter": "é",
    "600 characters": "x" * 599 + "1",
    "digits": "0012345678",
    "backslash at its end": "tail-of-1\\",
    "percent": "100%25-off",
    "entity": "&amp;id-1234",
    "a name that is no UTF-8": "\udce9-name-1",
}


def plain(text):
    return text.encode("utf-8", "surrogatepass")


FORMS = {
    "plain": plain,
    "JSON": lambda text: json.dumps(text).encode(),
    "JSON in JSON": lambda text: json.dumps(json.dumps({"a": [text]})).encode(),
    "JSON in JSON in JSON": lambda text: json.dumps(json.dumps(json.dumps([text]))).encode(),
    "JSON with upper case": lambda text: json.dumps(text).replace("\\u00e9", "\\u00E9").encode(),
    "JSON of UTF-8": lambda text: plain(json.dumps(text, ensure_ascii=False)),
    "repr": lambda text: plain(repr(text)),
    "ascii": lambda text: ascii(text).encode(),
    "repr of bytes": lambda text: repr(plain(text)).encode(),
    "percent": lambda text: quote(text, safe="", errors="surrogatepass").encode(),
    "percent of percent": lambda text: quote(quote(text, safe="", errors="surrogatepass")).encode(),
    "HTML": lambda text: plain(html.escape(text)),
    "HTML numbers": lambda text: "".join(f"&#{ord(c)};" for c in text).encode(),
    "HTML hexadecimal": lambda text: "".join(f"&#x{ord(c):X};" for c in text).encode(),
}


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
    assert Traces(["post-000123"]).says(tmp_path / "log")
    assert not Traces(["post-000124"]).says(tmp_path / "log")


def test_a_long_text_of_a_database_is_found_though_it_is_scattered_over_pages(tmp_path):
    name = "é" * 5000 + "-1"
    with sqlite3.connect(tmp_path / "a.db") as database:
        database.execute("CREATE TABLE events (run_id TEXT, event TEXT)")
        database.execute("INSERT INTO events VALUES ('r1', ?)", (json.dumps({"id": name}),))
        database.execute("CREATE TABLE snapshots (body BLOB)")
        database.execute("INSERT INTO snapshots VALUES (?)", (zlib.compress(b'"compressed-1"'),))
    database.close()
    rows = list(Traces([name]).rows_that_say(tmp_path / "a.db"))
    assert [(table, row["run_id"]) for table, row in rows] == [("events", b"r1")]
    assert Traces([name]).says(tmp_path / "a.db")
    assert Traces(["compressed-1"]).says(tmp_path / "a.db")
    assert not Traces(["compressed-2"]).says(tmp_path / "a.db")
