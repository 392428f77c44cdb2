"""Processes: which one is meant, whether it lives and works, how to start one, and why one ended.

A process id is reused, soon in a container and after a restart, and each machine and each container counts its own. The
name of a process therefore adds when it started and on which machine: no other process has the same name. A process of
another machine, which shares the study's folder, is neither alive nor dead here: only its own machine can tell.

A child process sends a heartbeat, a byte a second, into a pipe that its parent reads now and then. A long computation
may hold up the thread that sends it, but uses a processor: a child that does neither is stalled. The other way round
a child ends when its parent does.
"""

import ctypes
import hashlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from moe_core.errors import BadSetting

if sys.platform != "linux":
    import psutil

NAME = re.compile(r"([0-9]+)_[0-9]+_[0-9a-f]*(?:_([0-9a-f]{8}))?")  # an older hardmoe did not name the machine
HEARTBEAT_SECONDS = 1.0
STALL_SECONDS = 20.0  # a dead disk or a debugger may hold a process for a moment; half a minute is a fault
CHECK_SECONDS = 2.0  # counted between two checks at the most: the parent may have been stopped itself
File = int | IO[Any] | None
CAUSES: dict[int, str] = {
    signal.SIGKILL: " (out of memory?)",
    signal.SIGSEGV: " (a crash in native code)",
    signal.SIGBUS: " (a file was cut short while it was mapped into memory, or its disk is full or gone)",
}
PR_SET_PDEATHSIG = 1  # of prctl(2)
STATE, USER_TIME, SYSTEM_TIME, START = 0, 11, 12, 19  # of /proc/<pid>/stat, counted after the command's name


def this_process() -> str:
    return process_name(os.getpid())


def process_name(pid: int) -> str:
    """Such as 4711_90125_1f0c9a3e_5b1d07aa, which goes into a file's name: id, start, boot, machine.

    Raises ProcessLookupError where no such process runs.
    """
    name = _name(pid)
    if name is None:
        raise ProcessLookupError(f"no process {pid}")
    return name


def pid_of(name: str) -> int:
    """The id in a process's name. Raises ValueError for what is no name."""
    if found := NAME.fullmatch(name):
        return int(found[1])
    raise ValueError(f"{name!r} is no name of a process")


def is_name(text: str) -> bool:
    """Whether it is the name of a process, of any machine."""
    return NAME.fullmatch(text) is not None


def is_ours(name: str) -> bool:
    """Whether it is the name of a process of this machine, also of one from before it was started again."""
    found = NAME.fullmatch(name)
    return found is not None and found[2] == machine()


def alive(name: str) -> bool:
    """Whether a process of this machine has that name and runs; one that ended and waits to be collected does not."""
    return is_ours(name) and _name(pid_of(name), running=True) == name


def is_dead(name: str) -> bool:
    """Whether it is the name of a process of this machine, and that one no longer runs."""
    return is_ours(name) and not alive(name)


@cache
def machine() -> str:
    """Eight hexadecimal digits that name this machine, and stay when it is started again.

    Of the host's name, the system's id and the name space of process ids. Each is there for a reason: a container has
    the id of its image, hosts may have the same name, and each container numbers its processes by itself.
    """
    system = namespace = ""
    with suppress(OSError):
        system = Path("/etc/machine-id").read_text("ascii").strip()
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{socket.gethostname()} {system} {namespace}".encode()).hexdigest()[:8]


if sys.platform == "linux":
    # By the kernel's own clock, which no correction of the time moves. psutil's create_time() is the time of day: a
    # process would get another name, and a living one be taken for dead, whenever the clock is set.

    def _name(pid: int, running: bool = False) -> str | None:
        """None where no process has that id, or where it is to be `running` and has ended."""
        fields = _stat(pid)
        if not fields or (running and fields[STATE] == "Z"):
            return None
        return f"{pid}_{fields[START]}_{_boot()}_{machine()}"

    @cache
    def _boot() -> str:
        with suppress(OSError):
            return Path("/proc/sys/kernel/random/boot_id").read_text("ascii")[:8]
        return ""

    def processor_seconds(pid: int) -> float | None:
        """What all threads of the process have used; None where it is gone."""
        fields = _stat(pid)
        return (int(fields[USER_TIME]) + int(fields[SYSTEM_TIME])) / os.sysconf("SC_CLK_TCK") if fields else None

    def _stat(pid: int) -> list[str]:
        with suppress(OSError):
            return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return []

else:

    def _name(pid: int, running: bool = False) -> str | None:
        """None where no process has that id, or where it is to be `running` and has ended."""
        with suppress(psutil.Error, OverflowError, ValueError):
            process = psutil.Process(pid)
            if not (running and process.status() == psutil.STATUS_ZOMBIE):
                return f"{pid}_{process.create_time() * 1000:.0f}__{machine()}"
        return None

    def processor_seconds(pid: int) -> float | None:
        """What all threads of the process have used; None where it is gone or the system does not say."""
        with suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            return times.user + times.system
        return None


def exit_reason(code: int) -> str:
    """How a process ended: `code` as subprocess and multiprocessing have it, negative for a signal."""
    if code >= 0:
        return f"exit code {code}"
    return f"killed by signal {-code}{CAUSES.get(-code, '')}"


