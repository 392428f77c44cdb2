"""A process that is stopped just before its commit, and wakes up after others deleted what it wrote."""

import signal

import pytest

from helpers import builders
from helpers.builders import CONTINUE, QUICK, until_it_stops
from moe_core.store.objects import Objects

ATTEMPT = "at-"

pytestmark = pytest.mark.usefixtures("no_process_is_left")


def remove_garbage(store):
    """What a takedown does with what is unfinished."""
    with store.deleting(pace=QUICK):
        found = store.garbage("expert")
        for name in (*found.lost, *found.unfinished):
            store.place.remove(name)
    return found


def attempts(store):
    return [entry.name for entry in store.place.names("expert") if f"/{ATTEMPT}" in entry.name]


def test_what_is_committed_after_a_deletion_is_taken_back(server, tmp_path):
    store = Objects(server.place(tmp_path), tmp_path)
    late = builders.start(store.place, tmp_path / "late", fault="stop artifact.manifest")
    until_it_stops(late)
    assert len(remove_garbage(store).unfinished) == 1
    late.send_signal(CONTINUE)
    *_, last = builders.said(late)
    assert last.startswith("Overtaken ")
    assert store.find(builders.spec()) is None
    assert attempts(store) == []
    assert builders.is_right(builders.build(store.place, root=tmp_path)), "it is built again"


def test_a_commit_after_a_deletion_whose_process_was_killed_at_once_is_garbage(server, tmp_path):
    store = Objects(server.place(tmp_path), tmp_path)
    killed = builders.start(store.place, tmp_path / "killed", fault="kill artifact.committed")
    assert killed.wait() == -signal.SIGKILL
    made = store.find(builders.spec())
    store.place.remove(made.base)  # as a deletion did before the commit
    assert remove_garbage(store).lost == [made.base.rpartition("/")[0]]
    assert store.find(builders.spec()) is None


def test_what_was_committed_before_a_deletion_stays_unless_its_process_wakes_up_in_doubt(server, tmp_path):
    store = Objects(server.place(tmp_path), tmp_path)
    stopped = builders.start(store.place, tmp_path / "late", fault="stop artifact.committed")
    until_it_stops(stopped)
    assert remove_garbage(store).unfinished == []
    assert builders.is_right(store.find(builders.spec()))
    stopped.send_signal(CONTINUE)
    *_, last = builders.said(stopped)
    assert last.startswith("Overtaken ")
    assert store.find(builders.spec()) is None
