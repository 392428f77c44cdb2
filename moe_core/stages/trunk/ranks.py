"""The trunk trained by several processes on one machine, one a GPU: started, watched and ended here.

`train_in_ranks` runs in the stage's process and trains nothing; `python -m moe_core.trunk_rank` is one rank.
When a rank dies or stalls the others are killed, and when the stage's process dies all ranks die with it.

torch's elastic launcher was tried in its place (torch 2.13, two ranks on gloo). A rank that was stopped went unnoticed
for 45 s, when the trial ended; and when the launcher was killed its ranks trained on.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch

from moe_core.engine.context import Context
from moe_core.errors import BadSetting, TrainingFailed
from moe_core.models.resnet import ResNet
from moe_core.processes import Child, start_child
from moe_core.training.loop import Measurement
from moe_core.weights import load_weights

POLL_SECONDS = 0.2
GRACE_SECONDS = 5.0  # in which the others end by themselves and report why, one of them perhaps the cause


def train_in_ranks(context: Context, ranks: int, model: ResNet, checkpoint: Path) -> Iterator[Measurement]:
    """Trains the trunk as `train` does and leaves its weights in `model`; logs of the ranks lie beside `checkpoint`.

    Raises BadSetting for fewer GPUs than ranks, where there are any, and TrainingFailed with the last line that a
    failed rank logged.
    """
    gpus = torch.cuda.device_count()
    if 0 < gpus < ranks:
        raise BadSetting(f"trunk_setup.ranks = {ranks}, but this process sees {gpus} GPUs: wanted one a rank")
    checkpoint = checkpoint.absolute()
    work = checkpoint.parent
    trained, meeting = work / "trained.safetensors", work / f"meeting-{os.getpid()}-{time.time_ns()}"
    job = {
        "study": context.study.model_dump(mode="json"),
        "root": str(context.root.absolute()),
        "ranks": ranks,
        "cuda": gpus > 0,
        "meeting": str(meeting),
        "checkpoint": str(checkpoint),
        "trained": str(trained),
    }
    with ExitStack() as until:
        until.callback(meeting.unlink, missing_ok=True)
        children = []
        for rank in range(ranks):
            child = _start(job | {"rank": rank}, work / f"rank-{rank}.log")
            until.callback(child.close)
            children.append(child)
        for line in _lines(children, work):
            yield Measurement(**json.loads(line))
        model.load_state_dict(load_weights(trained)[0])


def _start(job: dict[str, object], log: Path) -> Child:
    # the ranks are on this machine
    environment = {"GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo")} if sys.platform == "linux" else {}
    with open(log, "w", encoding="utf-8") as file:
        child = start_child(
            "moe_core.trunk_rank",
            environment=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
        )
    assert child.process.stdin is not None
    child.process.stdin.write(json.dumps(job) + "\n")
    child.process.stdin.flush()
    return child


def _lines(children: list[Child], work: Path) -> Iterator[str]:
    """What rank 0 writes, until all have ended well."""
    first = children[0].process.stdout
    assert first is not None
    written_all = False
    while True:
        over = all(child.process.poll() is not None for child in children)
        for rank, child in enumerate(children):
            if child.failure() and child.stalled:
                raise TrainingFailed(f"rank {rank} of the trunk made {child.failure()}, and the others with it")
        if any(child.failure() for child in children):
            raise TrainingFailed(_failures(children, work))
        if over and written_all:
            return
        if written_all:
            time.sleep(POLL_SECONDS / 10)
        elif select.select([first], [], [], POLL_SECONDS)[0]:
            line = first.readline()
            written_all = not line
            if line:
                yield line


def _failures(children: list[Child], work: Path) -> str:
    """Why they ended, once all have ended or had time to; those that were killed come first."""
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline and any(child.process.poll() is None for child in children):
        time.sleep(POLL_SECONDS)
    ends = sorted((child.process.poll() or 0, rank) for rank, child in enumerate(children))
    return "; ".join(_why(rank, children[rank], work) for code, rank in ends if code)


def _why(rank: int, child: Child, work: Path) -> str:
    if child.process.returncode < 0:
        return f"rank {rank} of the trunk was {child.failure()}"
    lines = (work / f"rank-{rank}.log").read_text("utf-8", "replace").strip().splitlines()
    return f"rank {rank} of the trunk failed: {lines[-1] if lines else child.failure()}"
