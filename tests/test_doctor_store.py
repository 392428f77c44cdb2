"""`hardmoe doctor --study`: where a study's artifacts lie, and what is wrong there."""

import json

import pytest

from helpers import seaweed
from helpers.command import write
from helpers.partitioned import hardmoe
from helpers.with_controls import small_study
from moe_core.settings import Partition


def asked(file):
    done = hardmoe("doctor", "--study", file, "--json")
    said = json.loads(done.stdout)
    assert (done.exit_code == 0) == (said["problems"] == [])
    return said["machine"], said["problems"]


def test_a_folder_and_the_experts_of_the_study(tmp_path):
    file = write(tmp_path / "study", small_study(partition=Partition(experts=77)))
    machine, problems = asked(file.parent)
    assert problems == []
    assert machine["store"].startswith(f"{file.parent}, a folder with ")
    assert machine["workers"].endswith("in a study of 77 experts")


@pytest.mark.slow
def test_a_bucket_that_answers_and_one_that_does_not(server, tmp_path, monkeypatch):
    for name, value in seaweed.environment(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    settings = server.settings()
    file = write(tmp_path / "study", small_study(store=settings))
    machine, problems = asked(file)
    assert problems == []
    assert machine["store"].startswith(f"{settings.uri}, empty yet, answers in ")
    assert "keeps If-None-Match; cache of 50 GiB in " in machine["store"]
    place = server.place(tmp_path, uri=settings.uri)
    assert [*place.names("")] == [], "it leaves nothing"
    place.create(".study", b"dogs\n")
    _, problems = asked(file)
    assert problems == [
        f"store: {settings.uri} holds the study 'dogs', whose posts and networks lie there; this one is "
        "'tiny': give it a prefix of its own in store.uri"
    ]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    _, (problem,) = asked(file)
    assert problem.startswith(f"store: {settings.uri}")
