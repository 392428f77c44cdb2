"""Shards in a data set in a bucket of a real server: as in a folder, without a lock for commits."""

import os
import random
import signal
import threading
from types import SimpleNamespace

import lance
import numpy as np
import pyarrow as pa
import pytest

from helpers import seaweed
from helpers.flaky import flaky
from helpers.shard_rows import OVERTAKEN, PROCESS, SCHEMA, batch, bucket_table, ids, put, put_in_bucket, run_all
from helpers.without_controls import quick_study
from moe_core.data.ingest import ingest
from moe_core.data.loading import Place, open_posts, read_labels
from moe_core.data.sources.shards import find_shards, read_shard
from moe_core.data.vocabulary import Vocabulary
from moe_core.errors import BadSetting, LockHeld, MissingInput, StorageFailed
from moe_core.settings import Data, Source
from moe_core.stages.data.rows import stored_counts
from moe_core.store.layout import Layout
from moe_core.store.leases import Pace
from moe_core.store.protocols import open_store
from moe_core.tables import shards
from moe_core.tables.bucket import BucketTable
from moe_core.tables.cleaning import Freed, clean, fence, release, search
from moe_core.tables.lance_tags import advance_lance_tags, lance_tags
from moe_core.tables.location import Tables, tables_in, tables_of
from moe_core.tables.reading import read_rows, scan_rows, take_rows
from moe_core.tables.shards import gather, locate, replace_rows, rewrite, scattered, shards_in, values_in
from moe_core.tables.versions import damage, latest_pieces


@pytest.fixture
def table(server, tmp_path):
    return bucket_table(server.endpoint, server.place(tmp_path).uri, tmp_path)


def data_files(table):
    return [entry.name.rpartition("/")[2] for entry in table.place.names("posts.lance/data")]


def test_shards_are_replaced_tagged_located_put_back_and_cleaned_up(table, monkeypatch):
    assert (table.exists(), shards_in(table), lance_tags(table), clean(table)) == (False, {}, {}, Freed())
    monkeypatch.setattr(shards, "ROWS", 2)
    put(table, "a", "xyz", "posts.a.1")
    put(table, "b", "uvw", "posts.b.1")
    put(table, "a", "k", "posts.a.2")
    assert (shards_in(table), values_in(table, "a", "id")) == ({"a": 1, "b": 3}, {"k": 1})
    assert (ids(table, "posts.a.1", "a"), ids(table, "posts.a.2", "a")) == (list("xyz"), ["k"])
    assert [batch["id"].to_pylist() for batch in scan_rows(table, "posts.b.1", "b", ["id"], 2)] == [["u", "v"], ["w"]]
    files = data_files(table)
    version, runs = locate(table, [("a", "posts.a.1"), ("b", "posts.b.1")])
    assert take_rows(table, version, runs[np.arange(len(runs))], ["id"])["id"].to_pylist() == list("xyzuvw")
    assert data_files(table) == files, "no row is written again"
    assert lance_tags(table)["posts.a.1"] == version
    put(table, "c", "q")
    gather(table, [("c", None)])
    foreseen = clean(table, dry_run=True)
    assert clean(table) == foreseen
    assert (foreseen.files, data_files(table)) == (1, files)
    monkeypatch.setattr(shards, "ROWS", 100)
    assert sorted(scattered(table)) == ["a", "b"]
    rewrite(table, "a")
    assert (scattered(table), clean(table).files) == (["b"], 2)
    assert (ids(table, "posts.a.1", "a"), ids(table, "posts.a.2", "a")) == (list("xyz"), ["k"])
    assert set(lance_tags(table).values()) == {lance_tags(table)["posts.a.1"], lance_tags(table)["posts.a.2"]}
    assert not list(table.folder.iterdir()), "nothing is left on the local disk"


def test_the_same_rows_again_are_no_new_version(table):
    first = put(table, "a", "xy", "posts.a.1")
    assert put(table, "a", "xy", "posts.a.2") == first
    assert lance_tags(table) == {"posts.a.1": first, "posts.a.2": first}


def test_rows_are_searched_in_every_version_and_released(table):
    put(table, "a", ["x"], "posts.a.1")
    put(table, "a", ["y"], "posts.a.2")
    put(table, "b", ["z"], "posts.b.1")
    found = {(shard, *batch["id"].to_pylist()): file for file, shard, batch in search(table, ["id"])}
    assert set(found) == {("a", "x"), ("a", "y"), ("b", "z")}
    assert release(table, {found["a", "x"]}) == ["posts.a.1"]
    assert clean(table).files == 1
    assert found["a", "x"] not in data_files(table)


