"""How many threads compute, and how they wait for each other at the end of each layer.

A second thread gains nothing where a batch is little work, and threads that spin while they wait take the cores of
other programs, which then hold up the very thread that is waited for: on a machine that others use a training loses
nine tenths of its speed (benchmarks/busy.py). So the number of threads follows from the work in a batch, and waiting
threads sleep soon. How they wait is read from the environment when torch loads its OpenMP runtime, so it is set when
this package is imported; what the user has set stays.
"""

import os
import sys
from collections.abc import Mapping

from moe_core.devices import gpu_names
from moe_core.errors import BadSetting

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")  # how threads wait
SHARE = "HARDMOE_SHARE"  # cores of one worker, set by --workers for the processes that it starts
VARIABLES = (*WAITING, "OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "HARDMOE_THREADS", SHARE)  # all that this module reads
# Some 750 microseconds: longer than the gaps between two layers, and little of the milliseconds for which another
# program holds a thread up; the runtime's own is 300,000. PASSIVE, which is 0, loses a tenth on an idle machine
# (docs/explanation/performance.md). The second is that of Intel's and LLVM's runtimes, in milliseconds, 200 without it.
SHORT = {"GOMP_SPINCOUNT": "50000", "KMP_BLOCKTIME": "0"}
WORK_A_THREAD = 600_000_000  # multiply-adds of a batch, forward and back, for which a thread is worth while
TRAINING = 3  # passes of a step: the gradients of inputs and of weights cost one each

_recorded = 0  # threads of a training by the study that this process works on
_share: int | None = None  # cores of the stage that this process works on; None: on no stage
_used = 0  # threads, since `begin`
_waiting = ""


def shorten_waits() -> None:
    """Lets threads sleep soon while they wait, here and in processes started from here, unless the user set it.

    Without effect on this process once torch is loaded.
    """
    global _waiting
    loaded = "torch" in sys.modules
    if not loaded and not any(name in os.environ for name in WAITING):
        os.environ.update(SHORT)
    values = [f"{name}={os.environ[name]}" for name in WAITING if name in os.environ]
    _waiting = " ".join(values) or "as torch was loaded"


def waiting() -> str:
    """How threads of this process wait: the environment when this package was imported."""
    return _waiting


def chosen_threads(environment: Mapping[str, str] = os.environ) -> int | None:
    """Threads of one training as the user set them: HARDMOE_THREADS or cluster.threads, else OMP_NUM_THREADS, where
    OpenMP would read it.

    Raises BadSetting for a HARDMOE_THREADS that is no number.
    """
    if chosen := whole_number("HARDMOE_THREADS", environment) or _recorded:
        return chosen
    threads = _number("OMP_NUM_THREADS", environment)
    return threads and min(threads, _number("OMP_THREAD_LIMIT", environment) or threads)


def _number(name: str, environment: Mapping[str, str]) -> int | None:
    """As OpenMP reads it: the first of several, and none where that is no number from 1 on."""
    first = environment.get(name, "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) else None


def whole_number(name: str, environment: Mapping[str, str] = os.environ) -> int | None:
    """The number in a variable, None where it is not set. Raises BadSetting for anything but a number from 1 on."""
    value = environment.get(name, "")
    if value and (not value.isdecimal() or int(value) < 1):
        raise BadSetting(f"{name} is {value!r}: wanted a whole number of at least 1")
    return int(value) if value else None


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of(work: int, share: int) -> int:
    """Threads for `work` multiply-adds in a batch, of a `share` of the cores, unless the user chose a number.

    The same for the same study and machine: sums in floating point depend on it.
    """
    limit = _number("OMP_THREAD_LIMIT", os.environ) or share
    return chosen_threads() or max(1, min(share, limit, work // WORK_A_THREAD))


def threads_for(parallel: bool, experts: int) -> int:
    """Cores of one stage, from the machine and the study alone, or HARDMOE_THREADS, cluster.threads, or --workers.

    A stage that runs beside others of its kind gets its share of the cores; one that runs alone gets all.
    """
    if chosen := whole_number("HARDMOE_THREADS") or _recorded or whole_number(SHARE):
        return chosen
    at_once = len(gpu_names()) or min(max(experts, 2), cores())  # a GPU computes one at a time
    return max(1, cores() // at_once) if parallel else cores()


def workers_for(experts: int) -> int:
    """Processes that work beside each other on the cores there are."""
    return max(1, cores() // (chosen_threads() or threads_for(True, experts)))


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


def begin(recorded: int = 0) -> None:
    """Marks the start of a stage: `used` counts from here. `recorded` is the study's setting cluster.threads."""
    global _share, _used
    record(recorded)
    _share, _used = None, 0


def record(threads: int) -> None:
    """Notes the study's setting cluster.threads, 0 for none. Raises BadSetting where HARDMOE_THREADS is another."""
    global _recorded
    chosen = whole_number("HARDMOE_THREADS")
    if threads and chosen not in (None, threads):
        raise BadSetting(
            f"HARDMOE_THREADS is {chosen}, but the study has cluster.threads = {threads}, and results follow from it: "
            "unset the variable, or change the setting"
        )
    _recorded = threads


def used() -> dict[str, int | str]:
    """Threads since `begin`, for the metadata of an artifact; nothing where no network computed."""
    return {"threads": _used, "waiting": _waiting} if _used else {}
