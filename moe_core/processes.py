"""Processes of this machine, named so that no later process has the same name.

An id alone is given again, soon in a container and after a restart: a name also says when the process began, in ticks
since the machine started, and which start of the machine that was.
"""

import os
import re
from contextlib import suppress
from pathlib import Path

NAME = re.compile(r"[0-9]+(_[0-9]+_[0-9a-f]*)?")
STATE, BEGAN = 0, 19  # of /proc/<pid>/stat, counted after the command's name


def this_process() -> str:
    return process_name(os.getpid())


def process_name(pid: int) -> str:
    """Such as 4711_90125_1f0c9a3e, which goes into a file's name; the id alone where the system says no more.

    Raises ProcessLookupError where no such process runs.
    """
    fields = _fields(pid)
    if fields is not None:
        return f"{pid}_{fields[BEGAN]}_{_boot()}"
    if not _runs(pid):
        raise ProcessLookupError(f"no process {pid}")
    return str(pid)


def pid_of(name: str) -> int:
    """The id in a process's name. Raises ValueError for what is no name."""
    return int(name.partition("_")[0])


def alive(name: str) -> bool:
    """Whether the process of that name runs; one that ended and waits to be collected does not.

    Of an id alone, which older versions wrote, the process that has it now is taken for it.
    """
    try:
        pid = pid_of(name)
    except ValueError:
        return False
    fields = _fields(pid)
    if fields is None:
        return _runs(pid)
    _, _, rest = name.partition("_")
    return fields[STATE] != "Z" and rest in ("", f"{fields[BEGAN]}_{_boot()}")


def is_dead(name: str) -> bool:
    """Whether it is the name of a process of this machine, and that one no longer runs."""
    return NAME.fullmatch(name) is not None and not alive(name)


def _fields(pid: int) -> list[str] | None:
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        if len(fields) > BEGAN:
            return fields
    return None


def _runs(pid: int) -> bool:
    """Asked of a system without /proc, or of a process that is gone."""
    if pid <= 0 or Path("/proc/self/stat").exists():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()[:8]
    return ""
