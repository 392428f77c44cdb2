"""Documents of a study in a bucket, and in a folder: nothing of two writers is lost when one is stopped or killed."""

import json
import os
import signal
import subprocess
import sys
from itertools import pairwise

import pytest

from helpers.builders import TESTS, until_it_stops
from moe_core.errors import StorageFailed
from moe_core.serving.publication import read_log
from moe_core.store.blobs import Folder
from moe_core.store.documents import BucketDocuments, FolderDocuments
from moe_core.store.layout import NAMES
from moe_core.store.objects import Objects
from moe_core.store.store import Store

NAME = NAMES.publication
PATIENT = 120  # seconds


def documents_of(place):
    """As the store has them that lies there."""
    return FolderDocuments(root=place.root) if isinstance(place, Folder) else BucketDocuments(place)


def put(documents, data, name=NAME):
    return documents.update(name, lambda _: data)


def records(place, name=NAME):
    return [int(entry.name.rpartition("/")[2]) for entry in place.names(f"documents/{name.as_posix()}")]


def test_a_folder_keeps_its_files_and_a_bucket_its_records(tmp_path, server):
    documents = Store(root=tmp_path / "study").documents
    put(documents, b"one")
    assert (type(documents), (tmp_path / "study" / "published.json").read_bytes()) == (FolderDocuments, b"one")
    place = server.place(tmp_path)
    put(Objects(place, tmp_path).documents, b"one")
    assert records(place) == [1]


def test_a_document_is_read_replaced_and_removed(place):
    documents = documents_of(place)
    assert (documents.read(NAME), documents.stamps([NAME])) == (None, [""])
    seen = []
    for data in (b"one", b"", None, b"two\nlines\n"):
        assert documents.update(NAME, lambda before, data=data: (seen.append(before), data)[1])
        assert documents.read(NAME) == data
    assert seen == [None, b"one", b"", None]
    assert not put(documents, b"two\nlines\n"), "it was that already"


def test_stamps_change_with_their_documents_alone(place):
    documents, other = documents_of(place), NAMES.request("trunk")
    names = [NAME, other, NAMES.takedowns]
    put(documents, b"one")
    before = documents.stamps(names)
    assert documents.stamps(names) == before
    put(documents, b"1", other)
    after = documents.stamps(names)
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False, True]
    put(documents, None, other)
    assert documents.stamps(names)[1] not in (before[1] or "never", after[1])


def test_pointers_of_an_asset_are_listed(place):
    documents = documents_of(place)
    for name in (NAMES.current("trunk", "a"), NAMES.request("trunk"), NAMES.current("partition", "b"), NAME):
        put(documents, b"1", name)
    assert documents.names(NAMES.asset("trunk")) == [NAMES.current("trunk", "a"), NAMES.request("trunk")]
    assert documents.names(NAMES.asset("expert")) == []


# ---- records, whose writers and readers sleep at the worst moment


class Between(Folder):
    """A place where something happens before a record is created, or read."""

    def __init__(self, root, **happens):
        super().__init__(root)
        self.happens = happens

    def _happen(self, what):
        if action := self.happens.pop(what, None):
            action()

    def create(self, name, data):
        self._happen("create")
        return super().create(name, data)

    def read(self, name):
        self._happen("read")
        return super().read(name)


def appended(letter):
    return lambda before: (before or b"") + letter


def test_a_writer_that_slept_while_its_number_was_used_and_trimmed_starts_over(tmp_path):
    others = BucketDocuments(Folder(tmp_path))
    put(others, b"a")

    def meanwhile():
        for letter in (b"b", b"c", b"d"):
            others.update(NAME, appended(letter))
        assert records(others.place) == [4], "2 is free again"

    slow = BucketDocuments(Between(tmp_path, create=meanwhile))
    seen = []
    assert slow.update(NAME, lambda before: (seen.append(before), before + b"s")[1])
    assert seen == [b"a", b"abcd"]
    assert others.read(NAME) == b"abcds"
    assert records(others.place) == [5]


def test_a_reader_whose_record_is_trimmed_reads_the_next_one(tmp_path):
    others = BucketDocuments(Folder(tmp_path))
    put(others, b"a")
    reader = BucketDocuments(Between(tmp_path, read=lambda: put(others, b"b")))
    assert reader.read(NAME) == b"b"


def test_a_record_that_is_listed_and_never_there_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("moe_core.store.documents.PAUSE", 0)
    documents = BucketDocuments(Folder(tmp_path))
    put(documents, b"a")
    monkeypatch.setattr(documents.place, "read", lambda name: None)
    with pytest.raises(StorageFailed, match=r"published\.json: each of 100 records that were listed was gone"):
        documents.read(NAME)


def test_bytes_that_are_no_record_are_given_to_the_reader_who_finds_them_damaged(tmp_path):
    documents = BucketDocuments(Folder(tmp_path))
    put(documents, None, NAME)
    put(documents, b"a", NAME)
    put(documents, None, NAME)
    (record,) = (tmp_path / "documents" / "published.json").iterdir()
    whole = record.read_bytes()
    for cut in range(len(b"hardmoe document removed ")):
        record.write_bytes(whole[:cut])
        assert documents.read(NAME) is not None, whole[:cut]


