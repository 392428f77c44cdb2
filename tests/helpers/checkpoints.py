"""A checkpoint as a training writes it."""

from moe_core.training.checkpoint import Checkpoints


def save_checkpoint(path, model, optimizer, step, steps):
    """Writes one and waits for its end, by the thread that training leaves it to."""
    with Checkpoints(path, 0.0) as checkpoints:
        checkpoints.save(model, optimizer, step, steps)
