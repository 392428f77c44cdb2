"""What nothing points at leaves; what an artifact tags stays."""

import json
import multiprocessing
import os
import socket
from pathlib import Path

import pytest

from helpers.command import hardmoe
from helpers.takedown import files_with, noise, smaller, study_of_two_users, write_source
from moe_core.engine.build import build
from moe_core.errors import LockHeld
from moe_core.maintenance.gc import collect, collect_unless_busy
from moe_core.processes import this_process
from moe_core.stages.data.rows import remove_gone_shards
from moe_core.store.artifact import Spec
from moe_core.store.files import remove_atomically, size_of
from moe_core.store.locks import shared
from moe_core.study_file import dump_study
from moe_core.tables.lance_tags import lance_tag_of, lance_tags
from moe_core.tables.location import tables_in, tables_of
from moe_core.tables.reading import read_rows
from moe_core.tables.shards import shards_in
from moe_core.workspace import open_study


@pytest.fixture
def ingested(tmp_path):
    context = open_study(study_of_two_users(write_source(tmp_path / "source", posts=30)), tmp_path / "store")
    context.root.mkdir()
    (context.root / "study.toml").write_text(dump_study(context.study))
    for key in ("a", "b"):
        build(context, "posts", key)
    return context


def reopen(context):
    return open_study(context.study, context.root)


def images(context, key):
    lance_tag = lance_tag_of(key, context.need("posts", key).version)
    return read_rows(tables_in(context.root).posts, lance_tag, key, ["image"])["image"].to_pylist()


def everything(root):
    return {p: p.read_bytes() for p in root.rglob("*") if p.is_file() and not p.name.startswith(".")}


def test_what_somebody_else_removes_meanwhile_is_nothing_and_no_error(tmp_path, monkeypatch):
    folder = tmp_path / ".work-1"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_text("four")
    walk = os.walk

    def slow(path):
        for found in list(walk(path)):
            (folder / "b").unlink(missing_ok=True)
            yield found

    monkeypatch.setattr(os, "walk", slow)
    assert size_of(folder) == 4
    assert size_of(tmp_path / "never was") == 0
    monkeypatch.setattr(Path, "is_dir", lambda _: True)
    remove_atomically(tmp_path / "gone")


def test_a_version_stays_as_long_as_an_artifact_needs_it(ingested):
    build(smaller(ingested), "posts", "b")
    collect(ingested)
    assert len(images(ingested, "b")[0]) == 16 * 16 * 3
    assert len(images(smaller(ingested), "b")[0]) == 8 * 8 * 3


def test_posts_that_the_study_no_longer_reads_leave_when_they_are_said_to(ingested):
    stale = smaller(ingested)
    build(stale, "posts", "b")
    said = collect(ingested, dry_run=True, superseded=True)
    assert stale.find("posts", "b") is not None
    done = collect(ingested, superseded=True)
    assert (said.removed, said.files, said.versions) == (done.removed, done.files, done.versions)
    assert done.removed == [f"posts/b/{stale.version('posts', 'b')}"]
    assert stale.find("posts", "b") is None
    assert len(images(ingested, "b")) == 30
    assert set(lance_tags(tables_in(ingested.root).posts)) == {
        lance_tag_of(key, ingested.version("posts", key)) for key in ("a", "b")
    }


def test_a_dry_run_changes_nothing_and_says_the_same(ingested):
    build(smaller(ingested), "posts", "b")
    os.remove(smaller(ingested).need("posts", "b").path / "artifact.json")  # its Lance tag has no artifact now
    before = everything(ingested.root)
    said = collect(ingested, dry_run=True)
    assert everything(ingested.root) == before
    done = collect(ingested)
    assert said == done
    assert done.files == 1, "the smaller pictures"
    assert collect(ingested) == type(done)()


def test_files_of_a_killed_writer_leave(ingested):
    import lance
    from lance.fragment import write_fragments

    path = ingested.root / "posts.lance"
    write_fragments(lance.dataset(str(path)).to_table(), str(path))
    assert len(os.listdir(path / "data")) == 3
    assert collect(ingested).files == 1
    assert len(os.listdir(path / "data")) == 2


