"""Processes that end together: when one of them ends, when the command that runs them ends or is killed, at Ctrl-C.

`run_together` is called by the command. `python -m pipelines.ui.supervisor` is the watchdog that it starts: the leader
of a process group, in which it starts the processes and all that they start ends.
"""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType

from moe_core.processes import die_with_parent
from pipelines.run.interrupts import handled

PR_SET_CHILD_SUBREAPER = 36  # of prctl(2)
POLL_SECONDS = 0.2
END_SECONDS = 30.0  # for the processes and their runs to end in order; then they are killed


def run_together(commands: Sequence[Sequence[str]], ready: Path | None = None, lock: int | None = None) -> int:
    """Runs the commands until one ends. Returns its exit code, or 0 after SIGINT or SIGTERM; a second signal kills.

    All but the first start once the file `ready` exists, which the first creates. The file descriptor `lock` stays open
    until all have ended.
    """
    signals: list[int] = []

    def end(number: int, _: FrameType | None) -> None:
        if not signals:
            watchdog.stdin.close()  # type: ignore[union-attr]  # which it notices, as it does when we are killed
        else:
            _signal(watchdog.pid, signal.SIGKILL)
        signals.append(number)

    arguments = json.dumps({"commands": commands, "ready": str(ready or ""), "lock": lock})
    watchdog = subprocess.Popen(
        [sys.executable, "-m", "pipelines.ui.supervisor", arguments],
        stdin=subprocess.PIPE,
        pass_fds=() if lock is None else [lock],
        start_new_session=True,
    )
    with handled(end):
        code = watchdog.wait()
    _signal(watchdog.pid, signal.SIGKILL)  # the rest of the group, where the watchdog was killed
    return 0 if signals else code or 1


def _watch(commands: list[list[str]], ready: str, lock: int | None) -> int:
    """Runs the commands until standard input is closed or one of them ends, whose exit code it returns."""
    signal.signal(signal.SIGINT, lambda *_: None)  # is sent to the whole group below
    if sys.platform == "linux":  # orphans of the group become children, so that we see when they end
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    group, processes = os.getpid(), dict[int, subprocess.Popen[bytes]]()
    exit_code = None
    while exit_code is None:
        while commands and (not processes or not ready or os.path.exists(ready)):
            process = subprocess.Popen(
                commands.pop(0),
                stdin=subprocess.DEVNULL,
                pass_fds=() if lock is None else [lock],
                preexec_fn=partial(die_with_parent, group, signal.SIGTERM),
            )
            processes[process.pid] = process
        if select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
            break
        exit_code = next((code for pid, code in _ended() if pid in processes), None)
    _signal(group, signal.SIGINT)
    deadline = time.monotonic() + END_SECONDS
    with suppress(ChildProcessError):  # none is left
        while time.monotonic() < deadline:
            list(_ended())
            time.sleep(POLL_SECONDS)
        _signal(group, signal.SIGKILL)  # this process too
    return exit_code or 0


def _ended() -> Iterator[tuple[int, int]]:
    """(id, exit code) of the children that have ended. Raises ChildProcessError where none is left."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(_watch(**json.loads(sys.argv[1])))
