"""Names that some library reads as a pattern, a URL or an option, that a terminal obeys, or that are not UTF-8."""

import csv
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.command import write
from helpers.odd_names import FILE, FOLDER, ODD, TITLE
from helpers.without_controls import quick_study
from moe_core.data.synthetic import synthetic_posts
from moe_core.serving.publication import published_bundle
from moe_core.study_file import dump_study, load_study
from moe_core.text import shown
from pipelines import aliases

SECONDS = 240  # for a command, on a machine that others use


class Commands:
    """`hardmoe` on the study of `root`, whose folder lies in one that may not be written."""

    def __init__(self, root, before):
        self.root, self.study, self.before = root, root / "study.toml", before
        self.environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}

    def line(self, name, *arguments, on=True):
        study = ["--study", str(self.study)] if on else []
        return [*self.before, sys.executable, "-m", "pipelines.cli.main", name, *map(str, arguments), *study]

    def piped(self, *arguments, code=0, **options):
        done = subprocess.run(self.line(*arguments, **options), capture_output=True, env=self.environment)
        assert done.returncode == code, done
        for output in (done.stdout.decode(), done.stderr.decode()):
            assert all(line.isprintable() for line in output.split("\n")), output
            assert not re.search("^Error: forged", output, re.MULTILINE)
        return done.stdout.decode()

    def json(self, *arguments, **options):
        return json.loads(self.piped(*arguments, "--json", **options))

    def on_terminal(self, *arguments, **options):
        """What comes on a terminal of 80 columns, without the sequences that move the cursor or color a word."""
        ours, theirs = pty.openpty()
        environment = self.environment | {"TERM": "xterm", "COLUMNS": "80"}
        process = subprocess.Popen(
            self.line(*arguments, **options), stdin=theirs, stdout=theirs, stderr=theirs, env=environment
        )
        os.close(theirs)
        seen = b""
        while True:
            try:
                seen += os.read(ours, 65536)
            except OSError:  # EIO: nobody has the other end any more
                break
        os.close(ours)
        assert process.wait() == 0, seen
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())


