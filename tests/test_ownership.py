"""A folder is one study's, and of two commands that change its settings at once neither loses what the other set."""

import multiprocessing
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from moe_core.recipes import demo
from moe_core.store.owner import check_owner, claim
from moe_core.study_file import dump_study, load_study
from pipelines.cli.main import main


def write(path, **changes):
    path.write_text(dump_study(demo().model_copy(update=changes)), "utf-8")
    return path


def test_a_second_study_file_in_a_folder_is_refused_by_every_command(tmp_path):
    write(tmp_path / "study.toml")
    other = write(tmp_path / "other file.toml", name="dogs")
    for command in (
        ["status"],
        ["run", "--dry-run"],
        ["run", "--set", "trunk.lr=0.1"],
        ["gc"],
        ["forget"],
        ["results"],
    ):
        done = CliRunner().invoke(main, [*command, "--study", str(other)])
        assert done.exit_code == 1
        assert f"{tmp_path} is the folder of study.toml" in done.output
        assert "give other file.toml one of its own, such as mkdir" in done.output
        assert done.output.count("\n") == 1
    assert load_study(other).trunk.lr == demo().trunk.lr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other file.toml", "study.toml"]


def test_a_study_file_may_have_another_name_and_be_renamed_but_not_joined(tmp_path):
    cats = write(tmp_path / "cats.toml")
    claim(cats)
    check_owner(cats)
    usual = write(tmp_path / "study.toml")
    with pytest.raises(ValueError, match=r"is the folder of cats.toml"):
        check_owner(usual)
    cats.unlink()
    claim(usual)
    check_owner(usual)


def test_a_link_to_the_study_file_is_the_same_study(tmp_path):
    file = write(tmp_path / "study.toml")
    (tmp_path / "link.toml").symlink_to(file)
    check_owner(tmp_path / "link.toml")


def test_init_does_not_put_a_second_study_into_a_folder(tmp_path):
    claim(write(tmp_path / "cats.toml"))
    environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}
    command = [
        sys.executable,
        "-m",
        "pipelines.cli.main",
        "init",
        str(tmp_path),
        "--source",
        "synthetic",
        "--recipe",
        "demo",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, "is the folder of cats.toml" in done.stderr) == (1, True)
    assert not (tmp_path / "study.toml").exists()


def _set_often(file, key):
    from pipelines.cli.common import changed_study

    for value in range(1, 6):
        changed_study(file, (f"{key}={value}",), dry_run=False)


def test_settings_that_several_commands_change_at_once_are_all_kept(tmp_path):
    file = write(tmp_path / "study.toml")
    keys = ["trunk.epochs", "partition.pca", "evaluation.topk", "data.min_side"]
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_set_often, args=(file, key)) for key in keys]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    study = load_study(file)
    assert (study.trunk.epochs, study.partition.pca, study.evaluation.topk, study.data.min_side) == (5, 5, 5, 5)
