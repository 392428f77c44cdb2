"""Locks among the processes of one machine; each ends with the process that holds it."""

import errno
import os
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from moe_core.errors import LockHeld


@contextmanager
def exclusive(path: Path, wait: bool = True) -> Iterator[None]:
    """Holds a lock on `path` among the processes of this machine; it ends with the process that holds it.

    Raises LockHeld when it is held and `wait` is False.
    """
    import fcntl

    with _held(path, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)):
        yield


@contextmanager
def shared(path: Path) -> Iterator[None]:
    """Holds a lock that any number of processes may hold at once, but none while another holds it exclusively."""
    import fcntl

    with _held(path, fcntl.LOCK_SH):
        yield


@contextmanager
def _held(path: Path, how: int) -> Iterator[None]:
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, how)
        except BlockingIOError:
            raise LockHeld(
                f"{path} is held by another process: an artifact is being made; try again when its run has ended",
                path,
            ) from None
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def hold_open(path: Path, owner: object) -> None:
    """Holds a shared lock on a file for as long as `owner` lives, so that `not_open` says that it is in use; waits
    while the file is being removed. A file system without locks is used without.

    Raises FileNotFoundError where the file was removed.
    """
    import fcntl

    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    weakref.finalize(owner, os.close, handle)
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_SH)
    if not os.path.samestat(os.stat(path), os.fstat(handle)):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def not_open(path: Path, until: ExitStack) -> bool:
    """Whether no process of this machine has `hold_open` on the file, nor gets it until the end of `until`."""
    import fcntl

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