ELSEWHERE = "4711_90125_1f0c9a3e_0123abcd"  # a process of another machine


def _die_while_writing(root):
    from moe_core.store.store import Store

    Store(root).make(Spec("trunk", None, "1", {}, {}), lambda folder: os._exit(9))


def test_leftovers_of_the_dead_leave_and_those_of_the_living_stay(ingested):
    process = multiprocessing.get_context("spawn").Process(target=_die_while_writing, args=(ingested.root,))
    process.start()
    process.join()
    (dead,) = (ingested.root / "trunk").glob(".part-*")
    living = dead.with_name(f".part-{socket.gethostname()}-{this_process()}-1a")
    living.mkdir()
    dead.with_name(".part-a-container-that-is-gone-1-abcdef01").mkdir()
    dead.with_name(f".part-gpu02-{ELSEWHERE}-1a").mkdir()
    unfinished = ingested.store.work_folder(Spec("trunk", None, "1", {}, {}))
    unfinished.mkdir()
    collect(ingested)
    assert sorted(ingested.root.glob("trunk/.*")) == sorted([living, unfinished])


def test_a_text_of_another_machine_leaves_after_a_day_by_the_clock_of_the_file_system(ingested):
    today, old, ours = (ingested.root / f".a.{name}.part" for name in (ELSEWHERE, f"1{ELSEWHERE}", this_process()))
    for path in (today, old, ours):
        path.touch()
    for path in (old, ours):
        os.utime(path, times=(path.stat().st_atime, path.stat().st_mtime - 90_000))
    collect(ingested)
    assert sorted(ingested.root.glob(".*.part")) == sorted([today, ours])


def test_nothing_is_collected_while_an_artifact_is_built(ingested):
    with shared(ingested.store.layout.in_use):
        with pytest.raises(LockHeld, match="held by another process"):
            collect(ingested)
        assert collect_unless_busy(ingested) is None


def test_a_shard_whose_file_is_gone_leaves_and_comes_back_for_nothing(ingested, tmp_path):
    file = tmp_path / "source" / "a.parquet"
    file.rename(tmp_path / "a")
    now = reopen(ingested)
    remove_gone_shards(tables_of(now.store), [shard.key for shard in now.shards])
    assert shards_in(tables_in(now.root).posts) == {"b": 30}
    assert shards_in(tables_in(now.root).rejects) == {}
    collect(now)
    (tmp_path / "a").rename(file)
    again = reopen(ingested)
    assert build(again, "posts", "a").reused
    assert len(images(again, "a")) == 29
    file.unlink()
    done = collect(reopen(ingested), superseded=True)
    assert f"posts/a/{ingested.version('posts', 'a')}" in done.removed
    assert files_with(ingested.root, noise(0).tobytes()) == []


@pytest.mark.slow
def test_the_command_collects_after_posts_changed_and_drops_gone_shards(ingested, tmp_path):
    import lance

    study_file = ingested.root / "study.toml"
    (tmp_path / "source" / "a.parquet").rename(tmp_path / "source" / "c.parquet")
    said = hardmoe("run", "--study", study_file, "--until", "posts").stdout
    assert "1 made, 1 fresh" in said, "that of b was there, though Dagster did not know of it"
    assert shards_in(tables_in(ingested.root).posts) == {"b": 30, "c": 29}
    status = json.loads(hardmoe("status", "--study", study_file, "--json").stdout)
    assert [row["key"] for row in status["assets"] if row["asset"] == "posts"] == ["b", "c"]
    versions = {v["version"] for v in lance.dataset(str(ingested.root / "posts.lance")).versions()}
    assert versions == set(lance_tags(tables_in(ingested.root).posts).values()), "the latest, and that of a's artifact"
    done = json.loads(hardmoe("gc", "--study", study_file, "--superseded", "--apply", "--json").stdout)
    assert f"posts/a/{ingested.version('posts', 'a')}" in done["removed"]
    assert hardmoe("gc", "--study", study_file, "--dry-run").stdout == "0.0 MiB would be freed; --apply frees it\n"
