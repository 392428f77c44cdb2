"""`python -m moe_core.trunk_rank`: one rank of the trunk's training, started by moe_core.stages.trunk.ranks.

It opens the study by itself; what it is to do comes as a line of JSON on standard input. It ends with its parent.
"""

import json
import os
import sys
import threading
import traceback
from dataclasses import asdict
from pathlib import Path

from moe_core.heartbeat import beat, die_with_parent, end_by_parent_alone
from moe_core.settings import Study
from moe_core.stages.training.device import device_and_threads
from moe_core.stages.training.fit import training_threads
from moe_core.stages.trunk.trunk import trunk_start
from moe_core.workspace import open_study


def _rank() -> None:
    """One rank: reads from standard input what it is to do, then watches that it stays open."""
    end_by_parent_alone()
    said = json.loads(sys.stdin.readline())
    beat(said["beats"])
    die_with_parent(said["parent"])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    from moe_core.training.loop import train
    from moe_core.weights import save_weights

    rank, ranks = said["rank"], said["ranks"]
    device = f"cuda:{rank}" if said["cuda"] else "cpu"
    if said["cuda"]:
        torch.cuda.set_device(device)
    store = torch.distributed.FileStore(said["meeting"], ranks)  # a file:// address would end at a "#" or "?"
    torch.distributed.init_process_group("nccl" if said["cuda"] else "gloo", store=store, rank=rank, world_size=ranks)
    context = open_study(Study.model_validate(said["study"]), Path(said["root"]))
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
