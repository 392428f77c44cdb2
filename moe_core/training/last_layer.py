"""One decoder for all the experts, fitted on their features: a convex problem, started at the trunk's decoder.

Letters: N posts, B posts in the batch, D embedding width, V hashtags.
"""

import numpy as np
import torch
from torch import Tensor, nn

from moe_core.errors import NotFinite
from moe_core.training.loop import learning_rate
from moe_core.training.losses import hashtag_loss
from moe_core.training.order import rows_of_steps
from moe_core.training.posts import Posts

BATCH = 512


def refit(
    decoder: nn.Linear, features_ND: Tensor, posts: Posts, epochs: float, lr: float, loss: str, seed: int
) -> float:
    """Fits `decoder` in place on features of `posts`, row for row; returns the mean loss of the last steps.

    Learning rate falls along half a cosine. Raises NotFinite when the loss is not finite.
    """
    count, batch = len(posts), min(BATCH, len(posts))
    steps = max(1, round(epochs * (count // batch)))
    optimizer = torch.optim.SGD(decoder.parameters(), lr=lr, momentum=0.9, nesterov=True, fused=True)
    losses = []
    for step in range(steps):
        (rows_B,) = rows_of_steps(count, batch, seed, range(step, step + 1))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate("cosine", lr, 0, step, steps)
        value = hashtag_loss(decoder(features_ND[rows_B]), torch.from_numpy(posts.tags_of(rows_B)), loss)
        if not torch.isfinite(value):
            raise NotFinite(f"loss is {float(value)} at step {step} of the refit: lower decoder.refit_lr")
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return float(np.mean(losses[-max(1, steps // 10) :]))