def photos(folder, posts=240):
    """Images with odd names, and a table that names them. Five have ids that no post may have."""
    folder.mkdir(parents=True)
    rows = [row for batch in synthetic_posts(0, 1, posts, 0) for row in batch.select(["image", "tags"]).to_pylist()]
    with open(folder / f"{FILE}.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "tags"])
        for number, row in enumerate(rows):
            name = f"{FILE if number % 50 == 0 else ODD} {number}.png"
            (folder / name).write_bytes(row["image"])
            table.writerow([name, " ".join([*row["tags"], f"#{TITLE}tag"])])
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished study below an odd name."""
    home = tmp_path_factory.mktemp("names") / "home"
    source = photos(home / FOLDER / "photos")
    before = []
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root may write everywhere: needs setpriv of util-linux")
        before = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    home.chmod(0o555)
    commands = Commands(home / FOLDER / "cats", before)
    commands.source = source
    commands.said = commands.piped("init", commands.root, "--source", source, on=False)
    commands.study.write_text(dump_study(quick_study(source=load_study(commands.study).source)))
    commands.shown = commands.on_terminal("run")
    yield commands
    home.chmod(0o755)


@pytest.mark.slow
def test_init_run_and_every_command_that_looks_work_below_an_odd_name(made):
    assert "Rows: 240" in made.said
    assert made.json("status")["posts"]["rejects_by_reason"] == {"bad_id": 5}
    assert made.json("results")["publication"]["is_published"]
    page = made.piped("report").rstrip("\n")
    assert page in {shown(path, most=None) for path in made.root.glob("report/*/report.html")}
    answers = made.json("predict", "--bundle", made.root, made.source, on=False)
    assert {Path(answer["image"]).name for answer in answers if "tags" in answer} == {
        f"{ODD if n % 50 else FILE} {n}.png" for n in range(240)
    }
    assert made.json("lineage", "mixture")["nodes"]
    assert made.json("publish", "--list")["published"] == published_bundle(made.root).name
    assert os.listdir(made.root.parents[1]) == [FOLDER]
    assert sorted(os.listdir(made.root.parent)) == ["cats", "photos"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("results",),
        ("report",),
        ("lineage", "mixture"),
        ("publish", "--list"),
        ("verify",),
        ("gc",),
        ("gc", "--superseded", "--keep", "1"),
        ("predict", "--top", "2"),
        ("init", "--force"),
        ("forget", "--dry-run", "--ids"),
    ],
    ids=lambda words: words[0],
)
def test_names_do_not_act_on_the_terminal(made, tmp_path, words):
    options = {"predict": ["--bundle", made.root, made.source], "init": [tmp_path / FOLDER, "--source", made.source]}
    if words[0] == "forget":
        (tmp_path / "ids").write_text(f"{ODD} 7.png\nunknown {TITLE}\n")
    arguments = [*words, *options.get(words[0], []), *([tmp_path / "ids"] if words[0] == "forget" else [])]
    seen = made.on_terminal(*arguments, on=words[0] not in options)
    assert all(line.isprintable() for line in seen.replace("\r", "").split("\n")), seen
    assert not re.search("^Error: forged", seen, re.MULTILINE)


@pytest.mark.slow
def test_names_do_not_act_on_the_terminal_while_runs_are_under_way(made):
    assert "made, 0 fresh, 0 failed" in made.shown
    assert all(line.isprintable() for line in made.shown.replace("\r", "").split("\n"))


@pytest.mark.slow
def test_the_ui_answers_on_a_study_with_an_odd_name(made):
    with _ui(made) as address:
        _loads_the_study(address)


def _loads_the_study(address):
    query = "{ workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError { __typename } } } } }"
    request = urllib.request.Request(
        f"{address}/graphql", json.dumps({"query": query}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        (entry,) = json.load(answer)["data"]["workspaceOrError"]["locationEntries"]
    assert entry["locationOrLoadError"]["__typename"] == "RepositoryLocation"


@contextmanager
def _ui(made):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        made.line("ui", "--port", port),
        env=made.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + SECONDS
    try:
        while True:
            try:
                urllib.request.urlopen(f"{address}/server_info").close()
                break
            except OSError:
                assert process.poll() is None, process.stdout.read()
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=SECONDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t" * 150, ODD])
def test_run_and_ui_work_with_a_temporary_folder_that_no_socket_fits_into(tmp_path, name):
    (tmp_path / name).mkdir()
    commands = Commands(write(tmp_path / "cats", quick_study()).parent, [])
    commands.environment["TMPDIR"] = str(tmp_path / name)
    assert "made, 0 fresh, 0 failed" in commands.piped("run", "--until", "splits")
    with _ui(commands) as address:
        _loads_the_study(address)
    left = [path for path in (tmp_path / name).iterdir() if path.is_socket() or path.name.startswith("hardmoe-")]
    assert left == []


def test_a_link_is_the_same_each_time_and_lies_in_a_folder_of_ours_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(aliases, "BASES", [str(tmp_path / name) for name in ("absent", "others", "ours")])
    for name in ("others", "ours", "long"):
        (tmp_path / name).mkdir()
    others = tmp_path / "others" / f"hardmoe-{os.getuid()}"
    others.symlink_to(tmp_path)
    link = aliases.alias(tmp_path / "long")
    assert link == aliases.alias(tmp_path / "long")
    assert link.is_relative_to(tmp_path / "ours")
    assert link.samefile(tmp_path / "long")
    link.unlink()
    link.symlink_to(tmp_path)  # a link that leads elsewhere is not taken
    with pytest.raises(ValueError, match="no link to it can be created in any of"):
        aliases.alias(tmp_path / "long")


@pytest.mark.slow
def test_forget_gc_tidy_and_verify_work_below_an_odd_name(made, tmp_path):
    (tmp_path / "ids").write_text(f"{ODD} 7.png\n")
    assert made.json("forget", "--apply", "--ids", tmp_path / "ids")["posts"] == 1
    made.piped("gc", "--keep", 1, "--apply")
    made.piped("gc", "--superseded", "--apply")
    assert made.json("verify")["damaged"] == []
    assert os.listdir(made.root.parents[1]) == [FOLDER]
