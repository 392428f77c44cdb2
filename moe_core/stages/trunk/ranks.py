"""The trunk trained by several processes, one a GPU.

`train_in_ranks` runs in the stage's process and trains nothing; `python -m moe_core.trunk_rank` is one rank.
moe_core.engine.nodes starts and watches them.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from moe_core.engine.context import Context
from moe_core.engine.nodes import lines_of_first
from moe_core.models.resnet import ResNet
from moe_core.training.loop import Measurement
from moe_core.weights import load_weights, read_header

TRAINED = "trained.safetensors"  # in the work folder


def train_in_ranks(context: Context, ranks: int, model: ResNet, checkpoint: Path) -> Iterator[Measurement]:
    """Trains the trunk as `train` does and leaves its weights in `model`; logs of the ranks lie beside `checkpoint`.

    Raises BadSetting for fewer GPUs than ranks, where there are any, and TrainingFailed with the last line that a
    failed rank logged.
    """
    checkpoint = checkpoint.absolute()
    work = checkpoint.parent
    trained = work / TRAINED
    job = {
        "study": context.study.model_dump(mode="json"),
        "root": str(context.root.absolute()),
        "ranks": ranks,
        "checkpoint": str(checkpoint),
        "trained": str(trained),
    }
    with context.nodes.gang("moe_core.trunk_rank", ranks, job, work, context.report) as members:
        for line in lines_of_first(members, "the trunk", work):
            yield Measurement(**json.loads(line))
    model.load_state_dict(load_weights(trained)[0])


def device_of_ranks(work: Path) -> str:
    """What the first rank trained on, once all are done."""
    return read_header(work / TRAINED)[0]["device"]
