"""The trunk trained by several processes on one machine, one a GPU: started, watched and ended here.

`train_in_ranks` runs in the stage's process and trains nothing; `python -m moe_core.trunk_rank` is one rank.
When a rank dies or stands still the others are ended, and when the stage's process dies all ranks die with it.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from moe_core.heartbeat import Pulse

if TYPE_CHECKING:
    from moe_core.engine.context import Context
    from moe_core.models.resnet import ResNet
    from moe_core.training.loop import Measurement

POLL_SECONDS = 0.2
GRACE_SECONDS = 5.0  # in which the others end by themselves and say why, one of them perhaps the cause


def train_in_ranks(context: Context, ranks: int, model: ResNet, checkpoint: Path) -> Iterator[Measurement]:
    """Trains the trunk as `train` does and leaves its weights in `model`; logs of the ranks lie beside `checkpoint`.

    Raises ValueError for fewer GPUs than ranks, where there are any, and with the last words of a rank that failed.
    """
    import torch

    from moe_core.training.loop import Measurement
    from moe_core.weights import load_weights

    gpus = torch.cuda.device_count()
    if 0 < gpus < ranks:
        raise ValueError(f"trunk_setup.ranks = {ranks}, but this process sees {gpus} GPUs: wanted one a rank")
    checkpoint = checkpoint.absolute()
    work = checkpoint.parent
    trained, meeting = work / "trained.safetensors", work / f"meeting-{os.getpid()}-{time.time_ns()}"
    said = {
        "study": context.study.model_dump(mode="json"),
        "root": str(context.root.absolute()),
        "ranks": ranks,
        "cuda": gpus > 0,
        "meeting": str(meeting),
        "checkpoint": str(checkpoint),
        "trained": str(trained),
    }
    running: list[subprocess.Popen[str]] = []
    pulses: list[Pulse] = []
    try:
        for rank in range(ranks):
            process, pulse = _start(said | {"rank": rank}, work / f"rank-{rank}.log")
            running.append(process)
            pulses.append(pulse)
        for line in _lines(running, pulses, work):
            yield Measurement(**json.loads(line))
        model.load_state_dict(load_weights(trained)[0])
    finally:
        for process in running:
            process.kill()
            process.communicate()
        for pulse in pulses:
            os.close(pulse.pipe)
        meeting.unlink(missing_ok=True)


def _start(said: dict[str, object], log: Path) -> tuple[subprocess.Popen[str], Pulse]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the ranks are on this machine
    ours, theirs = os.pipe()
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "moe_core.trunk_rank"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env=environment,
            pass_fds=[theirs],
        )
    os.close(theirs)
    assert process.stdin is not None
    process.stdin.write(json.dumps(said | {"beats": theirs, "parent": os.getpid()}) + "\n")
    process.stdin.flush()
    return process, Pulse(process.pid, ours)


def _lines(running: list[subprocess.Popen[str]], pulses: list[Pulse], work: Path) -> Iterator[str]:
    """What rank 0 writes, until all have ended well."""
    first = running[0].stdout
    assert first is not None
    said_all = False
    while True:
        over = all(process.poll() is not None for process in running)
        if any(process.poll() for process in running):
            raise ValueError(_failure(running, work))
        for rank, pulse in enumerate(pulses):
            if running[rank].poll() is None and pulse.stands_still():
                raise ValueError(f"rank {rank} of the trunk {pulse.why}, and the others with it")
        if over and said_all:
            return
        if said_all:
            time.sleep(POLL_SECONDS / 10)
        elif select.select([first], [], [], POLL_SECONDS)[0]:
            line = first.readline()
            said_all = not line
            if line:
                yield line


def _failure(running: list[subprocess.Popen[str]], work: Path) -> str:
    """Why it ended, once all have ended or had time to; those that were killed come first."""
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline and any(process.poll() is None for process in running):
        time.sleep(POLL_SECONDS)
    ends = sorted((process.poll() or 0, rank) for rank, process in enumerate(running))
    return "; ".join(_why(rank, code, work) for code, rank in ends if code)


def _why(rank: int, code: int, work: Path) -> str:
    if code < 0:
        return f"rank {rank} of the trunk was killed by signal {-code}"
    lines = (work / f"rank-{rank}.log").read_text("utf-8", "replace").strip().splitlines()
    return f"rank {rank} of the trunk failed: {lines[-1] if lines else f'exit code {code}'}"
