"""A takedown in a bucket: posts leave all of it, and no process that was stopped meanwhile brings them back."""

import os
import signal
import subprocess
import sys

import pytest

from helpers import quick_leases, seaweed
from helpers.builders import CONTINUE, TESTS, until_it_stops
from helpers.takedown import GONE, blobs_with, pixels_on_disk, reopen, two_shards
from moe_core.engine.build import build
from moe_core.errors import LockHeld
from moe_core.maintenance.gc import collect
from moe_core.maintenance.takedown import forget
from moe_core.maintenance.verify import Damage, verify
from moe_core.store.layout import Layout
from moe_core.study_file import dump_study
from moe_core.tables.cleaning import search
from moe_core.tables.location import tables_of
from moe_core.workspace import open_study

PATIENT = 180


@pytest.fixture(autouse=True, scope="module")
def machine(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in seaweed.environment(tmp_path_factory.mktemp("cache")).items():
            patch.setenv(name, value)
        undo = quick_leases.use()
        yield
        undo()


@pytest.fixture(scope="module")
def filled(server, tmp_path_factory):
    return two_shards(tmp_path_factory.mktemp("study"), posts=12, store=server.settings())


@pytest.fixture
def ingested(server, filled, tmp_path):
    """The study in a bucket of its own."""
    context = open_study(filled.study.changed(store=server.settings()), tmp_path / "store")
    context.root.mkdir()
    for entry in filled.store.place.names():
        context.store.place.write(entry.name, filled.store.place.read(entry.name))
    context.store.layout.study_file.write_text(dump_study(context.study))
    return reopen(context)


def is_gone(context):
    """Whether no version of a table has the post, no data file lies beside them, and nothing else has its bytes."""
    place = context.store.place
    for table in tables_of(context.store):
        found = [(file, batch["id"].to_pylist()) for file, _, batch in search(table, ["id"])]
        files = {entry.name.rpartition("/")[2] for entry in place.names(f"{table.name}/data")}
        if any(GONE in ids for _, ids in found) or files != {file for file, _ in found}:
            return False
    return not blobs_with(place, GONE.encode()) and not blobs_with(place, pixels_on_disk(0))


def test_what_is_taken_down_leaves_the_bucket_and_does_not_come_back(ingested):
    place = ingested.store.place
    assert blobs_with(place, GONE.encode())
    assert blobs_with(place, pixels_on_disk(0))
    done = forget(ingested, ids=[GONE])
    assert (done.posts, done.shards, done.left) == (1, ["a"], [])
    assert is_gone(ingested)
    assert blobs_with(place, pixels_on_disk(1)), "others stay"
    again = reopen(ingested)
    assert not again.takedowns.pending
    assert not [one for one in verify(again) if isinstance(one, Damage)]
    build(again, "posts", "a")
    assert again.need("posts", "a").metadata["rejected"] == 2
    assert not blobs_with(place, pixels_on_disk(0))
    assert forget(reopen(again)).posts == 0


FORGET = """
import sys
from pathlib import Path
from helpers import quick_leases
from helpers.takedown import GONE
from moe_core.engine.build import build
from moe_core.maintenance.gc import collect
from moe_core.maintenance.takedown import forget
from moe_core.study_file import load_study
from moe_core.workspace import open_study
quick_leases.use()
file = Path(sys.argv[1])
context = open_study(load_study(file), file.parent)
if sys.argv[2] == "forget":
    forget(context, ids=[GONE])
elif sys.argv[2] == "gc":
    collect(context, superseded=True, keep=0)
else:
    build(context, "posts", sys.argv[2])
"""


def process(context, what, fault=""):
    command = [sys.executable, "-c", FORGET, str(context.store.layout.study_file), what]
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}", "HARDMOE_FAULT": fault}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def soak(*points):
    return [pytest.param(point, marks=pytest.mark.soak) for point in points]


LONG = soak("document.created", "lease.taken", "artifact.removed", "document.changed 3")


@pytest.mark.parametrize("point", ["rows.committed", *LONG])
def test_a_takedown_that_is_killed_is_finished_by_the_next(ingested, point):
    with process(ingested, "forget", f"kill {point}") as killed:
        assert killed.wait(PATIENT) == -signal.SIGKILL, killed.stderr.read()
    assert reopen(ingested).takedowns.pending
    forget(reopen(ingested))
    assert is_gone(ingested)
    assert not reopen(ingested).takedowns.pending
    assert not [one for one in verify(reopen(ingested)) if isinstance(one, Damage)]


def elsewhere(context, folder):
    """The study on another machine, with smaller pictures, whose posts are not ingested yet."""
    study = context.study
    changed = study.changed(data=study.data.model_copy(update={"image_size": 8}))
    folder.mkdir()
    file = Layout(folder).study_file
    file.write_text(dump_study(changed))
    return open_study(changed, folder)


@pytest.mark.parametrize("point", ["rows.checked 1 posts.lance", *soak("rows.uploading", "artifact.manifest")])
def test_a_process_that_wakes_up_after_the_takedown_brings_no_post_back(ingested, tmp_path, point):
    writer = process(elsewhere(ingested, tmp_path / "elsewhere"), "a", f"stop {point}")
    with writer:
        until_it_stops(writer)
        forget(reopen(ingested), ids=[GONE])
        assert is_gone(ingested)
        writer.send_signal(CONTINUE)
        assert writer.wait(PATIENT) != 0
        said = writer.stderr.read()
        assert "Overtaken" in said, said
    collect(reopen(ingested))
    assert is_gone(ingested)
    assert not [one for one in verify(reopen(ingested)) if isinstance(one, Damage)]


@pytest.mark.soak
@pytest.mark.parametrize("point", ["lease.taken", "artifact.removed", "artifact.removed 2", "rows.committed"])
def test_a_clean_up_that_is_killed_is_finished_by_the_next(ingested, tmp_path, point):
    now = elsewhere(ingested, tmp_path / "elsewhere")
    build(now, "posts", "a")
    with process(now, "gc", f"kill {point}") as killed:
        assert killed.wait(PATIENT) == -signal.SIGKILL, killed.stderr.read()
    collect(reopen(now), superseded=True, keep=0)
    left = collect(reopen(now), superseded=True, keep=0)
    assert (left.removed, left.versions, left.files) == ([], 0, 0)
    wanted = {now.version("posts", key) for key in ("a", "b")}  # `two_shards` built this one of b
    assert {artifact.version for artifact in now.store.everything("posts")} == wanted
    assert not [one for one in verify(reopen(now)) if isinstance(one, Damage)]


def test_rows_that_no_table_has_yet_are_refused_too(server, filled, tmp_path):
    context = open_study(filled.study.changed(store=server.settings()), tmp_path / "store")
    context.root.mkdir()
    build(context, "posts", "b")
    with process(elsewhere(context, tmp_path / "elsewhere"), "a", "stop rows.checked 1 posts.lance") as writer:
        until_it_stops(writer)
        assert forget(reopen(context), ids=[GONE]).unknown == [GONE]
        writer.send_signal(CONTINUE)
        assert "Overtaken" in writer.communicate(timeout=PATIENT)[1]
    collect(reopen(context))
    assert is_gone(context)


def test_while_a_process_builds_a_takedown_is_only_recorded(ingested):
    with ingested.store.keeping(), pytest.raises(LockHeld, match="the takedown is recorded and nothing is removed yet"):
        forget(ingested, ids=[GONE])
    assert reopen(ingested).takedowns.pending
    forget(reopen(ingested))
    assert is_gone(ingested)
