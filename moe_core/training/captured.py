"""Work on a device as one CUDA graph: the device starts its kernels by itself, where launching them takes longer than
they do."""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

WARM_UP = 3  # times that it runs kernel by kernel first, as torch asks: libraries choose algorithms and take memory

Result = TypeVar("Result")


class Captured(Generic[Result]):
    """Does what `work(*tensors)` does, the first times by calling it, then by a graph of it.

    All calls have tensors of the same shapes, on one device. What changes besides from call to call, such as a learning
    rate, must be a tensor on the device that is filled. The memory of a result is used again by the next call.
    """

    def __init__(self, work: Callable[..., Result]) -> None:
        self._work = work
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream: torch.cuda.Stream | None = None  # on which alone what is captured may have run
        self._given: list[Tensor] = []  # which the graph reads
        self._result: Result

    def __call__(self, *tensors: Tensor) -> Result:
        self._stream = self._stream or torch.cuda.Stream(tensors[0].device)
        if self._graph is not None:
            for given, tensor in zip(self._given, tensors, strict=True):
                given.copy_(tensor)
        elif self._calls < WARM_UP:
            self._calls += 1
            return self._beside(self._stream, tensors)
        else:
            self._given = [tensor.clone() for tensor in tensors]
            graph = torch.cuda.CUDAGraph()
            # threads that read ahead take pinned memory meanwhile, which a capture forbids to all threads by default
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):  # computes nothing
                self._result = self._work(*self._given)
            self._graph = graph
        self._graph.replay()
        return self._result

    def _beside(self, stream: torch.cuda.Stream, tensors: tuple[Tensor, ...]) -> Result:
        here = torch.cuda.current_stream(stream.device)
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            result = self._work(*tensors)
        here.wait_stream(stream)
        return result