def stall_seconds() -> float:
    """After so long a stalled process is killed. Raises BadSetting where HARDMOE_STALL_SECONDS is nonsense."""
    value = os.environ.get("HARDMOE_STALL_SECONDS") or str(STALL_SECONDS)
    with suppress(ValueError):
        if float(value) >= 2 * HEARTBEAT_SECONDS:
            return float(value)
    raise BadSetting(f"HARDMOE_STALL_SECONDS is {value!r}: wanted seconds, at least {2 * HEARTBEAT_SECONDS:g}")


class Heartbeat:
    """That of the process `pid`, which writes into the other end of `pipe`."""

    def __init__(self, pid: int, pipe: int) -> None:
        os.set_blocking(pipe, False)
        self.pid, self.pipe, self.limit = pid, pipe, stall_seconds()
        self.silence, self.checked, self.used = 0.0, time.monotonic(), processor_seconds(pid)

    def is_stalled(self) -> bool:
        """Neither heard nor computing for `limit` seconds. To be asked at least every CHECK_SECONDS."""
        now, used = time.monotonic(), processor_seconds(self.pid)
        self.silence += min(now - self.checked, CHECK_SECONDS)
        if self._is_heard() or used != self.used:
            self.silence = 0.0
        self.checked, self.used = now, used
        return self.silence >= self.limit

    @property
    def reason(self) -> str:
        return f"no progress for {self.limit:g} s (stopped or hung); killed"

    def _is_heard(self) -> bool:
        with suppress(OSError):
            return bool(os.read(self.pipe, 1 << 16))
        return False


@dataclass
class Child:
    """A Python process started here."""

    process: subprocess.Popen[str]
    heartbeat: Heartbeat
    stalled: bool = False
    printed: bytes = b""  # the beginning of a line

    def lines(self) -> list[str]:
        """What it has printed since the last call, in whole lines; its `stdout` is a pipe."""
        assert self.process.stdout is not None
        pipe = self.process.stdout.fileno()
        while select.select([pipe], [], [], 0)[0] and (part := os.read(pipe, 1 << 16)):
            self.printed += part
        whole, _, self.printed = self.printed.rpartition(b"\n")
        return whole.decode("utf-8", "replace").splitlines()

    def exit_code(self) -> int | None:
        """As subprocess has it, negative for a signal; None while it runs. A stalled process is killed."""
        if self.process.poll() is None and self.heartbeat.is_stalled():
            self.stalled = True
            self.process.kill()
            self.process.wait()
        return self.process.returncode

    def failure(self) -> str:
        """Why it ended; "" while it runs and where it ended well."""
        code = self.exit_code()
        if self.stalled:
            return self.heartbeat.reason
        return exit_reason(code) if code else ""

    def close(self) -> None:
        """Kills it and returns when it is gone."""
        self.process.kill()
        self.process.communicate()
        os.close(self.heartbeat.pipe)


def own_modules_first() -> dict[str, str]:
    """Environment by which a Python process finds these packages, and no file of the current folder in their place."""
    packages = str(Path(__file__).parent.parent)
    path = os.pathsep.join(part for part in (packages, os.environ.get("PYTHONPATH", "")) if part)
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def start_child(
    module: str,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    stdin: File = None,
    stdout: File = None,
    stderr: File = None,
    pass_fds: Sequence[int] = (),
) -> Child:
    """Starts `python -m module PARENT PIPE *arguments`, which is to call `obey_parent(PARENT, PIPE)` first.

    `environment` is added to that of this process; the rest is as subprocess.Popen has it.
    """
    ours, theirs = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(os.getpid()), str(theirs), *arguments],
            env={**os.environ, **own_modules_first(), **(environment or {})},
            pass_fds=[theirs, *pass_fds],
            text=True,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    return Child(process, Heartbeat(process.pid, ours))


def obey_parent(parent: int, pipe: int) -> None:
    """Makes this process a child of the process `parent`: it ends with it, at its word, and sends it a heartbeat."""
    leave_signals_to_parent()
    send_heartbeat(pipe)
    die_with_parent(parent)


def send_heartbeat(pipe: int) -> None:
    """Writes into the pipe from now on. When nobody reads it any more, the parent is gone, and this process ends."""
    os.set_blocking(pipe, False)
    threading.Thread(target=_send_heartbeat, args=(pipe,), daemon=True).start()


def _send_heartbeat(pipe: int) -> None:
    while True:
        try:
            os.write(pipe, b".")
        except BlockingIOError:  # full: nobody read it for long, and will find enough
            pass
        except OSError:
            os._exit(1)
        time.sleep(HEARTBEAT_SECONDS)


def die_with_parent(parent: int | None = None, number: int = signal.SIGKILL) -> None:
    """This process gets the signal when its parent ends, also where it is stopped; Linux only, elsewhere nothing.

    Ends at once where the parent is no longer the process `parent`: that died before this was called.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def leave_signals_to_parent() -> None:
    """Ctrl-C and SIGTERM, which a terminal and a batch system send to all of a process group, do nothing here.

    The parent gets them too, and ends this process in order. Programs that this one starts get them: they inherit no
    handler, as they would SIG_IGN. To be called in the main thread.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
