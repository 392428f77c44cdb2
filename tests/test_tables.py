"""Shards in Lance: replaced, tagged, put back, located, by several processes and in spite of kills."""

import multiprocessing
import os
import signal

import lance
import numpy as np
import pyarrow as pa
import pytest
from lance.dataset import Tags

from moe_core.tables import shards
from moe_core.tables.cleaning import Freed, clean
from moe_core.tables.lance_tags import advance_lance_tags, lance_tags
from moe_core.tables.reading import read_rows
from moe_core.tables.shards import gather, locate, replace_rows, rewrite, scattered, shards_in
from moe_core.tables.versions import pieces_of

SCHEMA = pa.schema([("shard", pa.string()), ("position", pa.int64()), ("id", pa.string())])
PROCESS = multiprocessing.get_context("spawn").Process


def batch(shard, ids, first=0):
    columns = [[shard] * len(ids), list(range(first, first + len(ids))), list(ids)]
    return pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def put(path, shard, ids, lance_tag=None):
    return replace_rows(path, SCHEMA, shard, [batch(shard, ids)], [lance_tag] if lance_tag else ())


def ids(path, version, shard):
    return read_rows(path, version, shard, ["id"])["id"].to_pylist()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "posts.lance"


@pytest.fixture
def small_fragments(monkeypatch):
    monkeypatch.setattr(shards, "ROWS", 2)


def test_a_shard_is_replaced_and_never_doubled(path):
    put(path, "a", ["x", "y"])
    put(path, "b", ["z"])
    version = put(path, "a", ["v"])
    assert ids(path, version, "a") == ["v"]
    assert shards_in(path) == {"a": 1, "b": 1}


def test_no_row_of_a_shard_is_no_error(path):
    version = put(path, "a", [])
    assert ids(path, version, "a") == []
    put(path, "a", ["x"])
    assert shards_in(path) == {"a": 1}
    put(path, "a", [])
    assert shards_in(path) == {}


def test_rows_out_of_order_are_refused(path):
    with pytest.raises(AssertionError, match="rows of a are out of order"):
        replace_rows(path, SCHEMA, "a", [batch("a", ["x", "y"], 1), batch("a", ["z"], 2)])
    assert shards_in(path) == {}


def test_a_fragment_holds_one_shard_and_reading_a_shard_opens_no_other(path, small_fragments):
    put(path, "a", "abcde")
    version = put(path, "b", "fg")
    pieces = pieces_of(lance.dataset(str(path)))
    assert {shard: [(p.first, p.rows) for p in mine] for shard, mine in pieces.items()} == {
        "a": [(0, 2), (2, 2), (4, 1)],
        "b": [(5, 2)],
    }
    for piece in pieces["a"]:
        (path / "data" / piece.file).unlink()
    assert ids(path, version, "b") == ["f", "g"]


def test_a_pin_names_its_rows_whatever_is_ingested_later(path):
    put(path, "a", ["x"], "posts.a.1")
    put(path, "a", ["y"], "posts.a.2")
    put(path, "b", ["z"], "posts.b.1")
    clean(path)
    assert (ids(path, "posts.a.1", "a"), ids(path, "posts.a.2", "a")) == (["x"], ["y"])


def test_a_pin_that_is_gone_says_what_to_do(path):
    put(path, "a", ["x"])
    with pytest.raises(ValueError, match=r"has no Lance tag posts.a.9 \(was it cleaned up\?\): ingest again"):
        read_rows(path, "posts.a.9", "a", ["id"])


def test_pins_whose_rows_are_alive_move_to_the_latest_version_and_no_others(path):
    put(path, "a", ["x"], "posts.a.1")
    put(path, "a", ["y"], "posts.a.2")
    last = put(path, "b", ["z"], "posts.b.1")
    old = lance_tags(path)["posts.a.1"]
    advance_lance_tags(path)
    assert lance_tags(path) == {"posts.a.1": old, "posts.a.2": last, "posts.b.1": last}


def test_other_columns_begin_the_data_set_again_and_tags_keep_the_old_one(path):
    put(path, "a", ["x"], "posts.a.1")
    wider = SCHEMA.append(pa.field("user", pa.string()))
    row = pa.record_batch([pa.array([v]) for v in ("b", 0, "z", "ann")], schema=wider)
    version = replace_rows(path, wider, "b", [row])
    assert read_rows(path, version, "b", ["user"])["user"].to_pylist() == ["ann"]
    assert ids(path, "posts.a.1", "a") == ["x"]
    with pytest.raises(ValueError, match="with other columns now: ingest it again"):
        locate(path, [("a", "posts.a.1"), ("b", version)])


