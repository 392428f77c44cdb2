"""The GPUs of this machine as a Dagster resource: a step that trains holds one, or all, for itself.

The lease is taken inside the step, so the runs of Dagster's UI, of its daemon and of the command line never share a
GPU. A process sees all GPUs of CUDA_VISIBLE_DEVICES; the step's becomes its current device.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import dagster as dg
from pydantic import Field

from moe_core.devices import gpu_names
from moe_core.engine.context import Context
from moe_core.engine.gpus import all_gpus, free_gpu, one_gpu
from moe_core.engine.stage import Stage

KEY = "gpus"  # of the resource


class Gpus(dg.ConfigurableResource):
    """Leases of the GPUs that this process may see; costs nothing where there are none."""

    sharers: int = Field(default=1, ge=1, description="Trainings at once on one GPU, once each GPU has one.")

    @contextmanager
    def lease(self, trains: bool, every: bool, report: Callable[[Mapping[str, Any]], None]) -> Iterator[None]:
        """Holds one GPU, or `every` one, for a step that `trains`, and makes it the current device.

        A step that trains nothing holds none, and computes where the fewest train. While it waits, `report` is told
        once, as `waits`; then, with nothing, that it no longer does.
        """
        names = gpu_names()
        if not names:
            yield
        elif not trains:
            _use(free_gpu(names, _preferred()))
            yield
        else:
            waited: list[str] = []

            def waits(what: str) -> None:
                if not waited:
                    report({"waits": what})
                waited.append(what)

            with all_gpus(names, waits) if every else one_gpu(names, self.sharers, _preferred(), waits) as index:
                if waited:
                    report({})
                _use(index)
                yield

    def around(self, stage: Stage) -> Callable[[Context], AbstractContextManager[None]]:
        """A lease for the work of a stage: none is taken for an artifact that exists."""
        return lambda context: self.lease(stage.trains, stage.all_gpus(context.study), context.report)


GPUS = Gpus()


def _preferred() -> int:
    """The GPU that this process used before, where it keeps memory; without one, processes begin at different GPUs."""
    import torch

    return torch.cuda.current_device() if torch.cuda.is_initialized() else os.getpid()


def _use(index: int) -> None:
    import torch

    if torch.cuda.device_count() > max(index, 1):
        torch.cuda.set_device(index)
