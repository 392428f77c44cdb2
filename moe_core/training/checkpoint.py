"""A resumable training state in one file: weights, momentum and the step; order and augmentation follow from it."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from moe_core.errors import CorruptArtifact
from moe_core.weights import load_weights, save_weights

COST = 50  # times what one takes, between two: a fiftieth of the time at most


class Checkpoints:
    """Writes checkpoints to one file in a thread, each from a copy of the state on its device; training goes on.

    One is due after `seconds`, but not before fifty times what the last one took; none is without a path. What goes
    wrong with one, such as a full disk, is raised at the next, or at the end.
    """

    def __init__(self, path: Path | None, seconds: float) -> None:
        self.path, self.seconds = path, seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[float] | None = None
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None and self._writing:
            self._writing.result()

    @property
    def is_due(self) -> bool:
        if self.path is None or (self._writing and not self._writing.done()):
            return False
        took = self._writing.result() if self._writing else 0.0
        return time.monotonic() - self._began >= max(self.seconds, COST * took)

    def save(self, model: nn.Module, optimizer: torch.optim.SGD, step: int, steps: int) -> None:
        """Begins to replace the file in one move; a reader sees the old state or the new one."""
        if self.path is None:
            return
        if self._writing:
            self._writing.result()
        self._began = time.monotonic()
        state = {name: tensor.detach().clone() for name, tensor in state_of(model, optimizer).items()}
        device = next(iter(state.values())).device
        copied = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
        self._writing = self._thread.submit(self._write, self.path, state, copied, step, steps)

    def _write(
        self, path: Path, state: dict[str, Tensor], copied: torch.cuda.Event | None, step: int, steps: int
    ) -> float:
        if copied:  # on a stream of its own, which does not wait for the steps since
            stream = torch.cuda.Stream(next(iter(state.values())).device)
            with torch.cuda.stream(stream):
                stream.wait_event(copied)
                state = {name: tensor.cpu() for name, tensor in state.items()}
        _save(path, state, step, steps)
        return time.monotonic() - self._began


def _save(path: Path, state: dict[str, Tensor], step: int, steps: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(path, state, {"step": str(step), "steps": str(steps)})


def state_of(model: nn.Module, optimizer: torch.optim.SGD) -> dict[str, Tensor]:
    """Weights and momentum by their names in a checkpoint."""
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if momentum is not None:
            state[f"momentum.{name}"] = momentum
    return state


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.SGD, steps: int) -> int:
    """Loads a checkpoint and returns its steps, 0 without one. Raises CorruptArtifact for that of another run."""
    if not path.exists():
        return 0
    state, about = load_weights(path)
    if about.get("steps") != str(steps):
        raise CorruptArtifact(
            f"{path} is of a run of {about.get('steps')} steps, this run has {steps}: delete it", path
        )
    model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    parameters = dict(model.named_parameters())
    for name, momentum in state.items():
        if name.startswith("momentum."):
            parameter = parameters.get(name.removeprefix("momentum."))
            if parameter is None:
                raise CorruptArtifact(f"{path} holds {name!r}, which the network has not: delete it", path)
            # in the weights' layout in memory, which a file does not keep: a fused step wants the two alike
            optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum).detach()
    return int(about["step"])
