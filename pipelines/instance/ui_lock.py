"""One `hardmoe ui` an instance at a time: two daemons would start each run twice."""

import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import dagster as dg

from moe_core.errors import BadSetting, HardmoeError, LockHeld
from moe_core.processes import is_dead, is_name, is_ours, this_process

HEARTBEAT_SECONDS = 45.0  # a running daemon reports each 30 s
WAIT_SECONDS = 40.0  # for the daemon of a `hardmoe ui` that was killed just now; it has END_SECONDS to end


def lock_ui(port: int) -> int:
    """Takes the instance's UI and returns the lock's file descriptor.

    The UI stays taken until all processes that inherit the descriptor have ended: also where the command is killed, no
    second daemon starts beside its own. Raises LockHeld where another `hardmoe ui` has it, BadSetting where the port
    cannot be used.
    """
    path = Path(os.environ["DAGSTER_HOME"]) / ".ui.lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _acquire(lock, path)
        _check_port(port)
    except HardmoeError:
        os.close(lock)
        raise
    os.truncate(lock, 0)
    holder = {"address": f"http://127.0.0.1:{port}", "process": this_process(), "host": socket.gethostname()}
    os.write(lock, json.dumps(holder).encode())
    return lock


def _acquire(lock: int, path: Path) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = _holder(path)
            if not is_dead(holder["process"]) or time.monotonic() > deadline:
                elsewhere = is_name(holder["process"]) and not is_ours(holder["process"])
                where = f" of {holder['host']}" if elsewhere else ""
                raise LockHeld(
                    f"`hardmoe ui` already runs on {path.parent}: {holder['address']}, process "
                    f"{holder['process'].partition('_')[0]}{where}; stop it first, "
                    "two daemons would start each run twice",
                    path,
                ) from None
        time.sleep(0.2)


def _holder(path: Path) -> dict[str, Any]:
    """Address, process and host of the `hardmoe ui` that has the lock; unknown while it writes them."""
    try:
        return {"address": "", "process": "", "host": ""} | json.loads(path.read_text("utf-8"))
    except ValueError:
        return {"address": "starting", "process": "unknown", "host": "unknown"}


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            why = "is in use" if in_use else f"cannot be used ({error})"
            raise BadSetting(f"port {port} {why}; choose another with --port") from None


def daemon_heartbeat_age(instance: dg.DagsterInstance) -> float | None:
    """Seconds since a daemon of the instance last reported, on any machine; None where none can be running."""
    ages = [time.time() - heartbeat.timestamp for heartbeat in instance.get_daemon_heartbeats().values()]
    return min((age for age in ages if age < HEARTBEAT_SECONDS), default=None)
