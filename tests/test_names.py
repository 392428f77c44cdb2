"""Names that some library reads as a pattern, a URL or an option, or that no text holds: of folders, files, studies."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from test_operations import small_study

from moe_core.data.drawn import draw_shard
from moe_core.settings import dump_study, load_study

ODD = "é [1] %20 #~ ?x *"


def photos(folder, posts=240):
    """Images with odd names, and a table that names them."""
    folder.mkdir(parents=True)
    rows = []
    for batch in draw_shard(0, 1, posts, 0):
        rows += batch.select(["image", "tags"]).to_pylist()
    with open(folder / f"{ODD}.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "tags"])
        for number, row in enumerate(rows):
            name = f"{ODD} {number}.png"
            (folder / name).write_bytes(row["image"])
            table.writerow([name, " ".join(row["tags"])])
    return folder


@pytest.fixture
def may_not_write():
    """Makes a folder read-only and gives what to put before a command so that this holds for it, root too."""
    before, folders = [], []
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root may write everywhere: needs setpriv of util-linux")
        before = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]

    def close(folder):
        folder.chmod(0o555)
        folders.append(folder)
        return before

    yield close
    for folder in folders:
        folder.chmod(0o755)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_every_command_works_below_an_odd_name_in_a_folder_that_may_not_be_written(tmp_path, may_not_write):
    home = tmp_path / "home"
    source = photos(home / ODD / "photos")
    before = may_not_write(home)
    environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}

    def command(*arguments, code=0):
        line = [*before, sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
        done = subprocess.run(line, capture_output=True, text=True, env=environment)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    root = home / ODD / "cats"
    study = root / "study.toml"
    assert "240" in command("init", root, "--source", source)
    study.write_text(dump_study(small_study(source=load_study(study).source)))
    command("run", "--study", study)
    assert json.loads(command("status", "--study", study, "--json"))["posts"]["accepted"] == 240
    table = json.loads(command("results", "--study", study, "--json"))
    assert table["publication"]["is_published"]
    page = Path(command("report", "--study", study).rstrip("\n"))
    assert page.is_file()
    assert page.is_relative_to(root)
    answers = json.loads(command("predict", "--bundle", root, source, "--json"))
    assert [Path(answer["image"]).name for answer in answers] == sorted(f"{ODD} {n}.png" for n in range(240))
    assert json.loads(command("lineage", "mixture", "--study", study, "--json"))["nodes"]
    with Dagster(before, study, environment) as address, urllib.request.urlopen(address) as page:
        assert b"dagster" in page.read().lower()
    ids = tmp_path / "ids"
    ids.write_text(f"{ODD} 7.png\n")
    assert json.loads(command("forget", "--study", study, "--ids", ids, "--json"))["posts"] == 1
    command("gc", "--study", study, "--keep", 1, "--apply")
    command("tidy", "--study", study, "--superseded")
    assert json.loads(command("verify", "--study", study, "--json"))["damaged"] == []
    assert os.listdir(home) == [ODD]
    assert sorted(os.listdir(home / ODD)) == ["cats", "photos"]


class Dagster:
    """`hardmoe ui` on a study, until the end of the block; gives its address once it answers."""

    def __init__(self, before, study, environment):
        self.port = free_port()
        line = [*before, sys.executable, "-m", "pipelines.cli", "ui", "--study", str(study), "--port", str(self.port)]
        self.process = subprocess.Popen(
            line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def __enter__(self):
        address = f"http://127.0.0.1:{self.port}/server_info"
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(address):
                    return address
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.process.kill()
                    raise AssertionError(self.process.stdout.read()) from None
                time.sleep(0.1)

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=60)