# ---- processes

WRITER = """
import json, os, sys
from pathlib import PurePath
from helpers.writers import documents
documents = documents(json.loads(sys.argv[1]))
name, turns = sys.argv[2], int(sys.argv[3])
def appended(before):  # finds its own work, as it must: others may have gone on from there before this one looked
    return before if mine in (before or b"") else (before or b"") + mine
for turn in range(turns):
    mine = f"{name}{turn} ".encode()
    documents.update(PurePath("published.json"), appended)
print("written", flush=True)
"""


def writer(where, name, turns, program=WRITER, **environment):
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}", **environment}
    command = [sys.executable, "-c", program, json.dumps(where), name, str(turns)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def where_of(place):
    if isinstance(place, Folder):
        return {"root": str(place.root)}
    return {"uri": place.uri, "options": place.options, "cache": str(place.cache.root)}


def test_processes_that_write_at_once_lose_nothing_of_each_other(place):
    turns = 5
    running = [writer(where_of(place), name, turns) for name in "abc"]
    documents, seen = documents_of(place), []
    while any(one.poll() is None for one in running):
        seen.append((documents.read(NAME) or b"").split())
    for one in running:
        assert (one.wait(PATIENT), one.stdout.read()) == (0, "written\n")
        one.stdout.close()
    lines = documents.read(NAME).decode().split()
    assert sorted(lines) == sorted(f"{name}{turn}" for name in "abc" for turn in range(turns))
    assert all(after[: len(before)] == before for before, after in pairwise(seen))
    if not isinstance(place, Folder):
        assert records(place) == [3 * turns]


def test_a_process_that_was_stopped_while_others_used_and_trimmed_its_number_starts_over(server, tmp_path):
    place = server.place(tmp_path)
    documents = documents_of(place)
    put(documents, b"old ")
    with writer(where_of(place), "s", 1, HARDMOE_FAULT="stop document.changed") as stopped:
        until_it_stops(stopped)
        for letter in (b"b ", b"c ", b"d "):
            documents.update(NAME, appended(letter))
        stopped.send_signal(signal.SIGCONT)
        assert stopped.wait(PATIENT) == 0
    assert documents.read(NAME) == b"old b c d s0 "
    assert records(place) == [5]


POINTS = {
    "document.listed": b"old",
    "document.changed": b"old",
    "document.created": b"oldk0 ",
    "document.trimmed": b"oldk0 ",
}


@pytest.mark.parametrize("point", POINTS)
def test_a_writer_that_is_killed_leaves_the_old_document_or_the_new_one(server, tmp_path, point):
    place = server.place(tmp_path)
    documents = documents_of(place)
    put(documents, b"old")
    with writer(where_of(place), "k", 1, HARDMOE_FAULT=f"kill {point}") as killed:
        assert killed.wait(PATIENT) == -signal.SIGKILL
    assert documents.read(NAME) == POINTS[point]
    assert documents.update(NAME, appended(b"next"))
    assert documents.read(NAME) == POINTS[point] + b"next"
    assert len(records(place)) == 1, "what the killed one left is trimmed"


# ---- the publication log

PUBLISHER = """
import json, sys
from helpers.writers import documents
from moe_core.serving.publication import Decision, change
documents = documents(json.loads(sys.argv[1]))
for turn in range(int(sys.argv[3])):
    one = f"{sys.argv[2]}{turn}"
    def forced(log):
        return log.adding(Decision("forced", one, log.published, one, "by hand", "a test", "", {"gain": [0.1, 1e-9]}))
    change(documents, forced)
print("written", flush=True)
"""


def publisher(where, name, turns, **environment):
    return writer(where, name, turns, PUBLISHER, **environment)


def test_two_publishers_at_once_lose_no_decision(server, tmp_path):
    place = server.place(tmp_path)
    running = [publisher(where_of(place), name, 6) for name in "ab"]
    for one in running:
        with one:
            assert one.wait(PATIENT) == 0
    history = read_log(documents_of(place)).history
    assert sorted(d.mixture for d in history) == sorted(f"{name}{turn}" for name in "ab" for turn in range(6))
    assert [d.baseline for d in history] == ["", *(d.published for d in history[:-1])]


def test_a_publisher_that_was_stopped_after_its_decision_while_others_decided_decides_once(server, tmp_path):
    place = server.place(tmp_path)
    with publisher(where_of(place), "s", 1, HARDMOE_FAULT="stop document.created") as stopped:
        until_it_stops(stopped)
        with publisher(where_of(place), "b", 2) as other:
            assert other.wait(PATIENT) == 0
        stopped.send_signal(signal.SIGCONT)
        assert stopped.wait(PATIENT) == 0
    assert [decision.mixture for decision in read_log(documents_of(place)).history] == ["s0", "b0", "b1"]
