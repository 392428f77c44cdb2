"""Failing writes and stages, processes that commit at once, clocks that step back: docs/reference/faults.md."""

import builtins
import errno
import io
import itertools
import multiprocessing
import os
import shutil
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from helpers.checkpoints import save_checkpoint
from helpers.faulty import files, make_all, tasks
from helpers.kills import study
from moe_core import failpoints
from moe_core.data.takedowns import Takedowns
from moe_core.engine.build import build
from moe_core.engine.stage import Graph
from moe_core.maintenance.verify import Damage, verify
from moe_core.models.resnet import build as build_network
from moe_core.settings import Network, Partition
from moe_core.stages.graph import GRAPH
from moe_core.store.artifact import Spec, StageOutput
from moe_core.store.documents import FolderDocuments
from moe_core.store.files import write_text
from moe_core.store.store import Store
from moe_core.training.checkpoint import load_checkpoint
from moe_core.workspace import open_study

PLAN = Spec("trunk", None, "1", {}, {})


pytestmark = pytest.mark.usefixtures("one_thread")


# The n-th call fails


class Counted:
    """A file whose writes are counted."""

    def __init__(self, file, passes):
        self._file, self._passes = file, passes

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *said):
        self._file.close()

    def write(self, data):
        self._passes(None)
        return self._file.write(data)


@contextmanager
def failing(nth, number, root):
    """The n-th open, mkdir, rename, write or fsync under `root` fails. Yields a list that has the call, once it did."""
    calls, hit = itertools.count(1), []

    def passes(path, what="write"):
        if next(calls) == nth:
            hit.append(what)
            raise OSError(number, os.strerror(number), *([str(path)] if path else []))

    def counted(call, what, names_path=True):
        def wrapped(*arguments, **more):
            if not names_path or str(arguments[0]).startswith(str(root)):
                passes(arguments[0] if names_path else None, what)
            return call(*arguments, **more)

        return wrapped

    def opened(path, mode="r", *arguments, **more):
        mine = str(path).startswith(str(root))
        if mine:
            passes(path, "open")
        file = real(path, mode, *arguments, **more)
        return Counted(file, passes) if mine and mode != "r" and mode != "rb" else file

    real = builtins.open
    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "rename", "replace", "open"):
            patch.setattr(os, name, counted(getattr(os, name), name))
        for name in ("fsync", "sendfile"):
            patch.setattr(os, name, counted(getattr(os, name), name, names_path=False))
        patch.setattr(builtins, "open", opened)
        patch.setattr(io, "open", opened)
        yield hit


def until_it_succeeds(root, work, check):
    """Lets the first call fail, then the second, ...; `check(error or None)` after each. Returns how many there are."""
    for nth in range(1, 400):
        error = None
        with failing(nth, (errno.EIO, errno.ENOSPC)[nth % 2], root) as hit:
            try:
                work()
            except (OSError, ValueError) as raised:
                error = raised
        check(error)
        if not hit:
            assert error is None
            return nth - 1
        if error:
            assert str(root) in str(error), f"{error!r} names no file ({hit})"
            assert os.strerror((errno.EIO, errno.ENOSPC)[nth % 2]) in str(error)
    raise AssertionError("it never succeeds")


def test_any_call_of_a_commit_may_fail_and_nothing_is_half_there(tmp_path):
    store = Store(tmp_path)

    def write(folder):
        (folder / "deep").mkdir()
        (folder / "deep" / "a.txt").write_text("a")
        write_text(folder / "b.txt", "b")
        return StageOutput({})

    def work():
        shutil.rmtree(tmp_path / "trunk", ignore_errors=True)
        store.make(PLAN, write)

    def check(error):
        made = store.versions("trunk", None)
        assert error or made
        for artifact in made:  # also where only what follows the commit failed
            assert {artifact.file(name).read_text() for name in ("deep/a.txt", "b.txt")} == {"a", "b"}
        assert [p for p in tmp_path.glob("trunk/*") if p.name.startswith(".part")] == []

    assert until_it_succeeds(tmp_path, work, check) > 15