def test_other_columns_begin_the_data_set_again_and_tags_keep_the_old_one(table):
    put(table, "a", ["x"], "posts.a.1")
    wider = SCHEMA.insert(1, pa.field("user", pa.list_(pa.string())))
    version = replace_rows(table, wider, "b", [pa.record_batch([["b"], [["ann"]], [0], ["z"]], schema=wider)])
    assert read_rows(table, version, "b", ["id", "user"]).to_pylist() == [{"id": "z", "user": ["ann"]}]
    assert ids(table, "posts.a.1", "a") == ["x"]
    with pytest.raises(MissingInput, match="with other columns now: ingest it again"):
        locate(table, [("a", "posts.a.1"), ("b", version)])


def test_of_two_that_first_write_a_shard_one_is_left(table, monkeypatch):
    """Lance would merge both: neither removes a fragment of the other."""
    put(table, "b", ["z"])
    commit, others = lance.LanceDataset.commit, iter(["other"])

    def late(*arguments, **options):
        for one in others:
            put(table, "a", [one], "posts.a.1")
            put(table, "c", ["w"])
        return commit(*arguments, **options)

    monkeypatch.setattr(lance.LanceDataset, "commit", staticmethod(late))
    assert ids(table, put(table, "a", ["mine"], "posts.a.2"), "a") == ["mine"]
    assert shards_in(table) == {"a": 1, "b": 1, "c": 1}
    assert (ids(table, "posts.a.1", "a"), ids(table, "posts.a.2", "a")) == (["other"], ["mine"])


ROUNDS = [2, pytest.param(25, marks=pytest.mark.soak)]


@pytest.mark.parametrize("rounds", ROUNDS)
def test_four_processes_write_the_same_shard_and_each_its_own_and_nothing_is_lost(rounds, table, tmp_path):
    def writes(name):
        for number in range(rounds):
            yield "same", [f"{name}{number}-{row}" for row in range(5)], f"posts.same.{number}"
            yield f"own{name}", [f"{number}"], f"posts.own{name}.{number}"

    processes = [
        PROCESS(target=put_in_bucket, args=(table.place.endpoint, table.place.uri, tmp_path / name, [*writes(name)]))
        for name in "0123"
    ]
    assert run_all(processes) == [0] * 4
    assert shards_in(table) == {"same": 5} | {f"own{name}": 1 for name in "0123"}
    for number in range(rounds):
        (whose,) = {row.partition("-")[0] for row in ids(table, f"posts.same.{number}", "same")}
        assert whose in {f"{name}{number}" for name in "0123"}
        assert damage(table, f"posts.same.{number}", "same", 5, {}) == []
        assert [ids(table, f"posts.own{name}.{number}", f"own{name}") for name in "0123"] == [[f"{number}"]] * 4


POINTS = ["rows.uploading", *(pytest.param(f"rows.{name}", marks=pytest.mark.soak) for name in ("written", "checked"))]
POINTS += ["rows.committed", pytest.param("rows.tagged", marks=pytest.mark.soak)]


@pytest.mark.parametrize("point", POINTS)
def test_a_writer_killed_at_any_point_leaves_the_tagged_rows_and_is_done_again(point, table, tmp_path):
    table.pace = Pace(beat=0.5, ttl=2, wait=0.1)  # it is waited for no longer
    put(table, "a", ["x"], "posts.a.1")
    arguments = table.place.endpoint, table.place.uri, tmp_path, [("a", "mnopq", "posts.a.2")], f"kill {point}"
    assert run_all([PROCESS(target=put_in_bucket, args=arguments)]) == [-signal.SIGKILL]
    is_committed = point in ("rows.committed", "rows.tagged")
    assert shards_in(table) == {"a": 5 if is_committed else 1}
    assert set(lance_tags(table)) == {"posts.a.1"} | ({"posts.a.2"} if point == "rows.tagged" else set())
    assert ids(table, "posts.a.1", "a") == ["x"]
    put(table, "a", "mnopq", "posts.a.2")
    assert ids(table, "posts.a.2", "a") == list("mnopq")
    advance_lance_tags(table)
    clean(table)
    assert (ids(table, "posts.a.1", "a"), ids(table, "posts.a.2", "a")) == (["x"], list("mnopq"))
    in_use = {file for file, _, _ in search(table, ["id"])}
    assert set(data_files(table)) == in_use, "what the dead one uploaded is gone, or in use"
    assert not list(table.folder.iterdir())


