"""A training step as one CUDA graph: the device starts its kernels by itself, where launching them takes longer than
they do."""

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3  # steps that run kernel by kernel first, as torch asks: libraries choose algorithms and take memory


class CapturedStep:
    """Does what `step(images, tags)` does, which returns a loss on the device: the first steps by it, then by a graph
    of it.

    All images and tags have the shapes of the first. What changes from step to step besides, such as a learning rate,
    must be a tensor on the device that is filled.
    """

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._step, self._done = step, 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._images_BCHW = self._tags_BM = self._loss = torch.empty(0)  # which the graph reads and writes

    def __call__(self, images_BCHW: Tensor, tags_BM: Tensor) -> Tensor:
        """The loss, whose memory the next step uses again."""
        if self._graph is not None:
            self._images_BCHW.copy_(images_BCHW)
            self._tags_BM.copy_(tags_BM)
        elif self._done < WARM_UP:
            self._done += 1
            return self._beside(images_BCHW, tags_BM)
        else:
            self._images_BCHW, self._tags_BM = images_BCHW.clone(), tags_BM.clone()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):  # computes nothing
                self._loss = self._step(self._images_BCHW, self._tags_BM)
        self._graph.replay()
        return self._loss

    def _beside(self, images_BCHW: Tensor, tags_BM: Tensor) -> Tensor:
        """A step on a stream of its own, on which alone what is captured later may have run."""
        here, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            loss = self._step(images_BCHW, tags_BM)
        here.wait_stream(stream)
        return loss
