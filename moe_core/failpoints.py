"""Named points where tests make a process die or stop, or a write fail, like RocksDB's sync points; else no-ops.

HARDMOE_FAULT="kill artifact.manifest" kills the process at that point; "enospc file.half 3 checkpoint" lets
the third pass fail, of those about a path with "checkpoint" in it. The actions: kill, stop, eio, enospc.
"""

import errno
import os
import signal
from dataclasses import dataclass

from moe_core.errors import BadSetting

ACTIONS = ("kill", "stop", "eio", "enospc")


@dataclass
class Fault:
    """What is to happen, and how many passes of its point are left until then."""

    action: str
    point: str
    passes: int = 1
    about: str = ""


def parse(value: str) -> Fault:
    """Reads `action point [pass [part of the path]]`. Raises BadSetting."""
    words = value.split()
    if not 2 <= len(words) <= 4 or words[0] not in ACTIONS or not all(word.isdigit() for word in words[2:3]):
        raise BadSetting(f"HARDMOE_FAULT is {value!r}: wanted `{'|'.join(ACTIONS)} point [pass [part of the path]]`")
    return Fault(words[0], words[1], int([*words, "1"][2]), "".join(words[3:]))


armed = parse(os.environ["HARDMOE_FAULT"]) if os.environ.get("HARDMOE_FAULT") else None


def failpoint(name: str, about: object = "") -> None:
    """The process is at a point that has a name. Raises OSError, kills or stops it, or does nothing, as `armed` says.

    A stopped process continues once it is sent SIGCONT.
    """
    if armed is None or armed.point != name or armed.about not in str(about):
        return
    armed.passes -= 1
    if armed.passes:
        return
    if armed.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if armed.action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
        return
    number = errno.EIO if armed.action == "eio" else errno.ENOSPC
    raise OSError(number, os.strerror(number), str(about))
