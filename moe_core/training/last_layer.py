"""One decoder for all the experts, fitted on their features: a convex problem, started at the trunk's decoder.

Letters: N posts, S steps, B posts in the batch, D embedding width, V hashtags.
"""

import numpy as np
import torch
from torch import Tensor, nn

from moe_core.errors import NotFinite
from moe_core.training.loop import learning_rate
from moe_core.training.losses import hashtag_loss
from moe_core.training.order import TOGETHER, rows_of_steps
from moe_core.training.posts import Posts, bytes_for_posts
from moe_core.training.transfer import pinned

BATCH = 512


def refit(
    decoder: nn.Linear,
    features_ND: Tensor,
    posts: Posts,
    epochs: float,
    lr: float,
    loss: str,
    seed: int,
    device: str = "cpu",
) -> float:
    """Fits `decoder` in place, on the device, on features of `posts`, row for row; returns the mean loss of the last
    steps.

    Learning rate falls along half a cosine. Raises NotFinite, within 64 steps, when the loss is not finite. Features
    stay on a GPU where they fit into half of what is free there; within 64 steps nothing waits for it.
    """
    count, batch = len(posts), min(BATCH, len(posts))
    steps = max(1, round(epochs * (count // batch)))
    decoder.to(device)
    stays = features_ND.nbytes <= bytes_for_posts("auto", device)
    features_ND = features_ND.to(device) if stays else features_ND
    optimizer = torch.optim.SGD(decoder.parameters(), lr=lr, momentum=0.9, nesterov=True, fused=True)
    losses: list[float] = []
    for first in range(0, steps, TOGETHER):
        rows_SB = rows_of_steps(count, batch, seed, range(first, min(first + TOGETHER, steps)))
        losses_S = torch.zeros(len(rows_SB), device=device)
        tags_SBM = _sent(torch.from_numpy(posts.tags_of(rows_SB.reshape(-1))), device).unflatten(0, rows_SB.shape)
        index_SB = torch.from_numpy(rows_SB)
        index_SB = _sent(index_SB, device) if stays else index_SB
        for number in range(len(rows_SB)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate("cosine", lr, 0, first + number, steps)
            features_BD = features_ND[index_SB[number]]
            value = hashtag_loss(decoder(_sent(features_BD, device)), tags_SBM[number], loss)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            losses_S[number] = value.detach()
        losses += losses_S.tolist()  # the one wait for the device
        if not np.isfinite(losses).all():
            step = int(np.isfinite(losses).argmin())
            raise NotFinite(f"loss is {losses[step]} at step {step} of the refit: lower decoder.refit_lr")
    decoder.cpu()
    return float(np.mean(losses[-max(1, steps // 10) :]))


def _sent(tensor: Tensor, device: str) -> Tensor:
    """The tensor on the device, where it may lie already; nothing waits for the copy."""
    return tensor if tensor.is_cuda else pinned(tensor, device).to(device, non_blocking=True)
