"""Shards in Lance: replaced, tagged, put back, located, by several processes and in spite of kills."""

import multiprocessing
import os
import signal

import lance
import numpy as np
import pyarrow as pa
import pytest
from lance.dataset import Tags

from helpers.shard_rows import PROCESS, SCHEMA, batch, ids, put, run_all
from moe_core.tables import shards
from moe_core.tables.cleaning import Freed, clean
from moe_core.tables.lance_tags import advance_lance_tags, lance_tags
from moe_core.tables.location import LocalTable
from moe_core.tables.reading import read_rows
from moe_core.tables.shards import gather, locate, replace_rows, rewrite, scattered, shards_in
from moe_core.tables.versions import pieces_of


@pytest.fixture
def table(tmp_path):
    return LocalTable(tmp_path / "posts.lance")


@pytest.fixture
def small_fragments(monkeypatch):
    monkeypatch.setattr(shards, "ROWS", 2)


def test_a_shard_is_replaced_and_never_doubled(table):
    put(table, "a", ["x", "y"])
    put(table, "b", ["z"])
    version = put(table, "a", ["v"])
    assert ids(table, version, "a") == ["v"]
    assert shards_in(table) == {"a": 1, "b": 1}


def test_no_row_of_a_shard_is_no_error(table):
    version = put(table, "a", [])
    assert ids(table, version, "a") == []
    put(table, "a", ["x"])
    assert shards_in(table) == {"a": 1}
    put(table, "a", [])
    assert shards_in(table) == {}


def test_rows_out_of_order_are_refused(table):
    with pytest.raises(AssertionError, match="rows of a are out of order"):
        replace_rows(table, SCHEMA, "a", [batch("a", ["x", "y"], 1), batch("a", ["z"], 2)])
    assert shards_in(table) == {}


def test_a_fragment_holds_one_shard_and_reading_a_shard_opens_no_other(table, small_fragments):
    put(table, "a", "abcde")
    version = put(table, "b", "fg")
    pieces = pieces_of(lance.dataset(str(table)))
    assert {shard: [(p.first, p.rows) for p in mine] for shard, mine in pieces.items()} == {
        "a": [(0, 2), (2, 2), (4, 1)],
        "b": [(5, 2)],
    }
    for piece in pieces["a"]:
        (table.location / "data" / piece.file).unlink()
    assert ids(table, version, "b") == ["f", "g"]


def test_a_pin_names_its_rows_whatever_is_ingested_later(table):
    put(table, "a", ["x"], "posts.a.1")
    put(table, "a", ["y"], "posts.a.2")
    put(table, "b", ["z"], "posts.b.1")
    clean(table)
    assert (ids(table, "posts.a.1", "a"), ids(table, "posts.a.2", "a")) == (["x"], ["y"])


def test_a_pin_that_is_gone_says_what_to_do(table):
    put(table, "a", ["x"])
    with pytest.raises(ValueError, match=r"has no Lance tag posts.a.9 \(was it cleaned up\?\): ingest again"):
        read_rows(table, "posts.a.9", "a", ["id"])


def test_pins_whose_rows_are_alive_move_to_the_latest_version_and_no_others(table):
    put(table, "a", ["x"], "posts.a.1")
    put(table, "a", ["y"], "posts.a.2")
    last = put(table, "b", ["z"], "posts.b.1")
    old = lance_tags(table)["posts.a.1"]
    advance_lance_tags(table)
    assert lance_tags(table) == {"posts.a.1": old, "posts.a.2": last, "posts.b.1": last}


def test_other_columns_begin_the_data_set_again_and_tags_keep_the_old_one(table):
    put(table, "a", ["x"], "posts.a.1")
    other = SCHEMA.insert(1, pa.field("user", pa.string()))
    row = pa.record_batch([pa.array([v]) for v in ("b", "ann", 0, "z")], schema=other)
    version = replace_rows(table, other, "b", [row])
    assert read_rows(table, version, "b", ["user"])["user"].to_pylist() == ["ann"]
    assert ids(table, "posts.a.1", "a") == ["x"]
    with pytest.raises(ValueError, match="with other columns now: ingest it again"):
        locate(table, [("a", "posts.a.1"), ("b", version)])


def test_columns_that_come_at_the_end_are_null_in_the_rows_that_are_there(table):
    put(table, "a", ["x"], "posts.a.1")
    wider = SCHEMA.append(pa.field("user", pa.string()))
    row = pa.record_batch([pa.array([v]) for v in ("b", 0, "z", "ann")], schema=wider)
    version = replace_rows(table, wider, "b", [row], ["posts.b.1"])
    assert read_rows(table, version, "b", ["user"])["user"].to_pylist() == ["ann"]
    assert read_rows(table, version, "a", ["id", "user"]).to_pylist() == [{"id": "x", "user": None}]
    assert taken(table, locate(table, [("a", "posts.a.1"), ("b", "posts.b.1")])) == ["x", "z"]