def taken(path, located):
    version, runs = located
    offsets_N = runs[np.arange(len(runs))]
    return lance.dataset(str(path), version=version).take(offsets_N, columns=["id"])["id"].to_pylist()


def test_posts_are_located_in_the_one_order(path, small_fragments):
    put(path, "b", "uvw", "posts.b.1")
    put(path, "a", "xyz", "posts.a.1")
    found = locate(path, [("a", "posts.a.1"), ("b", "posts.b.1")])
    assert taken(path, found) == list("xyzuvw")
    version, runs = found
    assert version == lance.dataset(str(path)).version
    assert runs[np.array([0])].dtype == np.int64


def test_rows_that_were_replaced_since_are_put_back_when_they_are_asked_for(path, small_fragments):
    put(path, "a", "xyz", "posts.a.1")
    put(path, "b", "uvw", "posts.b.1")
    put(path, "a", "k", "posts.a.2")
    files = set(os.listdir(path / "data"))
    found = locate(path, [("a", "posts.a.1"), ("b", "posts.b.1")])
    assert taken(path, found) == list("xyzuvw")
    assert set(os.listdir(path / "data")) == files, "no row is written again"
    assert lance_tags(path)["posts.a.1"] == found[0]
    assert ids(path, "posts.a.2", "a") == ["k"]
    assert gather(path, [("a", "posts.a.1")]) == found[0]
    clean(path)
    assert taken(path, locate(path, [("a", "posts.a.2"), ("b", "posts.b.1")])) == list("kuvw")


def test_a_shard_that_is_removed_leaves_the_latest_version_and_stays_under_its_pin(path):
    put(path, "a", ["x"], "posts.a.1")
    put(path, "b", ["z"])
    gather(path, [("a", None)])
    assert shards_in(path) == {"b": 1}
    assert ids(path, "posts.a.1", "a") == ["x"]


def test_scattered_fragments_are_written_again_and_pins_follow(path, monkeypatch):
    monkeypatch.setattr(shards, "ROWS", 1)
    put(path, "a", "xyz", "posts.a.1")
    put(path, "b", "uvw", "posts.b.1")
    monkeypatch.setattr(shards, "ROWS", 100)
    assert scattered(path) == ["a", "b"]
    rewrite(path, "a")
    assert scattered(path) == ["b"]
    assert [p.rows for p in pieces_of(lance.dataset(str(path)))["a"]] == [3]
    assert clean(path).files == 3
    assert (ids(path, "posts.a.1", "a"), ids(path, "posts.b.1", "b")) == (list("xyz"), list("uvw"))


