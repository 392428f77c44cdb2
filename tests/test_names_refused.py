"""Names that are refused, or shown escaped: not UTF-8, too deep, in a locale that has no such letters."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.command import hardmoe, write
from helpers.odd_names import TITLE, png
from helpers.without_controls import quick_study


@pytest.mark.parametrize("where", ["study", "--source", "--images", "--table"])
def test_init_refuses_names_that_are_not_utf8_and_writes_nothing(tmp_path, where):
    latin = os.fsdecode(b"caf\xe9")
    options = {"--source": "synthetic"} | ({where: latin} if where != "study" else {})
    study = tmp_path / (f"{latin}/cats" if where == "study" else "cats")
    done = hardmoe("init", study, *(word for option in options.items() for word in option), check=False)
    assert (done.returncode, done.stdout, os.listdir(tmp_path)) == (1, "", [])
    assert "has the byte 0xe9 in its name, which is not UTF-8: rename it" in done.stderr
    assert done.stderr.count("\n") == 1


def test_run_refuses_a_study_below_a_name_that_is_not_utf8_and_writes_nothing(tmp_path):
    file = write(tmp_path / os.fsdecode(b"caf\xe9"), quick_study())
    done = hardmoe("run", "--study", file, check=False)
    assert done.returncode == 1
    assert "caf\\udce9/study.toml has the byte 0xe9 in its name, which is not UTF-8: rename it" in done.stderr
    assert os.listdir(file.parent) == ["study.toml"]


@pytest.mark.parametrize(
    "words", [(TITLE,), (f"--{TITLE}",), ("status", TITLE), ("status", f"--{TITLE}"), ("report", "*")]
)
def test_an_error_of_usage_shows_arguments_escaped(words):
    done = hardmoe(*words, check=False)
    assert done.returncode == 2
    assert all(line.isprintable() for line in done.stderr.split("\n"))
    assert done.stdout == ""


def test_a_folder_too_deep_for_sqlite_is_refused_before_anything_is_written(tmp_path):
    deep = tmp_path / ("d" * 200) / ("d" * 200) / ("d" * 200)
    done = hardmoe("init", deep, "--source", "synthetic", check=False)
    assert (done.returncode, done.stdout, os.listdir(tmp_path)) == (1, "", [])
    assert "and SQLite opens files for Dagster in folders of at most 450: choose a shorter path" in done.stderr
    file = write(deep, quick_study())
    done = hardmoe("run", "--study", file, "--until", "splits", check=False)
    assert (done.returncode, os.listdir(deep)) == (1, ["study.toml"])
    done = hardmoe("run", "--study", file, "--until", "splits", DAGSTER_HOME=str(tmp_path / "dagster"))
    assert "made, 0 fresh, 0 failed" in done.stdout


def test_a_locale_in_which_names_are_not_utf8_is_named(tmp_path):
    file = write(tmp_path / "é", quick_study())
    done = hardmoe("status", "--study", file, check=False, LC_ALL="POSIX", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 1
    assert "this locale has file names in ascii: set PYTHONUTF8=1" in done.stderr


LOCALES = [
    {"PYTHONIOENCODING": "utf-8:strict"},
    {"LANG": "C", "LC_ALL": ""},
    {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "ascii:strict"},
]


@pytest.mark.parametrize("locale", LOCALES, ids=str)
def test_predict_answers_every_file_whatever_its_name_and_the_locale(both, tmp_path, locale):
    names = [b"a.png", "\u732b\U0001f431.png".encode(), b"caf\xe9.png", b"\xff\x1b[2J\n.png"]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(png())
    (tmp_path / os.fsdecode(b"\xe9bad.png")).write_bytes(b"no")
    mixture = next((both / "mixture").glob("[!.]*"))
    line = [sys.executable, "-m", "pipelines.cli.main", "predict", "--bundle", mixture, tmp_path]
    as_text = subprocess.run(line, capture_output=True, env=os.environ | locale)
    as_json = subprocess.run([*line, "--json"], capture_output=True, env=os.environ | locale)
    assert [as_text.returncode, as_json.returncode] == [1, 1]
    answers = json.loads(as_json.stdout.decode("utf-8"))
    named = {os.fsencode(Path(answer["image"]).name): "error" in answer for answer in answers}
    assert named == dict.fromkeys(names, False) | {b"\xe9bad.png": True}
    assert len(as_text.stdout.splitlines()) == len(names)
    assert b"caf\\udce9.png" in as_text.stdout
    for done in (as_text, as_json):
        assert b"\x1b" not in done.stdout + done.stderr
        error, counts = done.stderr.splitlines()
        assert b"\\udce9bad.png: not_an_image" in error
        assert counts == b"4 answered, 1 failed, 0 skipped"