def taken(table, located):
    version, runs = located
    offsets_N = runs[np.arange(len(runs))]
    return lance.dataset(str(table), version=version).take(offsets_N, columns=["id"])["id"].to_pylist()


def test_posts_are_located_in_the_one_order(table, small_fragments):
    put(table, "b", "uvw", "posts.b.1")
    put(table, "a", "xyz", "posts.a.1")
    found = locate(table, [("a", "posts.a.1"), ("b", "posts.b.1")])
    assert taken(table, found) == list("xyzuvw")
    version, runs = found
    assert version == lance.dataset(str(table)).version
    assert runs[np.array([0])].dtype == np.int64


def test_rows_that_were_replaced_since_are_put_back_when_they_are_asked_for(table, small_fragments):
    put(table, "a", "xyz", "posts.a.1")
    put(table, "b", "uvw", "posts.b.1")
    put(table, "a", "k", "posts.a.2")
    files = set(os.listdir(table.location / "data"))
    found = locate(table, [("a", "posts.a.1"), ("b", "posts.b.1")])
    assert taken(table, found) == list("xyzuvw")
    assert set(os.listdir(table.location / "data")) == files, "no row is written again"
    assert lance_tags(table)["posts.a.1"] == found[0]
    assert ids(table, "posts.a.2", "a") == ["k"]
    assert gather(table, [("a", "posts.a.1")]) == found[0]
    clean(table)
    assert taken(table, locate(table, [("a", "posts.a.2"), ("b", "posts.b.1")])) == list("kuvw")


def test_a_shard_that_is_removed_leaves_the_latest_version_and_stays_under_its_pin(table):
    put(table, "a", ["x"], "posts.a.1")
    put(table, "b", ["z"])
    gather(table, [("a", None)])
    assert shards_in(table) == {"b": 1}
    assert ids(table, "posts.a.1", "a") == ["x"]


def test_scattered_fragments_are_written_again_and_pins_follow(table, monkeypatch):
    monkeypatch.setattr(shards, "ROWS", 1)
    put(table, "a", "xyz", "posts.a.1")
    put(table, "b", "uvw", "posts.b.1")
    monkeypatch.setattr(shards, "ROWS", 100)
    assert scattered(table) == ["a", "b"]
    rewrite(table, "a")
    assert scattered(table) == ["b"]
    assert [p.rows for p in pieces_of(lance.dataset(str(table)))["a"]] == [3]
    assert clean(table).files == 3
    assert (ids(table, "posts.a.1", "a"), ids(table, "posts.b.1", "b")) == (list("xyz"), list("uvw"))


def test_a_dry_clean_says_what_a_real_one_removes(table):
    put(table, "a", ["x"])
    put(table, "a", ["y"])
    before = {p: p.stat().st_mtime_ns for p in table.location.rglob("*")}
    said = clean(table, dry_run=True)
    assert before == {p: p.stat().st_mtime_ns for p in table.location.rglob("*")}
    assert clean(table) == said
    assert (said.versions, said.files) == (2, 1)
    assert len(os.listdir(table.location / "data")) == 1
    assert clean(table) == Freed()


def _ingest(table, shards, rounds):
    for n in range(rounds):
        for shard in shards:
            put(table, shard, [f"{shard}{n}-{i}" for i in range(20)], f"posts.{shard}.{n}")


ROUNDS = [6, pytest.param(100, marks=pytest.mark.soak)]


@pytest.mark.parametrize("rounds", ROUNDS)
def test_eight_processes_ingest_eight_shards_at_once_and_nothing_is_lost(table, rounds):
    keys = [f"s{n}" for n in range(8)]
    assert run_all([PROCESS(target=_ingest, args=(table, [shard], rounds)) for shard in keys]) == [0] * 8
    assert shards_in(table) == dict.fromkeys(keys, 20)
    for shard in keys:
        for n in range(rounds):
            assert ids(table, f"posts.{shard}.{n}", shard)[0] == f"{shard}{n}-0"


def _ingest_as(table, name, rounds):
    for _ in range(rounds):
        put(table, "a", [f"{name}-{i}" for i in range(20)])


@pytest.mark.parametrize("rounds", ROUNDS)
def test_eight_processes_ingest_the_same_shard_and_one_copy_is_left(table, rounds):
    assert run_all([PROCESS(target=_ingest_as, args=(table, n, rounds)) for n in range(8)]) == [0] * 8
    (found,) = {i.split("-")[0] for i in ids(table, lance.dataset(str(table)).version, "a")}
    assert shards_in(table) == {"a": 20}
    assert found in "01234567"


