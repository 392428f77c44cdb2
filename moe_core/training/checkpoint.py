"""A resumable training state in one file: weights, momentum and the step; order and augmentation follow from it."""

from pathlib import Path

import torch
from torch import nn

from moe_core.errors import CorruptArtifact
from moe_core.weights import load_weights, save_weights


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.SGD, step: int, steps: int) -> None:
    """Replaces `path` in one move; a reader sees the old state or the new one."""
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if momentum is not None:
            state[f"momentum.{name}"] = momentum
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(path, state, {"step": str(step), "steps": str(steps)})


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