def test_any_call_of_a_write_may_fail_and_the_old_text_stays(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")

    def check(error):
        assert file.read_text() == ("old" if error else "new")
        assert files(tmp_path) == [file]

    assert until_it_succeeds(tmp_path, lambda: write_text(file, "new"), check) == 5


def test_any_call_of_a_checkpoint_may_fail_and_the_old_one_stays(tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    model = build_network(Network(widths=(4,), depths=(1,), embedding=8), 3, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    save_checkpoint(file, model, optimizer, 1, 9)

    def check(error):
        assert load_checkpoint(file, model, optimizer, 9) == (1 if error else 2)
        assert files(tmp_path) == [file]
        save_checkpoint(file, model, optimizer, 1, 9)

    until_it_succeeds(tmp_path, lambda: save_checkpoint(file, model, optimizer, 2, 9), check)


@pytest.mark.parametrize(
    ("name", "key"), [("posts", "s0001"), ("vocabulary", None), ("expert", "e001"), ("mixture", None)]
)
def test_any_call_of_a_stage_may_fail_and_the_next_run_makes_the_same(copied, name, key):
    wanted = copied.need(name, key)
    context = open_study(copied.study, copied.root)
    context.spec(name, key)

    def work():
        shutil.rmtree(wanted.path, ignore_errors=True)
        build(context, name, key)

    def check(error):
        there = context.store.versions(name, key)
        assert there or error
        for artifact in there:
            assert artifact.content_hash == wanted.content_hash
            for file in artifact.files:
                artifact.file(file)

    assert until_it_succeeds(copied.root, work, check) > 10
    assert not [one for one in verify(context) if isinstance(one, Damage)]


def test_points_fail_as_they_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(failpoints, "armed", failpoints.parse("enospc file.half 2 b.txt"))
    write_text(tmp_path / "a.txt", "a")
    write_text(tmp_path / "b.txt", "old")
    with pytest.raises(OSError, match=r"No space left on device: '.*b\.txt'"):
        write_text(tmp_path / "b.txt", "new")
    assert (tmp_path / "b.txt").read_text() == "old"
    with pytest.raises(ValueError, match=r"wanted `kill\|stop\|eio\|enospc point"):
        failpoints.parse("sing loudly")


# Many at once


def _commit(root, number, rounds):
    store = Store(root)
    for n in range(rounds):
        assert store.make(PLAN, lambda folder: _one_file(folder, "same")).metadata == {"text": "same"}
        mine = replace(PLAN, asset="expert", key=f"e{number:03d}", code=str(n))
        assert store.make(mine, lambda folder, n=n: _one_file(folder, f"{number} {n}")).metadata
        assert len(list((root / "expert" / f"e{number:03d}").iterdir())) == n + 1


def _one_file(folder, text):
    (folder / "a.txt").write_text(text)
    return StageOutput({"text": text})


@pytest.mark.parametrize("rounds", [13, pytest.param(100, marks=pytest.mark.soak)])
def test_eight_processes_commit_the_same_a_hundred_times_and_keys_of_their_own(tmp_path, rounds):
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_commit, args=(tmp_path, number, rounds)) for number in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8
    store = Store(tmp_path)
    (same,) = store.everything("trunk")
    assert same.file("a.txt").read_text() == "same"
    texts = sorted(artifact.file("a.txt").read_text() for artifact in store.everything("expert"))
    assert texts == sorted(f"{number} {n}" for number in range(8) for n in range(rounds))


# Stages that fail


@pytest.mark.parametrize("experts", [1, 2, 7])
def test_after_a_failure_at_each_asset_in_turn_nothing_finished_is_made_again(tmp_path, experts):
    """Each stage fails once, when it has written all; what it had written is what it writes when it goes on."""
    small = study().model_copy(update={"partition": Partition(experts=experts, pca=8)})
    wanted = {}

    def fails(stage, key):
        def make(context, spec, folder):
            written = stage.maker()(context, spec, folder)
            wanted[stage.name, key] = Store(tmp_path / "aside").make(spec, lambda there: _moved(folder, there, written))
            raise ValueError("the lights went out")

        return Graph([*GRAPH.values(), replace(stage, make=make)], GRAPH.aliases)

    for number, (stage, key) in enumerate(tasks(open_study(small, tmp_path))):
        context = open_study(small, tmp_path)
        before = [build(context, s.name, k).reused for s, k in tasks(context)[:number]]
        assert all(before)
        with pytest.raises(ValueError, match="the lights went out"):
            build(open_study(small, tmp_path, graph=fails(stage, key)), stage.name, key)
        assert context.store.versions(stage.name, key) == []
        made = build(open_study(small, tmp_path), stage.name, key)
        assert not made.reused
        assert made.artifact.content_hash == wanted[stage.name, key].content_hash, (stage.name, key)


def _moved(folder, there, written):
    shutil.copytree(folder, there, dirs_exist_ok=True)
    return written


# Clocks


def test_a_clock_that_steps_back_changes_nothing(copied, finished_store, monkeypatch):
    from pipelines.run.status import states_of

    changed = copied.study.model_copy(
        update={"evaluation": copied.study.evaluation.model_copy(update={"bootstrap": 30})}
    )
    for path in files(copied.root):
        os.utime(path, (4e9, 4e9))  # written in the year 2096, as far as the disk knows
    clock = itertools.count(2e9, -3600)
    monkeypatch.setattr(time, "time", lambda: next(clock))
    context = open_study(changed, copied.root)
    _, made = make_all(context)
    assert made == [("evaluation", None), ("report", None)]
    assert {state.state for state in states_of(context)} == {"fresh"}
    whole, made = make_all(open_study(copied.study, copied.root))
    assert made == []
    assert whole == make_all(open_study(study(), finished_store))[0]
    assert Takedowns.load(FolderDocuments(copied.root)) == context.takedowns
