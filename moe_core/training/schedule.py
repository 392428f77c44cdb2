"""Learning rate over the steps of a run."""

import math


def learning_rate(kind: str, peak: float, warmup: float, step: int, steps: int) -> float:
    """Learning rate of the step numbered `step` of `steps`.

    one-cycle climbs from a tenth of the peak during the first `warmup` share of the steps and falls to zero on a
    straight line; cosine falls from the peak along half a cosine.
    """
    if kind == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * step / steps))
    up = warmup * steps
    if step < up:
        return peak * (0.1 + 0.9 * step / up)
    return peak * (steps - step) / max(steps - up, 1)
