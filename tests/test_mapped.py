"""Arrays that the processes of a machine map: tags and places of the posts of a training."""

import os
import signal
import subprocess
import sys
import tracemalloc
import warnings

import numpy as np
import pytest
import torch

from helpers.ranks import TRUNK, context_of
from moe_core.data import mapped as module
from moe_core.data.mapped import mapped
from moe_core.engine.build import build_all
from moe_core.stages import reading
from moe_core.store.leftovers import leftovers, local_leftovers
from moe_core.tables.runs import Runs
from moe_core.training.batches import batches


@pytest.fixture
def long(monkeypatch):
    """However short arrays are, they are in files."""
    monkeypatch.setattr(module, "SHORT_BYTES", -1)


def parts(count, size=1000):
    return lambda: ((np.arange(n, n + size), np.array([n])) for n in range(0, count * size, size))


def test_short_arrays_leave_no_file(tmp_path):
    one, two = mapped(tmp_path, "key", ("one", "two"), parts(3))
    assert one.tolist() == list(range(3000))
    assert two.tolist() == [0, 1000, 2000]
    assert not list(tmp_path.iterdir())


def test_long_arrays_are_written_once_and_mapped(tmp_path, long):
    wanted = mapped(tmp_path / "new", "key", ("one", "two"), parts(3))
    assert all(isinstance(array, np.memmap) for array in wanted)

    def never():
        raise AssertionError

    again = mapped(tmp_path / "new", "key", ("one", "two"), never)
    assert (
        [array.tolist() for array in again]
        == [array.tolist() for array in wanted]
        == [list(range(3000)), [0, 1000, 2000]]
    )
    (empty,) = mapped(tmp_path / "new", "none", ("one",), lambda: [])
    assert empty.tolist() == []


def test_memory_holds_a_part_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHORT_BYTES", 1 << 20)
    tracemalloc.start()
    try:
        one, _ = mapped(tmp_path, "key", ("one", "two"), parts(1000))
        assert int(one[-1]) == 999_999
        assert tracemalloc.get_traced_memory()[1] < 3 << 20  # 8 MB of numbers
    finally:
        tracemalloc.stop()


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from moe_core.data import mapped as module
module.SHORT_BYTES = -1
def parts():
    yield [np.arange(100_000)]
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    yield [np.arange(100_000)]
print(len(module.mapped(Path(sys.argv[1]), "key", ("one",), parts)[0]))
"""


def test_of_a_killed_process_nothing_is_seen_and_the_next_one_removes_what_it_left(tmp_path):
    dead = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), "kill"], check=False)
    assert dead.returncode == -signal.SIGKILL
    assert all(name.startswith(".") for name in os.listdir(tmp_path))
    many = [
        subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path), ""], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [one.communicate()[0] for one in many] == ["200000\n"] * 3
    assert sorted(os.listdir(tmp_path)) == [".lock", "key"]


def test_runs_are_the_numbers_one_by_one():
    runs = Runs([(5, 3), (20, 0), (0, 2)])
    assert len(runs) == 5
    assert runs[np.array([4, 0, 2, 3])].tolist() == [1, 5, 7, 0]
    assert len(Runs([])) == 0
    with pytest.raises(IndexError):
        runs[np.array([5])]


def test_the_posts_of_a_training_are_the_same_where_they_are_mapped(tmp_path, monkeypatch):
    context = context_of(tmp_path)
    build_all(context, ("posts", "splits", "vocabulary"))
    short = reading.training_posts(context)
    index = reading.index(context)
    one_by_one = reading.posts_where(context, index, index.use("train"))
    monkeypatch.setattr(module, "SHORT_BYTES", -1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        long = reading.training_posts(context)
    assert isinstance(long.images.posts_N, np.memmap)
    drawn = [list(batches(posts, TRUNK, 0, 5)) for posts in (short, long, one_by_one)]
    for some in zip(*drawn, strict=True):
        for batch in some[1:]:
            assert torch.equal(batch.images_BCHW, some[0].images_BCHW)
            assert torch.equal(batch.tags_BM, some[0].tags_BM)

    monkeypatch.setattr(reading, "index", None)  # the next process does without
    assert torch.equal(reading.training_posts(context).tags_T, short.tags_T)
    assert context.store.layout.arrays in list(leftovers(context.store.layout, []))
    assert context.store.layout.arrays in list(local_leftovers(context.store.layout)), "of a study in a bucket, too"
