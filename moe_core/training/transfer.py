"""Copies between the CPU and a GPU that nobody waits for before the result is wanted."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


def named(device: str) -> str:
    """The device with its number, for threads that have another current one."""
    return f"cuda:{torch.cuda.current_device()}" if device == "cuda" else device


def use(device: str) -> None:
    """Makes a GPU the current one of this thread, which would take memory on the first one otherwise."""
    if device.startswith("cuda"):
        torch.cuda.set_device(device)


def pinned(tensor: Tensor, device: str) -> Tensor:
    """The tensor in memory from which a GPU copies without waiting; itself where the device is none."""
    return tensor.pin_memory() if device.startswith("cuda") else tensor


def on_the_way(tensor: Tensor) -> Callable[[], Tensor]:
    """Begins to copy a tensor to the CPU; the function returns it once it is there."""
    if not tensor.is_cuda:
        return lambda: tensor
    there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    there.copy_(tensor, non_blocking=True)
    copied = torch.cuda.current_stream(tensor.device).record_event()

    def arrived() -> Tensor:
        copied.synchronize()
        return there

    return arrived


def one_behind(items: Iterable[Item], device: str) -> Iterator[Item]:
    """The same items; on a GPU each once the one after it is under way."""
    waiting: list[Item] = []
    for item in items:
        waiting.append(item)
        if len(waiting) > 1 or not device.startswith("cuda"):
            yield waiting.pop(0)
    yield from waiting
