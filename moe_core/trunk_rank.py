"""`python -m moe_core.trunk_rank PARENT PIPE`: one rank of the trunk's training; see moe_core.stages.trunk.ranks.

It opens the study by itself; its job comes as a line of JSON on standard input. It ends with its parent.
"""

import json
import os
import sys
import traceback
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch

from moe_core.errors import HardmoeError, device_error
from moe_core.processes import obey_parent
from moe_core.settings import Study
from moe_core.stages.training.device import device_and_threads
from moe_core.stages.training.fit import training_threads
from moe_core.stages.trunk.trunk import trunk_start
from moe_core.training.loop import train
from moe_core.weights import save_weights
from moe_core.workspace import open_study

TIMEOUT = timedelta(minutes=10)  # for the others to come to the same step


def _rank() -> None:
    """Trains as one rank of the job that standard input describes."""
    job = json.loads(sys.stdin.readline())
    rank, ranks = job["rank"], job["ranks"]
    device, on_gpu = job["device"], job["device"] != "cpu"
    if on_gpu:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=_meeting(rank, ranks, **job["meeting"]),
        rank=rank,
        world_size=ranks,
        timeout=TIMEOUT,
        device_id=torch.device(device) if on_gpu else None,
    )
    context = open_study(Study.model_validate(job["study"]), Path(job["root"]))
    device_and_threads(context.study, parallel=False)
    model, posts = trunk_start(context)
    training_threads(model, context.study.data.image_size, context.study.trunk, len(posts), ranks)
    checkpoint = Path(job["checkpoint"])
    for measurement in train(
        model, posts, context.study.trunk, checkpoint=checkpoint, device=device, rank=rank, ranks=ranks
    ):
        if rank == 0:
            print(json.dumps(asdict(measurement)), flush=True)
    if rank == 0:
        save_weights(Path(job["trained"]), model.state_dict(), {"device": device})
    torch.distributed.destroy_process_group()


def _meeting(
    rank: int, ranks: int, file: str = "", host: str = "", port: int = 0, socket: int | None = None
) -> torch.distributed.Store:
    """Where the ranks find one another: a file, or rank 0, which got `socket` and listens there."""
    if file:
        return torch.distributed.FileStore(file, ranks)  # a file:// address would end at a "#" or "?"
    return torch.distributed.TCPStore(host, port, ranks, rank == 0, TIMEOUT, master_listen_fd=socket)


if __name__ == "__main__":
    obey_parent(int(sys.argv[1]), int(sys.argv[2]))
    code = 1
    try:
        _rank()
        code = 0
    except Exception as error:
        traceback.print_exc()
        error = device_error(error) or error
        if isinstance(error, HardmoeError):
            print(error, file=sys.stderr)  # the line that the stage reports
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of lance and torch need not be waited for
