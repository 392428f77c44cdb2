"""Locks among the processes of one machine; each ends with the process that holds it."""

import errno
import fcntl
import os
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

from moe_core.errors import LockHeld
from moe_core.store.files import errors_with_path

WAIT_SECONDS = 0.2  # between two tries of a lock that another process holds


def exclusive(path: Path, wait: bool = True) -> AbstractContextManager[None]:
    """Holds a lock alone among the processes of this machine. Raises LockHeld when it is held and `wait` is False."""
    return _held(path, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def shared(path: Path) -> AbstractContextManager[None]:
    """Holds a lock together with others; waits while a process holds it exclusively."""
    return _held(path, fcntl.LOCK_SH)


@contextmanager
def _held(path: Path, how: int) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, how)
        except BlockingIOError:
            raise LockHeld(
                f"{path} is held by another process: an artifact is being built; try again when that run has ended",
                path,
            ) from None
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def building(lock: Path, on_wait: Callable[[int], None] = lambda pid: None) -> Iterator[None]:
    """Holds the lock of a build, with this process's id in it; removes it when the build succeeds.

    While another process holds it, waits and calls `on_wait` once for each builder: its pid, 0 where it gives none.
    """
    with ExitStack() as held:
        _wait_for(lock, held, on_wait)
        with errors_with_path(lock):
            lock.write_text(str(os.getpid()))
        yield
    lock.unlink(missing_ok=True)


def _wait_for(lock: Path, held: ExitStack, on_wait: Callable[[int], None]) -> None:
    reported: int | None = None
    while True:
        try:
            held.enter_context(exclusive(lock, wait=False))
            return
        except LockHeld:
            if (pid := _pid_in(lock)) != reported:
                reported = pid
                on_wait(pid)
            time.sleep(WAIT_SECONDS)


def builder_pid(lock: Path) -> int | None:
    """The process that holds the lock of a build, 0 where it gives no pid; None where none holds it."""
    if not lock.exists():
        return None
    try:
        with exclusive(lock, wait=False):
            return None
    except LockHeld:
        return _pid_in(lock)


def _pid_in(lock: Path) -> int:
    with suppress(OSError, ValueError):
        return int(lock.read_text())
    return 0


def hold_open(path: Path, owner: object) -> None:
    """Holds a shared lock on a file for as long as `owner` lives, so that `not_open` is False; waits while the file is
    being removed. Does nothing on a file system without locks.

    Raises FileNotFoundError where the file was removed.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    weakref.finalize(owner, os.close, handle)
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_SH)
    if not os.path.samestat(os.stat(path), os.fstat(handle)):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def not_open(path: Path, until: ExitStack) -> bool:
    """Whether no process of this machine holds the file open, nor can before the end of `until`."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    until.callback(os.close, handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