def stopped_at(point, table, folder):
    """A process that writes mno as shard a, and was taken for dead."""
    table.pace = Pace(beat=0.5, ttl=2, wait=0.1)
    arguments = table.place.endpoint, table.place.uri, folder, [("a", "mno", "posts.a.late")], f"stop {point}"
    process = PROCESS(target=put_in_bucket, args=arguments)
    process.start()
    assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
    fence(table)
    return process


def wake_up(process):
    os.kill(process.pid, signal.SIGCONT)
    process.join()
    assert process.exitcode == OVERTAKEN


@pytest.mark.parametrize("cleaned", [True, False], ids=["after cleaning", "before cleaning"])
@pytest.mark.parametrize("point", ["rows.checked", "rows.committed", "rows.tagging"])
def test_a_writer_that_was_taken_for_dead_brings_nothing_back_when_it_wakes_up(point, cleaned, table, tmp_path):
    """Else a takedown would be undone."""
    put(table, "a", ["x"], "posts.a.1")
    left = data_files(table)
    late = stopped_at(point, table, tmp_path)
    rewrite(table, "a", keep=lambda batch: np.array([one in "xy" for one in batch["id"].to_pylist()]))
    if cleaned:
        clean(table)
    wake_up(late)
    if not cleaned:
        clean(table)
    assert (set(lance_tags(table)), data_files(table)) == ({"posts.a.1"}, left)
    assert ids(table, "posts.a.1", "a") == ["x"]
    assert shards_in(table) == ({"a": 1} if point == "rows.checked" else {})


def test_a_writer_that_was_taken_for_dead_takes_back_a_version_whose_number_was_free_again(table, tmp_path):
    put(table, "a", ["x"], "posts.a.1")
    late = stopped_at("rows.checked", table, tmp_path)
    put(table, "a", ["y"], "posts.a.2")
    clean(table)
    versions = [version["version"] for version in table.open().versions()]
    assert len(versions) == 2, "the one that it started from, and the latest"
    wake_up(late)
    assert [version["version"] for version in table.open().versions()] == versions
    assert (ids(table, "posts.a.1", "a"), ids(table, "posts.a.2", "a")) == (["x"], ["y"])


def test_files_that_cannot_be_removed_are_said(table, monkeypatch):
    put(table, "a", ["x"])
    put(table, "a", ["y"])
    monkeypatch.setattr(lance.LanceDataset, "cleanup_old_versions", lambda *_, **__: SimpleNamespace(failed_deletes=1))
    with pytest.raises(StorageFailed, match="files that nothing needs could not be removed: try again"):
        clean(table)


def test_a_server_that_refuses_and_loses_answers_loses_no_row(server, table, tmp_path):
    with flaky(server.endpoint, seed=1) as proxy:
        unsteady = bucket_table(proxy.endpoint, table.place.uri, tmp_path)
        for number in range(2):
            for shard in "ab":
                put(unsteady, shard, [f"{shard}{number}"], f"posts.{shard}.{number}")
        tags = [(shard, f"posts.{shard}.{number}") for shard in "ab" for number in range(2)]
        assert [ids(unsteady, tag, shard) for shard, tag in tags] == [[f"{s}{n}"] for s in "ab" for n in range(2)]
        version, runs = locate(unsteady, [("a", "posts.a.0"), ("b", "posts.b.1")])
        assert take_rows(unsteady, version, runs[np.arange(2)], ["id"])["id"].to_pylist() == ["a0", "b1"]
        clean(unsteady)
        assert min(proxy.counts[kind] for kind in ("refused", "conflict", "cut")) > 1
    assert [damage(table, tag, shard, 1, {}) for shard, tag in tags] == [[]] * 4
    assert len(data_files(table)) == 4


def test_nothing_is_cleaned_while_rows_are_written(table):
    put(table, "a", ["x"])
    ready, end = threading.Event(), threading.Event()

    def rows():
        yield batch("b", ["z"])
        ready.set()
        end.wait(60)

    writer = threading.Thread(target=replace_rows, args=(table, SCHEMA, "b", rows()))
    writer.start()
    assert ready.wait(60)
    with pytest.raises(LockHeld, match=r"\.posts\.lance\.writers is held by process"):
        clean(table)
    end.set()
    writer.join()
    assert shards_in(table) == {"a": 1, "b": 1}


