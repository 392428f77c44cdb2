"""Cores, threads and device of one stage."""

from __future__ import annotations

from moe_core import threads
from moe_core.settings import Study
from moe_core.threads import cores

SHARE = "HARDMOE_SHARE"  # cores of one worker, set by --workers for the processes that it starts


def threads_for(parallel: bool, experts: int) -> int:
    """Cores of one stage, from the machine and the study alone, or HARDMOE_THREADS, or --workers.

    A stage that runs beside others of its kind gets its share of the cores; one that runs alone gets all.
    """
    if chosen := threads.whole_number("HARDMOE_THREADS") or threads.whole_number(SHARE):
        return chosen
    return max(1, cores() // min(max(experts, 2), cores())) if parallel else cores()


def workers_for(experts: int) -> int:
    """Processes that work beside each other on the cores there are."""
    return max(1, cores() // (threads.said_threads() or threads_for(True, experts)))


def device_and_threads(study: Study, parallel: bool, hashtags: int = 1) -> str:
    """Sets torch's threads for a stage that runs the study's network, and names its device.

    `hashtags` is the width of its last layer, where that computes too. A training sets them again for its own network.
    """
    import torch

    from moe_core.models.cost import multiply_adds
    from moe_core.models.resnet import build_on_meta
    from moe_core.training.infer import BATCH

    work = BATCH * multiply_adds(build_on_meta(study.network, hashtags), study.data.image_size)
    threads.use(work, threads_for(parallel, study.partition.experts))
    return "cuda" if torch.cuda.is_available() else "cpu"
