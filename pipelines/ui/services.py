"""The code server, webserver and daemon of `hardmoe ui`: a process group of their own, watched, ended together.

`keep` runs in the command; `python -m pipelines.ui.services` is the watchdog, which starts the services and leads the
group. When one of them ends, or is killed, the others and all that they started end with it.
"""

import ctypes
import hashlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from moe_core.heartbeat import die_with_parent
from moe_core.text import shown
from pipelines.aliases import shorten_temporary_folder

PR_SET_CHILD_SUBREAPER = 36  # of prctl(2)
POLL_SECONDS = 0.2
END_SECONDS = 30.0  # for services and their runs to end in order, then they are killed
LOCATION = "hardmoe"  # name of the code location, as in workspace.yaml: Dagster keeps the state of sensors by it
HOST_FORM = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?)(:[0-9]{1,5})?")


def checked_host(host: str) -> str:
    """A host as browsers send it: lower case, with its port unless that is the scheme's own. Raises ValueError."""
    if not HOST_FORM.fullmatch(host.lower()):
        raise ValueError(
            f"--allow-host {shown(host)}: wanted a name as the browser's address bar shows it, with its port where "
            "there is one, such as ui.example.org or ui.example.org:8443"
        )
    return host.lower()


def checked_prefix(prefix: str) -> str:
    """A path under which a proxy serves the UI, or "". Raises ValueError for one that is not /name or /name/name."""
    if prefix and not re.fullmatch(r"(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+", prefix):
        raise ValueError(f"--path-prefix {shown(prefix)}: wanted one such as /hardmoe")
    return prefix


@contextmanager
def dagster_services(port: int, prefix: str, allowed: Sequence[str]) -> Iterator[tuple[Path, list[list[str]]]]:
    """The commands of code server, webserver and daemon, and the socket that the first serves to the others.

    The socket lies in a folder that no other user can enter; Dagster's own would be a port, or a file in /tmp.
    """
    shorten_temporary_folder()
    with tempfile.TemporaryDirectory(prefix=socket_prefix()) as folder:
        served, workspace = Path(folder, "code"), Path(folder, "workspace.yaml")
        location = {"grpc_server": {"socket": str(served), "location_name": LOCATION}}
        workspace.write_text(json.dumps({"load_from": [location]}), "utf-8")  # which is YAML too
        python = [sys.executable, "-m"]
        code = ["-m", "pipelines.definitions", "--location-name", LOCATION, "--inject-env-vars-from-instance"]
        web = ["-w", str(workspace), "--port", str(port), "--path-prefix", prefix]
        yield (
            served,
            [
                [*python, "dagster", "code-server", "start", "--socket", str(served), *code, "--log-level", "warning"],
                [
                    *python,
                    "pipelines.ui.webserver",
                    *web,
                    *(word for host in allowed for word in ("--allow-host", host)),
                ],
                [*python, "dagster._daemon", "run", "-w", str(workspace)],
            ],
        )


def socket_prefix() -> str:
    """Of the folders in which code servers of this machine have their sockets."""
    return f"hardmoe-{hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]}-"


def keep(commands: Sequence[Sequence[str]], served: Path | None = None) -> int:
    """Runs the commands until one ends, or SIGINT or SIGTERM ends them; a second signal kills. Returns an exit code.

    All but the first are started when the file `served` is there, which the first makes.
    """
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
        watchdog = [sys.executable, "-m", "pipelines.ui.services", str(watched)]
        asked = json.dumps({"commands": commands, "served": str(served or "")})
        group = subprocess.Popen([*watchdog, asked], pass_fds=[watched], start_new_session=True)
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


def _watch(pipe: int, commands: Sequence[Sequence[str]], served: str) -> int:
    """Ends the group when the other end of the pipe is closed, or a command ends. Returns that one's exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the group is told so; and orphans of it become children
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    watchdog = os.getpid()

    def die_with_watchdog() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        die_with_parent(watchdog, signal.SIGTERM)

    waiting, mains = list(commands), set[int]()
    code = None
    while code is None:
        while waiting and (not mains or not served or os.path.exists(served)):
            mains.add(subprocess.Popen(waiting.pop(0), preexec_fn=die_with_watchdog).pid)
        if select.select([pipe], [], [], POLL_SECONDS)[0]:
            break
        code = next((code for pid, code in _ended().items() if pid in mains), None)
    _signal(watchdog, signal.SIGINT)
    deadline = time.monotonic() + END_SECONDS
    with suppress(ChildProcessError):  # nobody is left
        while time.monotonic() < deadline:
            _ended(none_left=True)
            time.sleep(POLL_SECONDS)
        _signal(watchdog, signal.SIGKILL)  # this process too
    return code or 0  # of one that failed or was killed: what was asked to end is no failure


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
    sys.exit(_watch(int(sys.argv[1]), **json.loads(sys.argv[2])))
