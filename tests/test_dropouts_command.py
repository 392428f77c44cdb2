"""`hardmoe run` fails and resumes where its source was overwritten, went away, or was cut short."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import hostile
from helpers.formats import WRITERS
from helpers.unsteady import posts, stored
from moe_core.recipes import demo
from moe_core.settings import Data, Source
from moe_core.study_file import dump_study

# The command

HOOK = """
import os
from moe_core.data import checks

right = checks.checked

def after_the_first_batch(batch, before, data):
    found = right(batch, before, data)
    number = before // 1000
    try:
        os.close(os.open(f"{os.environ['MEANWHILE']}.{number}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return found
    exec(open(f"{os.environ['MEANWHILE']}").read(), {"number": number})
    return found

checks.checked = after_the_first_batch
"""


def commands(tmp_path, source, script):
    """A way to run `hardmoe`, whose first read of the source is interrupted by the script once a batch."""
    study = demo().model_copy(update={"source": source, "data": Data(image_size=8)})
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.toml").write_text(dump_study(study), "utf-8")
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    (tmp_path / "script").write_text(script)
    environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}
    environment |= {"PYTHONPATH": f"{tmp_path / 'hook'}", "MEANWHILE": str(tmp_path / "script")}

    def hardmoe(*arguments):
        command = [sys.executable, "-m", "pipelines.cli.main", *arguments, "--study", tmp_path / "study" / "study.toml"]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    return hardmoe


def many(user):
    one = posts(user)[0]
    return [one | {"id": f"p{n}", "image": SMALL} for n in range(2500)]


SMALL = hostile.file_of(hostile.picture(width=8, height=8))


@pytest.mark.slow
def test_run_fails_and_resumes_when_a_file_is_overwritten_by_cp(tmp_path):
    for which in ("in", "new"):
        (tmp_path / which).mkdir()
    source = WRITERS["parquet"](many("u1"), tmp_path / "in")
    new = WRITERS["parquet"](many("u2"), tmp_path / "new")
    script = f"""
import os, subprocess
if number == 1:
    about = os.stat({source.uri!r})
    subprocess.run(["cp", {new.uri!r}, {source.uri!r}], check=True)
    os.utime({source.uri!r}, ns=(about.st_atime_ns, about.st_mtime_ns))
"""
    hardmoe = commands(tmp_path, source, script)
    done = hardmoe("run", "--until", "posts")
    if done.returncode:  # else the command noticed the new file by itself, and read it
        assert f"{source.uri} or its images changed while they were read: run the same command again" in done.stderr
        assert stored(tmp_path / "study") == []
        done = hardmoe("run", "--until", "posts")
    assert (done.returncode, [row["user"] for row in stored(tmp_path / "study")]) == (0, ["u2"] * 2500)


@pytest.mark.slow
def test_run_fails_and_resumes_when_the_folder_goes_away_and_comes_back(tmp_path):
    (tmp_path / "in" / "pictures").mkdir(parents=True)
    for n in range(2500):
        (tmp_path / "in" / "pictures" / f"{n}.png").write_bytes(SMALL)
    rows = "".join(json.dumps({"file_name": f"pictures/{n}.png", "tags": ["cat"]}) + "\n" for n in range(2500))
    (tmp_path / "in" / "posts.jsonl").write_text(rows)
    source = Source(format="folder", uri=str(tmp_path / "in"))
    here, away = str(tmp_path / "in" / "pictures"), str(tmp_path / "away")
    script = f"""
import os
if number == 0:
    os.rename({here!r}, {away!r})
if number == 1:
    os.rename({away!r}, {here!r})
"""
    hardmoe = commands(tmp_path, source, script)
    done = hardmoe("run", "--until", "posts")
    assert done.returncode == 1, done.stdout
    assert "was absent when its row was read, and exists now: check the disk" in done.stderr
    assert stored(tmp_path / "study") == []
    assert json.loads(hardmoe("status", "--json").stdout)["posts"]["read"] == 0
    done = hardmoe("run", "--until", "posts")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(stored(tmp_path / "study")) == 2500


@pytest.mark.slow
def test_run_says_that_a_mapped_file_was_cut_short_and_resumes(tmp_path):
    (tmp_path / "in").mkdir()
    source = WRITERS["arrow_stream"](many("u1"), tmp_path / "in")
    data = Path(source.uri).read_bytes()
    hardmoe = commands(tmp_path, source, f"import os\nif number == 0:\n    os.truncate({source.uri!r}, 4096)\n")
    done = hardmoe("run", "--until", "posts")
    assert done.returncode == 1, done.stdout
    assert "killed by signal 7 (a file was cut short while it was mapped into memory" in done.stderr
    assert "posts:posts" in done.stderr
    Path(source.uri).write_bytes(data)
    done = hardmoe("run", "--until", "posts")
    assert (done.returncode, len(stored(tmp_path / "study"))) == (0, 2500), done.stderr
