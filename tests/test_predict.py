"""`hardmoe predict`: which mixture is asked, which files are read, and what is left out."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from PIL import Image

from helpers.bundles import bundle_at, images, random_parts
from moe_core.data.images import REASONS
from moe_core.recipes import demo
from moe_core.serving.bundle import Bundle
from moe_core.serving.publication import Decision, change
from moe_core.store.documents import FolderDocuments
from moe_core.study_file import dump_study
from pipelines.cli.main import COMMANDS, main

FIRST, SECOND, OTHER = "1f0c8e5a2b7d4c3e9f60", "1f0c999999999999ffff", "abcdef0123456789abcd"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("predict")
    (root / "cats" / "mixture").mkdir(parents=True)
    (root / "cats" / "study.toml").write_text(dump_study(demo()))
    for version, count in ((FIRST, 1), (SECOND, 2), (OTHER, 3)):
        (root / version).mkdir()
        bundle_at(root / "cats" / "mixture" / version, random_parts(root / version, 0, count=count))
    first = Decision("published", OTHER, "", OTHER, "first", "test")
    change(FolderDocuments(root / "cats"), lambda log: log.adding(first))
    return root / "cats"


@pytest.fixture
def cats(made, tmp_path, monkeypatch):
    monkeypatch.delenv("HARDMOE_STUDY", raising=False)
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(made, tmp_path / "cats", copy_function=os.link)


@pytest.fixture
def holiday(tmp_path):
    folder = tmp_path / "holiday"
    folder.mkdir()
    for number, pixels in enumerate(images(3)):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def hardmoe(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def which(monkeypatch, holiday):
    """The version that answers a command's images."""
    opened = []
    monkeypatch.setattr(
        "pipelines.cli.predict.Bundle", lambda folder, **more: opened.append(folder.name) or Bundle(folder, **more)
    )

    def which(*options):
        done = hardmoe("predict", *options, holiday / "0.png")
        assert (done.exit_code, done.stderr, done.stdout.count("\n")) == (0, "", 1), done.output
        return opened.pop()

    return which


@pytest.mark.parametrize(
    ("options", "version"),
    [
        (["--study", "cats"], OTHER),
        (["--study", "cats/study.toml"], OTHER),
        (["--bundle", "cats"], OTHER),
        (["--bundle", "cats/study.toml"], OTHER),
        (["--bundle", f"cats/mixture/{FIRST}"], FIRST),
        (["--bundle", f"cats/mixture/{FIRST}/"], FIRST),
        (["--bundle", f"cats/mixture/{FIRST}/manifest.json"], FIRST),
        (["--bundle", "cats/mixture/1f0c8"], FIRST),
        (["--bundle", "cats/mixture/a"], OTHER),
        (["--bundle", "cats/mixture/1f0c9/manifest.json"], SECOND),
        (["--study", "cats", "--version", "1f0c9"], SECOND),
        (["--study", "cats/study.toml", "--version", FIRST], FIRST),
        (["--bundle", "cats", "--version", "1f0c8"], FIRST),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else one[:5],
)
def test_a_mixture_is_named_by_folder_file_study_or_the_beginning_of_its_version(cats, which, options, version):
    assert which(*options) == version


def test_the_study_is_that_of_the_environment_or_of_the_folder_one_is_in(cats, which, monkeypatch):
    monkeypatch.setenv("HARDMOE_STUDY", str(cats))
    assert which() == OTHER
    monkeypatch.delenv("HARDMOE_STUDY")
    monkeypatch.chdir(cats)
    assert which() == OTHER


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            ["--bundle", "cats/mixture/1f0c"],
            f"2 versions of mixture in cats/mixture begin with '1f0c': {FIRST}, {SECOND}",
        ),
        (["--bundle", "cats/mixture/77"], "0 versions of mixture in cats/mixture begin with '77': there are 1f0c8e"),
        (["--bundle", "cats/mixture"], "cats/mixture holds 3 mixtures: name one of them, such as cats/mixture/1f0c"),
        (["--study", "cats", "--version", "1f"], f"2 versions of mixture in cats begin with '1f': {FIRST}, {SECOND}"),
        (["--study", "cats", "--version", ""], "3 versions of mixture in cats begin with '': 1f0c8"),
        (["--study", "cats", "--version", "x\x1b[0m"], r"0 versions of mixture in cats begin with 'x\\x1b[0m'"),
        (["--bundle", f"cats/mixture/{FIRST}", "--version", "1"], "--version goes with a study"),
        (["--bundle", "cats", "--study", "cats"], "--bundle and --study exclude one another"),
        (["--bundle", "holiday"], "no bundle at holiday: wanted a study's folder or study.toml, or a mixture's folder"),
        (["--bundle", "holiday/0.png"], "no bundle at holiday/0.png"),
        (["--bundle", "nowhere/at/all"], "no bundle at nowhere/at/all"),
        (["--study", "nowhere"], "no study at nowhere: name its folder or study.toml with --study"),
        (["--study", "holiday"], "no study at holiday/study.toml: name its folder or study.toml with --study"),
        ([], "no study at study.toml: name its folder or study.toml with --study"),
    ],
    ids=lambda one: " ".join(one)[:40] if isinstance(one, list) else "",
)
def test_what_names_no_mixture_is_one_line_that_says_what_would(cats, holiday, options, why):
    done = hardmoe("predict", *options, holiday / "0.png")
    assert (done.exit_code, done.stdout) == (1, "")
    assert why in done.stderr
    assert done.stderr.count("\n") == 1


