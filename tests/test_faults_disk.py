"""Disks that are full or read-only: one line, and it goes on when there is room."""

import os
import subprocess
import time

import pytest
from click.testing import CliRunner

from helpers.faulty import make_all
from helpers.kills import study
from moe_core.stages.graph import GRAPH
from moe_core.study_file import dump_study
from moe_core.workspace import open_study

pytestmark = pytest.mark.usefixtures("one_thread")


# A full disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(disk, free):
    """Leaves so many bytes of the disk."""
    there = os.statvfs(disk)
    with open(disk / f"ballast{time.monotonic_ns()}", "wb") as file:
        file.write(bytes(max(0, there.f_bavail * there.f_frsize - free)))


def test_on_a_full_disk_every_stage_says_so_and_goes_on_when_there_is_room(small_disk, finished_store):
    """First no byte is free, then 32 KiB more each time that it is full."""
    root = small_disk / "study"
    root.mkdir()
    wanted, _ = make_all(open_study(study(), finished_store))
    fill(small_disk, 0)
    failed, before = [], {}
    for _ in range(100):
        context = open_study(study(), root)
        try:
            found, _ = make_all(context)
            break
        except OSError as error:
            failed.append(str(error))
        now = {a.path: a.files for a in (context.store.everything(name) for name in GRAPH) for a in a}
        assert before.items() <= now.items()
        for artifact in (a for name in GRAPH for a in context.store.everything(name)):
            for file in artifact.files:
                artifact.file(file)
        before = now
        used = os.statvfs(small_disk)
        for ballast in small_disk.glob("ballast*"):
            ballast.unlink()
        fill(small_disk, used.f_bavail * used.f_frsize + (32 << 10))
    assert found == wanted
    assert len(failed) > 5
    assert [said for said in failed if "No space left on device" not in said or str(root) not in said] == []


def test_a_read_only_disk_is_one_line(small_disk):
    from pipelines.cli.main import main

    (small_disk / "study.toml").write_text(dump_study(study()), "utf-8")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DAGSTER_HOME", raising=False)
        patch.setenv("HARDMOE_STUDY", "")
        done = CliRunner().invoke(main, ["run", "--study", str(small_disk / "study.toml")])
    assert done.exit_code == 1
    assert done.output == f"Error: [Errno 30] Read-only file system: '{small_disk}/dagster'\n"
