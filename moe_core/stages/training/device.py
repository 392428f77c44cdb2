"""The device of a stage that runs a network, and its threads."""

import torch

from moe_core import threads
from moe_core.models.cost import multiply_adds
from moe_core.models.resnet import build_on_meta
from moe_core.settings import Study
from moe_core.threads import threads_for
from moe_core.training.infer import BATCH
from moe_core.training.transfer import named


def device_and_threads(study: Study, parallel: bool, hashtags: int = 1) -> str:
    """Sets torch's threads for a stage that runs the study's network, and names its device.

    `hashtags` is the width of its last layer, where that computes too. A training sets them again for its own network.
    """
    threads.record(study.cluster.threads)  # in a process that builds only a part
    work = BATCH * multiply_adds(build_on_meta(study.network, hashtags), study.data.image_size)
    threads.use(work, threads_for(parallel, study.partition.experts))
    return named("cuda") if torch.cuda.is_available() else "cpu"