def test_every_command_takes_the_study_s_folder_or_its_file():
    commands = [(name, main.get_command(click.Context(main), name)) for name in COMMANDS]
    options = {name: [o for o in command.params if "--study" in o.opts] for name, command in commands}
    without = {name for name, found in options.items() if not found}
    assert without == {"demo", "init", "bundle", "compare"}, "these name a folder themselves, or none"
    for name, (option, *_) in ((name, found) for name, found in options.items() if found):
        assert option.callback is not None, name
        assert option.callback(None, option, Path("/")) == Path("/study.toml"), name


@pytest.mark.parametrize("command", ["status", "run", "results", "gc", "verify", "publish", "ui"])
def test_a_study_that_is_missing_is_one_line_that_says_what_to_do(tmp_path, monkeypatch, command):
    monkeypatch.delenv("HARDMOE_STUDY", raising=False)
    for place, named in ((tmp_path, tmp_path / "study.toml"), (tmp_path / "no.toml", tmp_path / "no.toml")):
        done = hardmoe(command, "--study", place)
        assert done.exit_code == 1
        assert f"no study at {named}: name its folder or study.toml with --study, or write one with" in done.stderr
        assert done.stderr.count("\n") == 1


LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_DATA, ({}, resource.RLIM_INFINITY))
from pipelines.cli.main import main
main()
"""


def in_little_memory(*arguments, bytes_more=1 << 30):
    """The command in a process of its own that may not grow by more than this; it must end by itself."""
    limit = bytes_more + (2 << 30)
    command = [sys.executable, "-c", LIMITED.format(limit), *(str(a) for a in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_what_never_ends_or_is_too_large_is_named_and_the_rest_answered(cats, holiday, tmp_path):
    strange = tmp_path / "strange"
    strange.mkdir()
    os.mkfifo(strange / "fifo.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(strange / "socket.jpg"))
    (strange / "zero.jpg").symlink_to("/dev/zero")
    (strange / "ring.jpg").symlink_to("ring.jpg")
    (strange / "broken.jpg").symlink_to("nothing")
    (strange / "grows.jpg").symlink_to("/proc/self/status")  # has more bytes than its size says
    (strange / "under.jpg").symlink_to(holiday / "0.png" / "x")
    with open(strange / "sparse.jpg", "wb") as file:
        file.truncate(6 << 30)
    files = sorted(strange.iterdir())
    done = in_little_memory("predict", "--study", cats, *files, holiday / "0.png", "--json")
    *wrong, good = json.loads(done.stdout)
    assert done.returncode == 1
    assert len(good["tags"]) == 5
    assert {Path(one["image"]).name: one["error"] for one in wrong} == {
        "broken.jpg": "No such file or directory",
        "fifo.jpg": "this is not a regular file",
        "grows.jpg": "the file was changed while it was read",
        "ring.jpg": "Too many levels of symbolic links",
        "socket.jpg": "this is not a regular file",
        "sparse.jpg": f"too_large: the file has 6,442,450,944 bytes, more than 268,435,456: {REASONS['too_large']}",
        "under.jpg": "Not a directory",
        "zero.jpg": "this is not a regular file",
    }


def test_a_folder_s_files_that_are_left_out_are_counted_and_named(cats, holiday, tmp_path):
    for number in range(25):
        (holiday / f"note{number:02d}.txt").write_text("no")
    (holiday / "deep").mkdir()
    (holiday / "deep" / "film\x1b[2J.mp4").write_text("no")
    (holiday / ".git").mkdir()
    (holiday / ".git" / "x.png").write_bytes(b"no")
    (holiday / ".DS_Store").write_text("no")
    (holiday / "round").symlink_to(holiday)
    (holiday / "round.jpg").symlink_to(holiday)
    (holiday / "photo.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    done = hardmoe("predict", "--study", cats, holiday)
    assert done.exit_code == 1  # of photo.HEIC
    assert [line.split("  ")[0] for line in done.stdout.splitlines()] == [str(holiday / f"{n}.png") for n in range(3)]
    listed = ", ".join(str(holiday / f"note{n:02d}.txt") for n in range(8))
    assert f"Skipped 27 (no image by its name): {holiday}/deep/film\\x1b[2J.mp4, {listed}" in done.stderr
    assert ", and 17 more" not in done.stderr
    assert f"Skipped 2 (hidden): {holiday}/.DS_Store, {holiday}/.git\n" in done.stderr
    assert f"Skipped 1 (a link to a folder): {holiday}/round.jpg\n" in done.stderr
    assert "photo.HEIC: not_an_image" in done.stderr
    assert done.stderr.endswith("\n3 answered, 1 failed, 30 skipped\n")
    assert len(done.stderr.splitlines()) == 5
    said = json.loads(hardmoe("predict", "--study", cats, holiday, "--json").stdout)
    assert sum("skipped" in one for one in said) == 27 + 2 + 1
    assert {"image": str(holiday / "round.jpg"), "skipped": "a link to a folder"} in said
    assert sum("tags" in one for one in said) == 3


def test_a_folder_of_images_alone_leaves_nothing_out(cats, holiday):
    done = hardmoe("predict", "--study", cats, holiday)
    assert (done.exit_code, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 3
