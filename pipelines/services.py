"""The webserver and daemon of `hardmoe ui`: started in a process group of their own, watched, ended together.

`keep` runs in the command; `python -m pipelines.services` is the watchdog, which starts `dagster dev` and leads the
group. Whoever of the three is killed, the others and all that they started end with it.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from moe_core.heartbeat import die_with_parent

PR_SET_CHILD_SUBREAPER = 36  # of prctl(2)
POLL_SECONDS = 0.2
END_SECONDS = 30.0  # for services and their runs to end in order, then they are killed


def keep(command: Sequence[str]) -> int:
    """Runs the command until it ends, or SIGINT or SIGTERM ends it; a second signal kills. Returns its exit code."""
    watched, ours = os.pipe()
    heard: list[int] = []
    group: subprocess.Popen[bytes] | None = None

    def end(number: int, _: FrameType | None) -> None:
        if not heard:
            os.close(ours)  # which the watchdog sees
        elif group:
            _signal(group.pid, signal.SIGKILL)
        heard.append(number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        watchdog = [sys.executable, "-m", "pipelines.services", str(watched)]
        group = subprocess.Popen([*watchdog, *command], pass_fds=[watched], start_new_session=True)
        os.close(watched)
        code = group.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    _signal(group.pid, signal.SIGKILL)  # what is left where the watchdog itself was killed
    if heard:
        return 0
    os.close(ours)
    return code or 1


def _watch(pipe: int, command: Sequence[str]) -> int:
    """Ends the group when the other end of the pipe is closed, or the command ends. Returns the command's exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the group is told so; and orphans of it become children
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    watchdog = os.getpid()

    def die_with_watchdog() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        die_with_parent(watchdog, signal.SIGTERM)

    main = subprocess.Popen(command, preexec_fn=die_with_watchdog).pid
    code = None
    while code is None and not select.select([pipe], [], [], POLL_SECONDS)[0]:
        code = _ended().get(main)
    _signal(watchdog, signal.SIGINT)
    deadline = time.monotonic() + END_SECONDS
    with suppress(ChildProcessError):  # nobody is left
        while time.monotonic() < deadline:
            code = _ended(none_left=True).get(main, code)
            time.sleep(POLL_SECONDS)
        _signal(watchdog, signal.SIGKILL)  # this process too
    return code or 0


def _ended(none_left: bool = False) -> dict[int, int]:
    """Exit codes of children that ended. Raises ChildProcessError where there is none, if that is asked."""
    found: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            if none_left and not found:
                raise
            return found
        if not pid:
            return found
        found[pid] = os.waitstatus_to_exitcode(status)


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(_watch(int(sys.argv[1]), sys.argv[2:]))
