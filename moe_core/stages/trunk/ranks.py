"""The trunk trained by several processes on one machine, one a GPU: started, watched and ended here.

`train_in_ranks` runs in the stage's process and trains nothing; `python -m moe_core.stages.trunk.ranks` is one rank.
When a rank dies or stands still the others are ended, and when the stage's process dies all ranks die with it.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from moe_core.heartbeat import Pulse, beat, die_with_parent, end_by_parent_alone

if TYPE_CHECKING:
    from moe_core.engine.context import Context
    from moe_core.models.resnet import ResNet
    from moe_core.training.loop import Measurement

POLL_SECONDS = 0.2
GRACE_SECONDS = 5.0  # in which the others end by themselves and say why, one of them perhaps the cause


def train_in_ranks(context: Context, model: ResNet, ranks: int, checkpoint: Path) -> Iterator[Measurement]:
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
            [sys.executable, "-m", "moe_core.stages.trunk.ranks"],
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


def _rank() -> None:
    """One rank: reads from standard input what it is to do, then watches that it stays open."""
    end_by_parent_alone()
    said = json.loads(sys.stdin.readline())
    beat(said["beats"])
    die_with_parent(said["parent"])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    from moe_core.engine.context import Context, device_and_threads
    from moe_core.settings import Study
    from moe_core.stages.training.fit import training_threads
    from moe_core.stages.trunk.trunk import trunk_start
    from moe_core.training.loop import train
    from moe_core.weights import save_weights

    rank, ranks = said["rank"], said["ranks"]
    device = f"cuda:{rank}" if said["cuda"] else "cpu"
    if said["cuda"]:
        torch.cuda.set_device(device)
    store = torch.distributed.FileStore(said["meeting"], ranks)  # a file:// address would end at a "#" or "?"
    torch.distributed.init_process_group("nccl" if said["cuda"] else "gloo", store=store, rank=rank, world_size=ranks)
    context = Context(Study.model_validate(said["study"]), Path(said["root"]))
    device_and_threads(context.study, parallel=False)
    model, posts = trunk_start(context)
    training_threads(model, context.study.data.image_size, context.study.trunk, len(posts), ranks)
    checkpoint = Path(said["checkpoint"])
    for measurement in train(
        model, posts, context.study.trunk, checkpoint=checkpoint, device=device, rank=rank, ranks=ranks
    ):
        if rank == 0:
            print(json.dumps(asdict(measurement)), flush=True)
    if rank == 0:
        save_weights(Path(said["trained"]), model.state_dict(), {})
    torch.distributed.destroy_process_group()


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    code = 1
    try:
        _rank()
        code = 0
    except Exception:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread still reads standard input, and those of lance and torch need not be waited for
