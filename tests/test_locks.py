"""Locks among the machines that share a folder: what NFS wants, and names that another machine has just removed."""

import errno
import fcntl
import multiprocessing
import os
from contextlib import ExitStack

import pytest

from moe_core.errors import LockHeld
from moe_core.store import locks
from moe_core.store.artifact import Spec
from moe_core.store.locks import Holder, builder, building, exclusive, hold_open, is_held, not_open, shared
from moe_core.store.store import Store

SPEC = Spec("trunk", None, "1", {}, {})


def nfs_lock(file, how):
    """As NFS has it: a shared lock wants a file that is open for reading, an exclusive one for writing (flock(2))."""
    mode = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
    if (how & fcntl.LOCK_SH and mode == os.O_WRONLY) or (how & fcntl.LOCK_EX and mode == os.O_RDONLY):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    flock(file, how)


flock = fcntl.flock


def test_all_locks_are_taken_as_nfs_wants_it(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", nfs_lock)
    with exclusive(tmp_path / "a"):
        assert is_held(tmp_path / "a")
    with shared(tmp_path / "a"):
        assert not is_held(tmp_path / "a")
    with building(tmp_path / "b"):
        assert builder(tmp_path / "b").process
    owner = type("Owner", (), {})()
    hold_open(tmp_path / "a", owner)
    with ExitStack() as until:
        assert not not_open(tmp_path / "a", until)
        del owner
    with ExitStack() as until:
        assert not_open(tmp_path / "a", until)


@pytest.mark.parametrize("why", [errno.ENOENT, errno.ESTALE])
@pytest.mark.parametrize("where", ["open", "flock"])
def test_a_lock_that_another_machine_has_just_removed_is_opened_again(tmp_path, monkeypatch, why, where):
    fails = [OSError(why, os.strerror(why))] * 2

    def flaky(function):
        def call(*arguments):
            if fails:
                raise fails.pop()
            return function(*arguments)

        return call

    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.01)
    if where == "open":
        monkeypatch.setattr(locks, "open", flaky(open), raising=False)
    else:
        monkeypatch.setattr(fcntl, "flock", flaky(flock))
    with exclusive(tmp_path / "new" / "lock", wait=False):
        assert fails == []
        assert is_held(tmp_path / "new" / "lock")


def test_a_lock_that_cannot_be_opened_for_long_is_an_error(tmp_path, monkeypatch):
    def gone(*_):
        raise FileNotFoundError(errno.ENOENT, "gone", "lock")

    monkeypatch.setattr(locks, "UNSEEN_SECONDS", 0.05)
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.01)
    monkeypatch.setattr(locks, "open", gone, raising=False)
    with pytest.raises(FileNotFoundError, match="gone"), exclusive(tmp_path / "lock"):
        pass


def test_a_lock_that_is_removed_before_it_is_had_is_taken_anew(tmp_path, monkeypatch):
    path, removed = tmp_path / "lock", []

    def remove_first(file, how):
        if not removed:
            removed.append(path.unlink())
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with exclusive(path):
        assert is_held(path)


def test_a_file_system_without_locks_is_named_with_what_to_do(tmp_path, monkeypatch):
    def without(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", without)
    with (
        pytest.raises(OSError, match=r"gives no locks \(flock\).*several-machines.md.*lock'"),
        exclusive(tmp_path / "lock"),
    ):
        pass


def test_the_lock_of_a_build_stays_and_is_free(tmp_path):
    store = Store(tmp_path)
    lock = store.layout.build_lock("trunk", None, SPEC.version)
    with store.building(SPEC):
        assert is_held(lock)
    assert is_held(lock) is False
    assert is_held(tmp_path / "other") is None
    assert store.builder(SPEC) is None, "the lock still names the last one"


def test_who_asks_for_a_builder_creates_nothing_and_is_not_seen_by_others(tmp_path):
    assert Store(tmp_path / "new").builder(SPEC) is None
    assert not (tmp_path / "new").exists()
    (tmp_path / "lock").touch()
    with open(tmp_path / "lock") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        assert builder(tmp_path / "lock") is None


@pytest.mark.parametrize("text", ["", "4711", "[]", '{"host": "a"', '{"pid": 7}', '{"host": 7, "process": "x"}'])
def test_a_lock_that_does_not_tell_who_builds_is_held_by_another_process(tmp_path, text):
    with exclusive(tmp_path / "lock"):
        (tmp_path / "lock").write_text(text)
        assert str(builder(tmp_path / "lock")) == "built by another process"


def test_a_builder_elsewhere_is_told_from_one_of_this_machine(tmp_path):
    assert Holder("gpu02", "4711_90125_1f0c9a3e_0123abcd").is_elsewhere
    assert not Holder("gpu02", "x").is_elsewhere
    with building(tmp_path / "lock"):
        assert not builder(tmp_path / "lock").is_elsewhere


def test_whoever_gets_the_lock_of_a_build_changes_its_folder_so_that_nfs_looks_into_it_again(tmp_path):
    store, folder = Store(tmp_path), tmp_path / "trunk"
    with store.building(SPEC):
        pass
    os.utime(folder, times=(0, 0))
    with store.building(SPEC):
        assert folder.stat().st_mtime > 0
        assert [path.name for path in folder.iterdir()] == [f".lock-{SPEC.version}"]


def _hold(path, held, end):
    with exclusive(path):
        held.set()
        end.wait()


def test_a_lock_is_free_once_its_process_is_killed(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    held, end = spawn.Event(), spawn.Event()
    process = spawn.Process(target=_hold, args=(tmp_path / "lock", held, end))
    process.start()
    assert held.wait(60)
    assert is_held(tmp_path / "lock")
    with pytest.raises(LockHeld), exclusive(tmp_path / "lock", wait=False):
        pass
    process.kill()
    process.join()
    assert is_held(tmp_path / "lock") is False
