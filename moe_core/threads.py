"""How many threads compute, and how they wait for each other at the end of each layer.

A second thread gains nothing where a batch is little work, and threads that spin while they wait take the cores of
other programs, which then hold up the very thread that is waited for: on a machine that others use a training loses
nine tenths of its speed (benchmarks/busy.py). So threads follow from the work in a batch, and waiting threads sleep
soon. How they wait is read from the environment when torch loads its OpenMP runtime, so it is set when this package is
imported; what the user has set stays.
"""

import os
import sys
from collections.abc import Mapping, MutableMapping

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")  # say how threads wait
SAID = (
    *WAITING,
    "OMP_NUM_THREADS",
    "OMP_THREAD_LIMIT",
    "HARDMOE_THREADS",
    "HARDMOE_SHARE",
)  # all that changes what is decided here
# Some 750 microseconds: longer than the gaps between two layers, and little of the milliseconds for which another
# program holds a thread up; the runtime's own is 300,000. PASSIVE, which is 0, loses a tenth on an idle machine
# (docs/explanation/performance.md). The second is that of Intel's and LLVM's runtimes, in milliseconds, 200 without it.
SHORT = {"GOMP_SPINCOUNT": "50000", "KMP_BLOCKTIME": "0"}
WORK_A_THREAD = 600_000_000  # multiply-adds of a batch, forward and back, for which a thread is worth while
TRAINING = 3  # passes of a step: the gradients of inputs and of weights cost one each

_share: int | None = None  # cores of the stage that this process is at; None: it is at none
_used = 0  # threads, since `begin`
_waiting = ""


def wait_shortly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Threads sleep soon while they wait, in this process and those that it starts, where the user said nothing else.

    Without effect here where torch is loaded already.
    """
    global _waiting
    loaded = "torch" in sys.modules
    if not loaded and not any(name in environment for name in WAITING):
        environment.update(SHORT)
    said = [f"{name}={environment[name]}" for name in WAITING if name in environment]
    _waiting = " ".join(said) or "as torch was loaded"


def waiting() -> str:
    """How threads of this process wait, as the environment said when this package was imported."""
    return _waiting


def said_threads(environment: Mapping[str, str] = os.environ) -> int | None:
    """Threads of one training as the user said: HARDMOE_THREADS, else OMP_NUM_THREADS, where OpenMP would read it.

    Raises ValueError for a HARDMOE_THREADS that is no number.
    """
    if said := whole_number("HARDMOE_THREADS", environment):
        return said
    said = _number("OMP_NUM_THREADS", environment)
    return said and min(said, _number("OMP_THREAD_LIMIT", environment) or said)


def _number(name: str, environment: Mapping[str, str]) -> int | None:
    """As OpenMP reads it: the first of several, and none where that is no number from 1 on."""
    first = environment.get(name, "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) else None


def whole_number(name: str, environment: Mapping[str, str] = os.environ) -> int | None:
    """What a variable says, None where it is not set. Raises ValueError for anything but a number from 1 on."""
    said = environment.get(name, "")
    if said and (not said.isdecimal() or int(said) < 1):
        raise ValueError(f"{name} is {said!r}: wanted a whole number of at least 1")
    return int(said) if said else None


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of(work: int, share: int) -> int:
    """Threads for `work` multiply-adds in a batch, of a `share` of the cores, where the user did not say how many.

    The same for the same study and machine: sums in floating point follow from it.
    """
    limit = _number("OMP_THREAD_LIMIT", os.environ) or share
    return said_threads() or max(1, min(share, limit, work // WORK_A_THREAD))


def use(work: int, share: int | None = None) -> int:
    """Sets torch's threads for batches of so much work, and returns them.

    `share` is kept for what this process computes next, and for decoding, which does not follow from the network.
    """
    global _share, _used
    import torch

    _share = share or _share or cores()
    _used = threads_of(work, _share)
    torch.set_num_threads(_used)
    return _used


def share() -> int:
    """Threads that may decode images."""
    return _share or cores()


def begin() -> None:
    """A stage begins: what the one before used is forgotten."""
    global _share, _used
    _share, _used = None, 0


def used() -> dict[str, int | str]:
    """What was used since `begin`, as it is written down; nothing where no network computed."""
    return {"threads": _used, "waiting": _waiting} if _used else {}