def test_damage_is_found_where_the_rows_lie(table):
    put(table, "a", ["x", "y"], "posts.a.1")
    assert damage(table, "posts.a.1", "a", 2, {}) == []
    assert "has not the 3 rows of a" in damage(table, "posts.a.1", "a", 3, {})[0]
    (file,) = data_files(table)
    whole = table.place.read(f"posts.lance/data/{file}")
    for other in (bytes([whole[0] ^ 1]) + whole[1:], None):
        table.place.remove(f"posts.lance/data/{file}")
        if other:
            table.place.write(f"posts.lance/data/{file}", other)
        (line,) = damage(table, "posts.a.1", "a", 2, {})
        assert line == f"{table}/data/{file} is not the file that was written (its name tells another SHA-256)"


def test_a_storage_that_does_not_answer_is_no_damage(server, table, tmp_path):
    put(table, "a", ["x"], "posts.a.1")
    refused = bucket_table(server.endpoint, table.place.uri, tmp_path)
    refused.place.options["secret_access_key"] = "wrong"
    with pytest.raises(BadSetting, match=r"refused a request for posts.lance .*: check the credentials"):
        read_rows(refused, "posts.a.1", "a", ["id"])
    away = bucket_table(f"http://127.0.0.1:{seaweed.free_ports().pop()}", table.place.uri, tmp_path)
    away.place.patience = 1
    with pytest.raises(StorageFailed, match=r"at http://.*: no right answer for 1 s .*: check store.endpoint"):
        damage(away, "posts.a.1", "a", 1, {})


def test_a_study_in_a_bucket_has_its_tables_there(server, tmp_path, monkeypatch):
    for name, value in seaweed.environment(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    study = quick_study().changed(store=server.settings())
    tables = tables_of(open_store(study, tmp_path))
    assert tables == tables_of(open_store(study, tmp_path))
    assert [str(table) for table in tables] == [f"{study.store.uri}/{path.name}" for path in Layout(tmp_path).tables]
    put(tables.posts, "a", ["x"], "posts.a.1")
    assert (ids(tables.posts, "posts.a.1", "a"), tables.rejects.exists()) == (["x"], False)
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == [".scratch"]


def ingested(tables):
    """Two shards of drawn posts; with their images and hashtags, and the names of their data files."""
    source = Source(format="synthetic", posts=60, shards=2)
    places, data = [], Data(image_size=16, max_reject_rate=1)
    for shard in find_shards(source):
        done = ingest(
            tables, shard.key, read_shard(source, shard), data, lambda _: None, lance_tags=["posts." + shard.key]
        )
        assert stored_counts(tables, shard.key, done.posts_version, done.rejects_version) == (
            done.count.accepted,
            done.count.rejected,
        )
        places.append(Place(shard.key, "posts." + shard.key))
    words = Vocabulary([f"t{n}" for n in range(50)], {})
    posts = open_posts(
        tables.posts, places, read_labels(tables.posts, places, words, tables.posts.folder / "arrays"), 16
    )
    files = [sorted(piece.file for piece in pieces) for pieces in latest_pieces(tables.posts).values()]
    return posts.images.read(np.arange(len(posts))[::-1]), posts.tags_T, sorted(files)


def test_what_is_ingested_and_loaded_is_the_same_as_from_a_folder(table, tmp_path):
    in_bucket = Tables(table, BucketTable(table.place, "rejects.lance", table.folder))
    images_NHWC, tags_T, files = ingested(in_bucket)
    local_NHWC, local_T, local_files = ingested(tables_in(tmp_path / "local"))
    assert len(images_NHWC) > 50
    assert np.array_equal(images_NHWC, local_NHWC)
    assert (tags_T.tolist(), files) == (local_T.tolist(), local_files)


def test_a_run_of_adjacent_posts_is_one_request(server, table, tmp_path):
    """And posts drawn at random are nearly one each: data.block is for that."""
    schema, draw = pa.schema([("position", pa.int64()), ("image", pa.binary())]), random.Random(0)
    rows = pa.record_batch([range(4096), [draw.randbytes(6000) for _ in range(4096)]], schema=schema)
    replace_rows(table, schema, "a", [rows], ["posts.a.1"])
    with flaky(server.endpoint, share=0) as proxy:
        seen = bucket_table(proxy.endpoint, table.place.uri, tmp_path)
        version, runs = locate(seen, [("a", "posts.a.1")])

        def requests(rows_B):
            before = proxy.counts["passed"]
            assert len(take_rows(seen, version, runs[rows_B], ["image"])) == len(rows_B)
            return proxy.counts["passed"] - before

        requests(np.arange(1))  # opens the file
        assert requests(np.arange(64) + 1000) <= 2
        assert requests(np.arange(0, 4096, 64)) >= 32
