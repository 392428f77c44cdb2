"""Locks among the processes of all machines that share a folder.

Each ends with the process that holds it; the file system ends those of a machine that is lost.
"""

import errno
import fcntl
import json
import os
import socket
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import IO

from moe_core.errors import LockHeld
from moe_core.processes import is_name, is_ours, pid_of, this_process
from moe_core.store.files import errors_with_path

WAIT_SECONDS = 0.2  # between two tries of a lock that another process holds
UNSEEN_SECONDS = 5.0  # for which a machine may remember a name that another one has removed or replaced since
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Holder:
    """A process that builds an artifact or holds a lease; empty where that is not known."""

    host: str = ""
    process: str = ""
    by: str = ""  # such as "run 1a2b3c4d-5e6f-..."
    since: float = 0.0  # by the clock of that machine: to be shown, not to be compared

    @staticmethod
    def here(by: str = "") -> "Holder":
        """This process."""
        return Holder(socket.gethostname(), this_process(), by, time.time())

    @property
    def name(self) -> str:
        """Such as: process 4711 on gpu02 (run 1a2b3c4d)."""
        if not is_name(self.process):
            return "another process"
        return f"process {pid_of(self.process)} on {self.host}" + (f" ({self._run})" if self.by else "")

    def __str__(self) -> str:
        if not is_name(self.process):
            return "built by another process"
        since = datetime.fromtimestamp(self.since).isoformat(" ", "minutes")
        return f"built on {self.host} by {self._run} (process {pid_of(self.process)}), since {since}"

    @property
    def _run(self) -> str:
        return self.by.partition("-")[0]

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is a process of another machine."""
        return is_name(self.process) and not is_ours(self.process)


Told = Callable[[Holder], None]


def nobody_is_told(holder: Holder) -> None:
    """Does nothing with the process that is waited for."""


def exclusive(path: Path, wait: bool = True) -> AbstractContextManager[None]:
    """Holds a lock alone. Raises LockHeld when another process holds it and `wait` is False."""
    return _held(path, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def shared(path: Path) -> AbstractContextManager[None]:
    """Holds a lock together with others; waits while a process holds it exclusively."""
    return _held(path, fcntl.LOCK_SH)


@contextmanager
def _held(path: Path, how: int) -> Iterator[None]:
    with _locked(path, how) as file:
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def _locked(path: Path, how: int) -> IO[str]:
    """The lock's file, created and locked.

    On a shared file system a name that another machine has just removed may be unknown here although this creates it,
    or lead to a file that is gone: then it is tried again.
    """
    deadline = time.monotonic() + UNSEEN_SECONDS
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = open(path, "a+")  # noqa: SIM115 NFS wants a file open for reading in a shared lock
            try:
                with errors_with_path(path):
                    fcntl.flock(file, how)
                    if os.fstat(file.fileno()).st_nlink:
                        return file
            except BaseException:
                file.close()
                raise
            file.close()  # it was removed before we had it
            continue
        except BlockingIOError:
            raise LockHeld(
                f"{path} is held by another process: an artifact is being built; try again when that run has ended",
                path,
            ) from None
        except OSError as error:
            if error.errno in NO_LOCKS:
                why = "this file system gives no locks (flock), which a study needs; docs/how-to/several-machines.md"
                raise OSError(error.errno, f"{why}: {os.strerror(error.errno)}", str(path)) from None
            if error.errno not in (errno.ENOENT, errno.ESTALE) or time.monotonic() > deadline:
                raise
        time.sleep(WAIT_SECONDS)


def is_held(path: Path) -> bool | None:
    """Whether a process of any machine holds a lock alone; None where there is no such file.

    Only reads, so that two who ask at once do not see each other.
    """
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return None
        raise


@contextmanager
def building(lock: Path, by: str = "", on_wait: Told = nobody_is_told) -> Iterator[None]:
    """Holds the lock of a build, with who builds in it. The file stays: another machine may not see that it went.

    While another process holds it, waits and calls `on_wait` once for each of them.
    """
    with ExitStack() as held:
        _wait_for(lock, held, on_wait)
        with errors_with_path(lock):
            lock.write_text(json.dumps(asdict(Holder.here(by))))
        yield


def _wait_for(lock: Path, held: ExitStack, on_wait: Told) -> None:
    reported: Holder | None = None
    while True:
        try:
            held.enter_context(exclusive(lock, wait=False))
            return
        except LockHeld:
            if (holder := _holder_in(lock)) != reported:
                reported = holder
                on_wait(holder)
            time.sleep(WAIT_SECONDS)


def builder(lock: Path) -> Holder | None:
    """Who holds the lock of a build; None where nobody does."""
    return _holder_in(lock) if is_held(lock) else None


def _holder_in(lock: Path) -> Holder:
    with suppress(OSError):
        return holder_of(lock.read_bytes())
    return Holder()


def holder_of(record: bytes | None) -> Holder:
    """What a lock or a lease tells of who holds it; nothing while that is written."""
    with suppress(ValueError, TypeError, AttributeError):
        known = json.loads(record or b"")
        return Holder(**{each.name: known[each.name] for each in fields(Holder) if each.name in known})
    return Holder()


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
    """Whether no process holds the file open, nor can before the end of `until`."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)  # NFS locks alone only what may be written
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