def test_a_dry_clean_says_what_a_real_one_removes(path):
    put(path, "a", ["x"])
    put(path, "a", ["y"])
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    said = clean(path, dry_run=True)
    assert before == {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    assert clean(path) == said
    assert (said.versions, said.files) == (2, 1)
    assert len(os.listdir(path / "data")) == 1
    assert clean(path) == Freed()


def _ingest(path, shards, rounds):
    for n in range(rounds):
        for shard in shards:
            put(path, shard, [f"{shard}{n}-{i}" for i in range(20)], f"posts.{shard}.{n}")


def run_all(processes):
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


ROUNDS = [6, pytest.param(100, marks=pytest.mark.soak)]


@pytest.mark.parametrize("rounds", ROUNDS)
def test_eight_processes_ingest_eight_shards_at_once_and_nothing_is_lost(path, rounds):
    keys = [f"s{n}" for n in range(8)]
    assert run_all([PROCESS(target=_ingest, args=(path, [shard], rounds)) for shard in keys]) == [0] * 8
    assert shards_in(path) == dict.fromkeys(keys, 20)
    for shard in keys:
        for n in range(rounds):
            assert ids(path, f"posts.{shard}.{n}", shard)[0] == f"{shard}{n}-0"


def _ingest_as(path, name, rounds):
    for _ in range(rounds):
        put(path, "a", [f"{name}-{i}" for i in range(20)])


@pytest.mark.parametrize("rounds", ROUNDS)
def test_eight_processes_ingest_the_same_shard_and_one_copy_is_left(path, rounds):
    assert run_all([PROCESS(target=_ingest_as, args=(path, n, rounds)) for n in range(8)]) == [0] * 8
    (found,) = {i.split("-")[0] for i in ids(path, lance.dataset(str(path)).version, "a")}
    assert shards_in(path) == {"a": 20}
    assert found in "01234567"


def test_a_commit_that_another_preempts_is_tried_again(path, monkeypatch):
    put(path, "a", ["x"])
    commit, preempted = lance.LanceDataset.commit, []

    def late(uri, change, read_version):
        if not preempted:  # someone outside our locks replaces the same rows first
            preempted.append(True)
            lance.dataset(str(path)).delete("shard = 'a'")
        return commit(uri, change, read_version=read_version)

    monkeypatch.setattr(lance.LanceDataset, "commit", staticmethod(late))
    version = put(path, "a", ["y"])
    assert ids(path, version, "a") == ["y"]
    assert shards_in(path) == {"a": 1}


def _die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def _killed_at(path, point):
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

    replace_rows(path, SCHEMA, "a", rows(), ["posts.a.2"])


@pytest.mark.parametrize("point", ["before the write", "in the write", "after the write", "after the commit"])
def test_a_writer_killed_at_any_point_leaves_the_pinned_rows_and_is_done_again(path, point):
    put(path, "a", ["x"], "posts.a.1")
    assert run_all([PROCESS(target=_killed_at, args=(path, point))]) == [-signal.SIGKILL]
    assert ids(path, "posts.a.1", "a") == ["x"]
    assert "posts.a.2" not in lance_tags(path)
    assert shards_in(path) == {"a": 5000 if point == "after the commit" else 1}
    put(path, "a", ["y", "z"], "posts.a.2")
    clean(path)
    assert (ids(path, "posts.a.1", "a"), ids(path, "posts.a.2", "a")) == (["x"], ["y", "z"])
    assert len(os.listdir(path / "data")) == 2, "what the dead one wrote is gone"


def _hold(path, ready, end):
    def rows():
        yield batch("b", ["z"])
        ready.set()
        end.wait(60)

    replace_rows(path, SCHEMA, "b", rows())


def test_nothing_is_cleaned_while_rows_are_written(path):
    from moe_core.errors import LockHeld

    put(path, "a", ["x"])
    context = multiprocessing.get_context("spawn")
    ready, end = context.Event(), context.Event()
    writer = context.Process(target=_hold, args=(path, ready, end))
    writer.start()
    assert ready.wait(60)
    with pytest.raises(LockHeld, match="held by another process"):
        clean(path)
    end.set()
    writer.join()
    assert shards_in(path) == {"a": 1, "b": 1}


def test_a_commit_between_look_and_commit_is_looked_at_again(path, monkeypatch):
    put(path, "a", ["old"], "posts.a.1")
    put(path, "b", ["kept"], "posts.b.1")
    put(path, "a", ["new"], "posts.a.2")
    look, calls = shards.outdated, iter(range(10))

    def late(*arguments):
        found = look(*arguments)
        if next(calls) == 0:
            put(path, "b", ["another"], "posts.b.2")
        return found

    monkeypatch.setattr(shards, "outdated", late)
    version, _ = locate(path, [("a", "posts.a.1"), ("b", "posts.b.1")])
    assert ids(path, version, "a") == ["old"]
    assert ids(path, version, "b") == ["kept"]


def test_vectors_of_no_rows_are_an_empty_data_set(path):
    from moe_core.tables.vectors import vectors_in, write_vectors

    assert write_vectors(path, {"id": pa.string()}, "feature", 4, iter(()), index=True) == 0
    assert list(vectors_in(path, "feature")) == []


def test_a_commit_looks_at_no_other_pin_and_opens_no_data_file(path, monkeypatch):
    put(path, "a", ["x"], "posts.a.1")
    for file in (path / "data").iterdir():
        file.unlink()
    monkeypatch.setattr(Tags, "list", lambda _: pytest.fail("all tags are listed"))
    version = put(path, "b", ["z"], "posts.b.1")
    assert (ids(path, version, "b"), ids(path, "posts.b.1", "b")) == (["z"], ["z"])


def test_a_data_file_of_something_else_is_said(path):
    put(path, "a", ["x"])
    lance.write_dataset(pa.Table.from_batches([batch("b", ["z"])]), str(path), mode="append")
    with pytest.raises(ValueError, match=r"wanted <shard>\.<SHA-256>\.lance: .* ingest again"):
        put(path, "a", ["y"])
