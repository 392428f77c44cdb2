"""A study whose artifacts lie in a bucket."""

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from helpers import seaweed
from helpers.builders import TESTS
from helpers.command import write
from moe_core.errors import BadSetting
from moe_core.settings import Study
from moe_core.store.layout import Layout
from moe_core.store.places import claim
from moe_core.store.protocols import open_store
from moe_core.store.store import Store
from moe_core.study_file import dump_study, load_study
from pipelines.cli.common import study_at
from pipelines.cli.main import main


def test_without_a_uri_the_store_is_the_folder_of_the_study(tmp_path):
    store = open_store(Study(), root=tmp_path)
    assert (type(store), store.root, store.place) == (Store, tmp_path, None)


def test_with_a_uri_the_place_is_a_bucket_and_the_root_stays_local(tmp_path, monkeypatch):
    monkeypatch.setenv("HARDMOE_CACHE", str(tmp_path / "cache"))
    settings = {"uri": "s3://pets/cats/", "endpoint": "http://127.0.0.1:9", "cache_gib": 0.5}
    store = open_store(Study(store=settings), root=tmp_path)
    assert (store.place.uri, store.place.options) == ("s3://pets/cats", {"endpoint": "http://127.0.0.1:9"})
    assert (store.place.cache.root, store.place.cache.limit) == (tmp_path / "cache", 1 << 29)
    assert (store.root, store.layout.logs) == (tmp_path, Layout(tmp_path).logs)
    assert [*tmp_path.iterdir()] == [], "nothing was opened"


def test_a_bucket_of_another_study_is_refused_by_every_command(server, tmp_path, monkeypatch):
    for name, value in seaweed.environment(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HARDMOE_STUDY", "")  # which the commands set
    store = server.settings()
    cats, dogs = (write(tmp_path / name, Study(name=name, store=store)) for name in ("cats", "dogs"))
    place = study_at(cats).store.place
    assert [*place.names()] == [], "a command that reads claims nothing"
    claim(place, "cats", rounds=1)
    study_at(cats)
    with pytest.raises(BadSetting, match=r"holds the study 'cats', .* this one is 'dogs': give it a prefix of its own"):
        study_at(dogs)


FORKED = """
import os, sys
from pathlib import Path
import pipelines.run.worker
from moe_core.study_file import load_study
from moe_core.store.protocols import open_store
file = Path(sys.argv[1])
store = open_store(load_study(file), root=file.parent)
assert "obstore" not in sys.modules
for number in range(2):
    child = os.fork()
    if not child:
        store.place.write(f"forked/{number}", b"1")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
print([entry.name for entry in store.place.names()])
"""


def test_init_claims_the_bucket_and_refuses_one_that_cannot_be_used(server, tmp_path, monkeypatch):
    for name, value in seaweed.environment(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    store = server.settings()

    def init(name, *options):
        arguments = ["init", str(tmp_path / name), "--source", "synthetic", "--recipe", "demo", *options]
        done = CliRunner().invoke(main, arguments)
        return done.stderr if done.exit_code else ""

    assert init("cats", "--store", store.uri, "--endpoint", store.endpoint) == ""
    assert load_study(tmp_path / "cats" / "study.toml").store == store
    assert study_at(tmp_path / "cats" / "study.toml").store.place.read(".study") == b"cats\n"
    refused = {
        ("--store", store.uri, "--endpoint", store.endpoint): "holds the study 'cats'",
        ("--store", "s3://nowhere/x", "--endpoint", store.endpoint): "there is no bucket s3://nowhere/x",
        ("--store", "ftp://x"): "uri = 'ftp://x': wanted a bucket",
        ("--endpoint", store.endpoint): "does nothing without uri",
    }
    for options, message in refused.items():
        assert message in init("dogs", *options)
    assert not (tmp_path / "dogs" / "study.toml").exists()


def test_a_process_forked_before_the_first_request_uses_the_bucket(server, tmp_path):
    file = Layout(tmp_path).study_file
    file.write_text(dump_study(Study(store=server.settings())))
    environment = {**os.environ, **seaweed.environment(tmp_path / "cache"), "PYTHONPATH": str(TESTS.parent)}
    command = [sys.executable, "-c", FORKED, str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "['forked/0', 'forked/1']\n", done.stderr
