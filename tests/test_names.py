"""Names that some library reads as a pattern, a URL or an option, that a terminal obeys, or that are not UTF-8."""

import csv
import io
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from helpers.growing import opened
from moe_core.data.sources import find_shards, guess_format, read_shard
from moe_core.data.synthetic import synthetic_posts
from moe_core.engine.stage import build
from moe_core.serving.publication import published_bundle
from moe_core.settings import Source, dump_study, load_study
from moe_core.stages.graph import GRAPH
from moe_core.tables import ids_in, pin_of, pins, read_rows, replace_rows, vectors_in, write_vectors
from moe_core.text import shown
from pipelines import aliases
from test_operations import hardmoe, small_study, write

ODD = "é [1] %20 #~ ?x *"
TITLE = "\x1b]0;owned\x07\u202e\x9b2J"  # sets a terminal's title, turns the line around, clears the screen
FOLDER, FILE = f"{ODD} {TITLE}\nError: forged", f"{ODD} {TITLE}"
SECONDS = 240  # for a command, on a machine that others use


# what a name may hold, and each library reads otherwise than a file system does
NAMES = [
    ODD,
    FOLDER,
    "trailing ",
    "-leading",
    "~",
    "line\nend",
    "\"'\\",
    "🐱\u202e",
    "é" * 120,
    "a:b",
    "{a,b}",
    "%2e%2e",
    os.fsdecode(b"caf\xe9"),
]


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
    commands.study.write_text(dump_study(small_study(source=load_study(commands.study).source)))
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
        ("tidy", "--dry-run"),
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
    commands = Commands(write(tmp_path / "cats", small_study()).parent, [])
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
    made.piped("tidy", "--superseded", "--apply")
    assert made.json("verify")["damaged"] == []
    assert os.listdir(made.root.parents[1]) == [FOLDER]


def png(number=0):
    return next(synthetic_posts(0, 1, number + 1, seed=5)).to_pylist()[number]["image"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_lance_writes_into_the_folder_of_that_name_alone(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    schema = pa.schema({"position": pa.int64(), "id": pa.string()})
    rows = [pa.record_batch([[0, 1], ["a", "b"]], schema=schema)]
    replace_rows(folder / "posts.lance", schema, "s0", rows, ["posts.s0.v1"])
    assert read_rows(folder / "posts.lance", "posts.s0.v1", "s0", ["id"])["id"].to_pylist() == ["a", "b"]
    assert set(pins(folder / "posts.lance")) == {"posts.s0.v1"}
    vectors_BD = np.eye(2, dtype=np.float32)
    parts = [({"id": pa.array(["a", "b"])}, vectors_BD)]
    write_vectors(folder / "x.lance", {"id": pa.string()}, "vector", 2, parts, index=False)
    assert list(ids_in(folder / "x.lance")) == ["a", "b"]
    assert np.array_equal(np.concatenate(list(vectors_in(folder / "x.lance", "vector"))), vectors_BD)
    assert os.listdir(tmp_path) == [name]


def test_a_data_set_that_takes_the_place_of_another_is_the_one_that_is_read(tmp_path):
    schema = pa.schema({"position": pa.int64()})
    for count in (1, 2):
        path = tmp_path / ODD / "posts.lance"
        path.parent.mkdir()
        replace_rows(path, schema, "s0", [pa.record_batch([list(range(count))], schema=schema)], [f"posts.s0.v{count}"])
        assert read_rows(path, f"posts.s0.v{count}", "s0", ["position"]).num_rows == count
        shutil.rmtree(path.parent)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_lance_table_of_that_name_is_a_source(tmp_path, name):
    import lance

    lance.write_dataset(pa.table({"id": ["a"], "image": [png()], "tags": [["x"]]}), tmp_path / "plain")
    (tmp_path / "plain").rename(tmp_path / f"{name[:100]}.lance")
    source = Source(format="lance", uri=str(tmp_path))
    (shard,) = find_shards(source)
    assert [row["id"] for batch in read_shard(source, shard) for row in batch.to_pylist()] == ["a"]
    assert os.listdir(tmp_path) == [f"{name[:100]}.lance"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_files_of_that_name_are_sources_also_by_a_glob_below_that_name(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    with tarfile.open(folder / f"{name[:100]}.tar", "w") as tar:
        for member, data in (("a.png", png()), ("a.cls", b"x")):
            about = tarfile.TarInfo(member)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    for uri in (folder, folder / "*.tar", folder / f"{name[:100]}.tar"):
        source = Source(format="webdataset", uri=str(uri))
        unready = []
        (shard,) = find_shards(source, None, unready)
        assert not unready
        assert shard.path == str(folder / f"{name[:100]}.tar")
        assert [row["id"] for batch in read_shard(source, shard) for row in batch.to_pylist()] == ["a"]
        assert guess_format(str(uri)) == "webdataset"


def test_posts_and_rejects_of_files_whose_names_are_not_utf8_are_counted(tmp_path):
    folder = tmp_path / "source" / os.fsdecode(b"user=caf\xe9")
    folder.mkdir(parents=True)
    table = pa.table({"id": ["a", "b"], "image": [png(0), b"no"], "tags": [["x"], ["y"]]})
    with open(folder / os.fsdecode(b"\xe9.parquet"), "wb") as file:
        pa.parquet.write_table(table, file)
    context = opened(small_study(source=Source(format="parquet", uri=str(tmp_path / "source"))), tmp_path / "store")
    (shard,) = context.shards
    made = build(context, GRAPH["posts"], shard.key).artifact
    assert (made.metadata["accepted"], made.metadata["rejected"]) == (1, 1)
    pin = pin_of(shard.key, made.version)
    assert read_rows(tmp_path / "store" / "posts.lance", pin, shard.key, ["user"])["user"].to_pylist() == ["caf\\udce9"]
    rejects = read_rows(tmp_path / "store" / "rejects.lance", pin, shard.key, ["id", "source"])
    assert rejects.to_pylist()[0]["source"].endswith("/user=caf\\udce9/\\udce9.parquet")


def test_images_of_yfcc_lie_in_tars_with_names_that_are_not_utf8(tmp_path):
    from moe_core.data.sources.files import walk
    from moe_core.data.sources.tars import TarImages

    tars = tmp_path / os.fsdecode(b"caf\xe9")
    tars.mkdir()
    with tarfile.open(tars / os.fsdecode(b"\xe9.tar"), "w") as tar:
        for member in ("12.jpg", os.fsdecode(b"\xe9.jpg")):
            about = tarfile.TarInfo(member)
            about.size = 3
            tar.addfile(about, io.BytesIO(b"jpg"))
    for _ in range(2):  # the second time by the index of the first
        with TarImages(list(walk(tars)), tmp_path / "cache").open() as images:
            assert images.read("12") == b"jpg"
            assert images.read(os.fsdecode(b"\xe9")) == b"jpg"


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
    file = write(tmp_path / os.fsdecode(b"caf\xe9"), small_study())
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
    file = write(deep, small_study())
    done = hardmoe("run", "--study", file, "--until", "splits", check=False)
    assert (done.returncode, os.listdir(deep)) == (1, ["study.toml"])
    done = hardmoe("run", "--study", file, "--until", "splits", DAGSTER_HOME=str(tmp_path / "dagster"))
    assert "made, 0 fresh, 0 failed" in done.stdout


def test_a_locale_in_which_names_are_not_utf8_is_named(tmp_path):
    file = write(tmp_path / "é", small_study())
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
    mixture = next((both / "mixture").iterdir())
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
        (error,) = done.stderr.splitlines()
        assert b"\\udce9bad.png: not_an_image" in error