def test_a_commit_that_another_preempts_is_tried_again(table, monkeypatch):
    put(table, "a", ["x"])
    commit, preempted = lance.LanceDataset.commit, []

    def late(uri, change, read_version):
        if not preempted:  # someone outside our locks replaces the same rows first
            preempted.append(True)
            lance.dataset(str(table)).delete("shard = 'a'")
        return commit(uri, change, read_version=read_version)

    monkeypatch.setattr(lance.LanceDataset, "commit", staticmethod(late))
    version = put(table, "a", ["y"])
    assert ids(table, version, "a") == ["y"]
    assert shards_in(table) == {"a": 1}


def _die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def _killed_at(table, point):
    if point == "before the write":
        from lance import fragment

        fragment.write_fragments = _die
    elif point == "after the write":
        lance.LanceDataset.commit = staticmethod(_die)
    elif point == "after the commit":
        shards.put_lance_tag = _die

    def rows():
        yield batch("a", [f"n{i}" for i in range(5000)])
        if point == "in the write":
            _die()

    replace_rows(table, SCHEMA, "a", rows(), ["posts.a.2"])


@pytest.mark.parametrize("point", ["before the write", "in the write", "after the write", "after the commit"])
def test_a_writer_killed_at_any_point_leaves_the_pinned_rows_and_is_done_again(table, point):
    put(table, "a", ["x"], "posts.a.1")
    assert run_all([PROCESS(target=_killed_at, args=(table, point))]) == [-signal.SIGKILL]
    assert ids(table, "posts.a.1", "a") == ["x"]
    assert "posts.a.2" not in lance_tags(table)
    assert shards_in(table) == {"a": 5000 if point == "after the commit" else 1}
    put(table, "a", ["y", "z"], "posts.a.2")
    clean(table)
    assert (ids(table, "posts.a.1", "a"), ids(table, "posts.a.2", "a")) == (["x"], ["y", "z"])
    assert len(os.listdir(table.location / "data")) == 2, "what the dead one wrote is gone"


def _hold(table, ready, end):
    def rows():
        yield batch("b", ["z"])
        ready.set()
        end.wait(60)

    replace_rows(table, SCHEMA, "b", rows())


def test_nothing_is_cleaned_while_rows_are_written(table):
    from moe_core.errors import LockHeld

    put(table, "a", ["x"])
    context = multiprocessing.get_context("spawn")
    ready, end = context.Event(), context.Event()
    writer = context.Process(target=_hold, args=(table, ready, end))
    writer.start()
    assert ready.wait(60)
    with pytest.raises(LockHeld, match="held by another process"):
        clean(table)
    end.set()
    writer.join()
    assert shards_in(table) == {"a": 1, "b": 1}


def test_a_commit_between_look_and_commit_is_looked_at_again(table, monkeypatch):
    put(table, "a", ["old"], "posts.a.1")
    put(table, "b", ["kept"], "posts.b.1")
    put(table, "a", ["new"], "posts.a.2")
    look, calls = shards.outdated, iter(range(10))

    def late(*arguments):
        found = look(*arguments)
        if next(calls) == 0:
            put(table, "b", ["another"], "posts.b.2")
        return found

    monkeypatch.setattr(shards, "outdated", late)
    version, _ = locate(table, [("a", "posts.a.1"), ("b", "posts.b.1")])
    assert ids(table, version, "a") == ["old"]
    assert ids(table, version, "b") == ["kept"]


def test_vectors_of_no_rows_are_an_empty_data_set(tmp_path):
    from moe_core.tables.vectors import vectors_in, write_vectors

    assert write_vectors(tmp_path / "x.lance", {"id": pa.string()}, "feature", 4, iter(())) == 0
    assert list(vectors_in(tmp_path / "x.lance", "feature")) == []


def test_a_commit_looks_at_no_other_pin_and_opens_no_data_file(table, monkeypatch):
    put(table, "a", ["x"], "posts.a.1")
    for file in (table.location / "data").iterdir():
        file.unlink()
    monkeypatch.setattr(Tags, "list", lambda _: pytest.fail("all tags are listed"))
    version = put(table, "b", ["z"], "posts.b.1")
    assert (ids(table, version, "b"), ids(table, "posts.b.1", "b")) == (["z"], ["z"])


def test_a_data_file_of_something_else_is_said(table):
    put(table, "a", ["x"])
    lance.write_dataset(pa.Table.from_batches([batch("b", ["z"])]), str(table), mode="append")
    with pytest.raises(ValueError, match=r"wanted <shard>\.<SHA-256>\.lance: .* ingest again"):
        put(table, "a", ["y"])
