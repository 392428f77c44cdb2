"""Processes that a stage starts to compute with it: on this machine, or on the nodes of a cluster.

The ranks of a gang need one another: all start or none does, and when one fails all are killed. Helpers work by
themselves, and one that dies may be replaced. Both end with the process that started them.

torch's elastic launcher was tried for the ranks (torch 2.13, two ranks on gloo). A rank that was stopped went unnoticed
for 45 s, when the trial ended; and when the launcher was killed its ranks trained on.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from moe_core import threads
from moe_core.errors import BadSetting, RankLost, TrainingFailed
from moe_core.processes import Child, start_child
from moe_core.settings import Study

POLL_SECONDS = 0.05
GRACE_SECONDS = 5.0  # in which the others end by themselves and report why, one of them perhaps the cause
Job = Mapping[str, Any]  # goes to a rank as a line of JSON
Report = Callable[[Mapping[str, Any]], None]


class Member(Protocol):
    """A process that a stage started, as the stage sees it; moe_core.processes.Child on this machine."""

    stalled: bool

    def lines(self) -> list[str]:
        """What it has printed since the last call, in whole lines."""
        ...

    def exit_code(self) -> int | None:
        """Negative where it was killed; None while it runs. A stalled process is killed."""
        ...

    def failure(self) -> str:
        """Why it ended; "" while it runs and where it ended well."""
        ...

    def close(self) -> None:
        """Kills it."""
        ...


class Nodes(Protocol):
    """Where a stage starts processes: this machine (below), or a cluster's (pipelines/run/pools/ray_gang.py)."""

    def gang(
        self, module: str, ranks: int, job: Job, folder: Path, report: Report
    ) -> AbstractContextManager[Sequence[Member]]:
        """Starts `ranks` processes of `module`, or none, and kills what is left of them at the end.

        Each reads `job` as a line of JSON, with three additions: its `rank`, its `device` and the `meeting` of all,
        see moe_core/trunk_rank.py. Its errors go to rank-<rank>.log in `folder`. `report` is told once, as `waits`,
        when there is no room yet. Raises BadSetting for more ranks than GPUs, where there are any.
        """
        ...

    def places(self, study: Study) -> list[str]:
        """Where processes may train experts at the same time, one entry each, this process first."""
        ...

    def helper(self, place: str, module: str, folder: Path) -> Member:
        """Starts `module` with the argument `folder` at one of the places."""
        ...


class ThisMachine:
    """Processes beside this one, one a GPU."""

    @contextmanager
    def gang(self, module: str, ranks: int, job: Job, folder: Path, report: Report) -> Iterator[Sequence[Member]]:
        import torch

        gpus = torch.cuda.device_count()
        if 0 < gpus < ranks:
            raise BadSetting(f"trunk_setup.ranks = {ranks}, but this process sees {gpus} GPUs: wanted one a rank")
        meeting = folder / f"meeting-{os.getpid()}-{time.time_ns()}"
        with ExitStack() as until:
            until.callback(meeting.unlink, missing_ok=True)
            members = []
            for rank in range(ranks):
                device = f"cuda:{rank}" if gpus else "cpu"
                own = {**job, "rank": rank, "device": device, "meeting": {"file": str(meeting)}}
                members.append(start_rank(module, own, folder, "lo" if sys.platform == "linux" else ""))
                until.callback(members[-1].close)
            yield members

    def places(self, study: Study) -> list[str]:
        """One entry a process: its GPU, or nothing for a share of the cores. HARDMOE_WORKERS limits their number."""
        import torch

        if gpus := torch.cuda.device_count():
            names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            found = names[:gpus] if len(names) >= gpus else [str(number) for number in range(gpus)]
        else:
            found = [""] * threads.workers_for(study.partition.experts)
        return found[: most_places(study)]

    def helper(self, place: str, module: str, folder: Path) -> Member:
        environment = {"CUDA_VISIBLE_DEVICES": place} if place else {}
        return start_child(module, str(folder), environment=environment, stdin=subprocess.DEVNULL)


def most_places(study: Study) -> int:
    """Processes that can train experts at the same time."""
    most = threads.whole_number("HARDMOE_WORKERS") or study.partition.experts
    return min(study.partition.experts, most)


def start_rank(module: str, job: Job, folder: Path, interface: str, pass_fds: Sequence[int] = ()) -> Child:
    """Starts a rank on this machine; gloo's connections go through the network `interface`, where that is named."""
    chosen = os.environ.get("GLOO_SOCKET_IFNAME") or interface
    with open(folder / f"rank-{job['rank']}.log", "w", encoding="utf-8") as file:
        child = start_child(
            module,
            environment={"GLOO_SOCKET_IFNAME": chosen} if chosen else {},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            pass_fds=pass_fds,
        )
    assert child.process.stdin is not None
    child.process.stdin.write(json.dumps(job) + "\n")
    child.process.stdin.flush()
    return child


def lines_of_first(members: Sequence[Member], what: str, folder: Path) -> Iterator[str]:
    """What rank 0 prints, until all ranks have ended well. `what` they train is for messages.

    Raises TrainingFailed with the last line that a failed rank logged, or RankLost.
    """
    while True:
        over = all(member.exit_code() is not None for member in members)
        for rank, member in enumerate(members):
            if member.failure() and member.stalled:
                raise RankLost(f"rank {rank} of {what} made {member.failure()}, and the others with it")
        if any(member.failure() for member in members):
            raise _failures(members, what, folder)
        lines = members[0].lines()
        yield from lines
        if over:
            return
        if not lines:
            time.sleep(POLL_SECONDS)


def _failures(members: Sequence[Member], what: str, folder: Path) -> TrainingFailed:
    """Why they ended, once all have ended or had time to; those that were killed come first."""
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline and any(member.exit_code() is None for member in members):
        time.sleep(POLL_SECONDS)
    ends = sorted((member.exit_code() or 0, rank) for rank, member in enumerate(members))
    text = "; ".join(_why(rank, members[rank], what, folder) for code, rank in ends if code)
    return RankLost(text) if ends[0][0] < 0 else TrainingFailed(text)


def _why(rank: int, member: Member, what: str, folder: Path) -> str:
    if (member.exit_code() or 0) < 0:
        return f"rank {rank} of {what} was {member.failure()}"
    lines = (folder / f"rank-{rank}.log").read_text("utf-8", "replace").strip().splitlines()
    return f"rank {rank} of {what} failed: {lines[-1] if lines else member.failure()}"
