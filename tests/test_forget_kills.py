"""Takedowns that are killed at any point, or come while an artifact is made."""

import multiprocessing
import os
import signal

import pytest

from helpers.command import hardmoe
from helpers.takedown import GONE, files_with, pixels_on_disk, reopen, two_shards
from moe_core.data.takedowns import Takedowns
from moe_core.engine.build import build
from moe_core.errors import LockHeld
from moe_core.maintenance.takedown import forget
from moe_core.store.documents import FolderDocuments
from moe_core.store.locks import shared
from moe_core.store.store import Store
from moe_core.workspace import open_study


@pytest.fixture
def ingested(tmp_path):
    return two_shards(tmp_path)


def _die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def _killed_at(study, root, point):
    from moe_core.maintenance import takedown
    from moe_core.tables import shards

    if point == "after the logs":
        takedown.clear_tables = _die
    elif point == "before the commit":
        shards.swap = _die
    elif point == "between posts and rejects":
        clean, calls = takedown.clean, []

        def once(path, *more, **others):
            calls.append(path)
            return clean(path, *more, **others) if len(calls) < 2 else _die()

        takedown.clean = once
    elif point == "before the Lance tags":
        takedown.release = _die
    elif point == "before the clean-up":
        takedown.clean = _die
    elif point == "in an artifact":
        Store.remove = _die
    elif point == "before the logs":
        takedown.clear_logs = _die
    elif point == "before it is done":
        Takedowns.finished = _die
    forget(open_study(study, root), ids=[GONE], users=["user-ann"])


POINTS = [
    "before the logs",
    "after the logs",
    "before the commit",
    "between posts and rejects",
    "before the Lance tags",
    "before the clean-up",
    "in an artifact",
    "before it is done",
]


@pytest.mark.parametrize("point", POINTS)
def test_a_takedown_killed_at_any_point_is_finished_by_the_next(ingested, point):
    root = ingested.root
    process = multiprocessing.get_context("spawn").Process(target=_killed_at, args=(ingested.study, root, point))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert Takedowns.load(FolderDocuments(root)).pending
    assert reopen(ingested).find("posts", "a") is None, "nobody reads what is to go"
    forget(reopen(ingested))
    assert not Takedowns.load(FolderDocuments(root)).pending
    assert files_with(root, b"post-of-ann") == []
    assert files_with(root, pixels_on_disk(0)) == files_with(root, pixels_on_disk(120)) == []
    made = build(reopen(ingested), "posts", "a").artifact
    assert made.metadata["reasons"] == {"taken_down": 4}


def test_while_an_artifact_is_made_it_is_written_down_and_done_later(ingested):
    with shared(ingested.store.layout.in_use), pytest.raises(LockHeld, match="recorded and nothing is removed yet"):
        forget(ingested, ids=[GONE])
    assert Takedowns.load(FolderDocuments(ingested.root)).pending
    assert files_with(ingested.root, pixels_on_disk(0))
    done = forget(reopen(ingested))
    assert done.posts == 1
    assert files_with(ingested.root, pixels_on_disk(0)) == []


@pytest.mark.slow
def test_a_run_first_finishes_a_takedown_that_had_to_wait(ingested):
    with shared(ingested.store.layout.in_use), pytest.raises(LockHeld):
        forget(ingested, ids=[GONE])
    study_file = ingested.root / "study.toml"
    assert "A takedown is not finished: hardmoe forget" in hardmoe("status", "--study", study_file).stdout
    done = hardmoe("run", "--study", study_file, "--until", "posts")
    assert "1 posts of 1 shards removed" in done.stdout
    assert not Takedowns.load(FolderDocuments(ingested.root)).pending
    assert files_with(ingested.root, GONE.encode()) == []
    assert reopen(ingested).need("posts", "a").metadata["reasons"]["taken_down"] == 1
