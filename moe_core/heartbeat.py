"""Signs of life between processes of one machine: one that is stopped or stuck is told from one that computes for long.

A process beats, a byte a second, into a pipe, from a thread of its own; whoever started it looks now and then. A long
computation may keep the thread from beating, but uses a processor: what neither beats nor computes stands still.
The other way round the system itself tells a process that its parent has ended.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

BEAT_SECONDS = 1.0
STALL_SECONDS = 20.0  # a dead disk or a debugger may hold a process for a moment; half a minute is a fault
PR_SET_PDEATHSIG = 1  # of prctl(2)
LOOK_SECONDS = 2.0  # counted between two looks at the most: the one who looks may have been stopped itself


def stall_seconds() -> float:
    """After so long a process that stands still is ended. Raises ValueError where HARDMOE_STALL_SECONDS is nonsense."""
    said = os.environ.get("HARDMOE_STALL_SECONDS") or str(STALL_SECONDS)
    with suppress(ValueError):
        if float(said) >= 2 * BEAT_SECONDS:
            return float(said)
    raise ValueError(f"HARDMOE_STALL_SECONDS is {said!r}: wanted seconds, at least {2 * BEAT_SECONDS:g}")


def beat(pipe: int) -> None:
    """Beats into the pipe from now on, until nobody reads it."""
    os.set_blocking(pipe, False)
    threading.Thread(target=_beat, args=(pipe,), daemon=True).start()


def _beat(pipe: int) -> None:
    while True:
        try:
            os.write(pipe, b".")
        except BlockingIOError:  # full: nobody looked for long, who will find enough
            pass
        except OSError:
            return
        time.sleep(BEAT_SECONDS)


def die_with_parent(parent: int | None = None, number: int = signal.SIGKILL) -> None:
    """This process gets the signal when its parent ends, also where it is stopped; Linux only, elsewhere nothing.

    Ends at once where the parent is no longer the process `parent`: that died before this was called.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def end_by_parent_alone() -> None:
    """Ctrl-C and SIGTERM, which a terminal and a batch system send to all of a process group, do nothing here.

    Whoever started this process hears them too, and ends it in order. Programs that it starts hear them: they inherit
    no handler, as they would SIG_IGN. To be called in the main thread.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)


class Pulse:
    """Of the process `pid` that beats into the other end of `pipe`."""

    def __init__(self, pid: int, pipe: int) -> None:
        os.set_blocking(pipe, False)
        self.pid, self.pipe, self.limit = pid, pipe, stall_seconds()
        self.silence, self.looked, self.used = 0.0, time.monotonic(), _processor_ticks(pid)

    def stands_still(self) -> bool:
        """It has neither beaten nor computed for `limit` seconds. To be asked at least every LOOK_SECONDS."""
        now, used = time.monotonic(), _processor_ticks(self.pid)
        self.silence += min(now - self.looked, LOOK_SECONDS)
        if self._heard() or used != self.used:
            self.silence = 0.0
        self.looked, self.used = now, used
        return self.silence >= self.limit

    @property
    def why(self) -> str:
        return f"stood still for {self.limit:g} s (stopped, or stuck), and was ended"

    def _heard(self) -> bool:
        with suppress(OSError):
            return bool(os.read(self.pipe, 1 << 16))
        return False


def _processor_ticks(pid: int) -> int | None:
    """Processor time of a process, of all its threads; None where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    except (OSError, ValueError, IndexError):
        return None
