"""Dagster's SQLite files deleted, empty, cut or overwritten: one true line; `hardmoe run` records what exists."""

import os
import sqlite3
from pathlib import Path

import dagster as dg
import pytest

from assets.study import project_keys
from helpers.command import hardmoe, write
from helpers.with_controls import small_study
from pipelines.instance import databases
from pipelines.instance.home import SETTINGS
from pipelines.instance.opening import opened
from pipelines.instance.reap import reap

FILES = ["history/runs.db", "history/runs/index.db", "schedules/schedules.db"]
TABLE = {"runs.db": "runs", "index.db": "dynamic_partitions"}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An instance with something in it, no process has it open."""
    folder = tmp_path / "study ?é#" / "dagster"
    folder.mkdir(parents=True)
    (folder / "dagster.yaml").write_text(SETTINGS.format(workers=1), "utf-8")
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    use()
    return folder


def use():
    with opened() as instance:
        reap(instance, Path(os.environ["DAGSTER_HOME"]).parent, "tiny")
        project_keys(instance, "tiny", ["s0000"], [f"e{k:03}" for k in range(40)])
        instance.report_runless_asset_event(dg.AssetMaterialization("trunk"))
        instance.all_instigator_state()
        return len(instance.get_dynamic_partitions("tiny_experts"))


def settle(path):
    """What a killed process left beside the file is written into it: else SQLite reads that in its place."""
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()


def garbage(path):
    path.write_bytes(b"garbage" * 1000)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeros(path):
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:4096] + bytes(size - 4096))


def drop(path):
    with sqlite3.connect(path) as database:
        database.execute(f"DROP TABLE {TABLE[path.name]}")
    database.close()


def folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("spoil", [garbage, cut, zeros, folder])
def test_a_damaged_database_is_named_and_its_removal_mends_it(home, file, spoil):
    spoil(home / file)
    with pytest.raises(ValueError, match=r"^Dagster's database .* is damaged \(.*\): move it .*away while ") as error:
        use()
    assert file in str(error.value)
    assert "\n" not in str(error.value)
    (home / file).rename(home / "away")
    assert use() == 40


@pytest.mark.parametrize("file", FILES[:2])
def test_one_that_lacks_a_table_is_named(home, file):
    drop(home / file)
    with pytest.raises(
        ValueError, match=rf"is damaged \(it has no table {TABLE[Path(file).name]}; of an older Dagster: "
    ):
        use()


@pytest.mark.parametrize("file", FILES)
def test_an_empty_database_is_created_again_and_that_is_said(home, file, caplog):
    (home / file).write_bytes(b"")
    (home / f"{file}-wal").write_bytes(b"of the one before")
    assert use() == 40
    assert f"{file} was empty and has been recreated; `hardmoe run` then records" in caplog.text
    assert databases.damage(home) == ""


def test_databases_that_are_deleted_are_created_again(home, caplog):
    for path in sorted(home.rglob("*.db")):
        path.unlink()
    assert use() == 40
    assert caplog.text == ""


def test_one_that_is_deleted_while_it_is_open_is_named_or_created_again(home):
    with dg.DagsterInstance.from_config(str(home)) as running:
        for path in sorted(home.rglob("*.db")):
            path.unlink()
        with pytest.raises(Exception, match=r"no such table|dynamic partitions table"):
            running.add_dynamic_partitions("tiny_experts", ["e041"])  # leaves an empty file
    assert use() == 40


def test_an_error_that_has_nothing_to_do_with_databases_is_left_as_it_is(home):
    garbage(home / FILES[1])
    with pytest.raises(KeyError), opened():
        raise KeyError


@pytest.mark.slow
def test_run_records_what_exists_again_and_makes_nothing(tmp_path):
    file = write(tmp_path / "cats", small_study())
    hardmoe("run", "--study", file, "--until", "vocabulary")
    made = {path: path.stat().st_mtime_ns for path in file.parent.rglob("artifact.json")}
    index = file.parent / "dagster" / "history" / "runs" / "index.db"
    for spoil in (os.unlink, garbage):
        settle(index)
        spoil(index)
        if spoil is garbage:
            for command in (["run", "--until", "vocabulary"], ["ui", "--port", "0"]):
                done = hardmoe(*command, "--study", file, check=False)
                assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
                assert f"Error: Dagster's database {index} is damaged" in done.stderr
            index.unlink()
        assert " 0 failed" in hardmoe("run", "--study", file, "--until", "vocabulary").stdout
        assert {path: path.stat().st_mtime_ns for path in file.parent.rglob("artifact.json")} == made
        with dg.DagsterInstance.from_config(str(file.parent / "dagster")) as recorded:
            for asset in ("posts", "splits", "vocabulary"):  # by a run, and without one
                (latest,) = recorded.fetch_materializations(dg.AssetKey(asset), limit=1).records
                assert latest.asset_materialization.metadata["reused"].value
            for asset, name in (("posts", "conserved"), ("vocabulary", "posts_suffice")):
                check = dg.AssetCheckKey(dg.AssetKey(asset), name)
                (latest,) = recorded.event_log_storage.get_asset_check_execution_history(check, limit=1)
                assert latest.event.dagster_event.event_type_value == "ASSET_CHECK_EVALUATION"
                assert bool(latest.run_id) == (asset == "posts")
            assert recorded.get_dynamic_partitions("tiny_shards") == ["s0000", "s0001"]


@pytest.mark.parametrize("what", ["file", "link"])
def test_what_is_no_folder_where_dagster_has_its_own_is_named(what, tmp_path, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    write(tmp_path, small_study())
    place = tmp_path / "dagster"
    if what == "file":
        place.touch()
    else:
        place.symlink_to("nowhere")
    done = hardmoe("run", "--until", "posts", "--study", tmp_path / "study.toml", check=False)
    assert done.returncode == 1
    assert done.stderr == f"Error: {place} is not a folder, and one is wanted there: move it away\n"
