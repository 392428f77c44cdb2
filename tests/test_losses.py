"""The loss of hashtags without dense targets, against the dense formulas."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from moe_core.training import losses
from moe_core.training.losses import hashtag_loss

TAGS_BM = torch.tensor([[0, 1, 3], [2, -1, -1], [-1, -1, -1], [3, 0, -1]])


def dense(logits_BV, tags_BM, kind):
    targets_BV = torch.zeros_like(logits_BV)
    for post, tags in enumerate(tags_BM.tolist()):
        targets_BV[post, [tag for tag in tags if tag >= 0]] = 1
    if kind == "sigmoid":
        return F.binary_cross_entropy_with_logits(logits_BV, targets_BV, reduction="none").sum(1).mean()
    return F.cross_entropy(logits_BV, targets_BV / targets_BV.sum(1, keepdim=True).clamp(min=1))


def test_softmax_of_equal_logits_costs_the_log_of_their_number_whatever_the_tags():
    assert hashtag_loss(torch.zeros(1, 4), torch.tensor([[0, 1]]), "softmax").item() == pytest.approx(1.386294)


def test_sigmoid_of_four_even_chances_costs_four_log_2():
    assert hashtag_loss(torch.zeros(1, 4), torch.tensor([[0, 1]]), "sigmoid").item() == pytest.approx(2.772589)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("scale", [1, 30])
def test_value_and_gradient_are_those_of_dense_targets(kind, scale):
    draw = torch.Generator().manual_seed(0)
    sparse = (scale * torch.randn(4, 5, generator=draw)).requires_grad_()
    full = sparse.detach().clone().requires_grad_()
    value, wanted = 3 * hashtag_loss(sparse, TAGS_BM, kind), 3 * dense(full, TAGS_BM, kind)
    value.backward()
    wanted.backward()
    assert value.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert torch.allclose(sparse.grad, full.grad, atol=1e-6)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_gradients_are_the_slopes(kind):
    logits_BV = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: hashtag_loss(x, TAGS_BM, kind), logits_BV.requires_grad_())


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_posts_are_taken_some_at_a_time(monkeypatch, kind, dtype):
    logits_BV = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = []
    for of_two_posts in (1 << 20, 2 * 5 * 4):
        monkeypatch.setattr(losses, "CPU_BYTES", of_two_posts)
        leaf = logits_BV.clone().requires_grad_()
        value = hashtag_loss(leaf, TAGS_BM, kind)
        value.backward()
        found.append((value.detach(), leaf.grad))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    full = logits_BV.float().requires_grad_()
    wanted = dense(full, TAGS_BM, kind)
    wanted.backward()
    value, gradient = found[0]
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert gradient.dtype == dtype  # rounded once
    assert torch.allclose(gradient, full.grad.to(dtype), atol=1e-6 if dtype == torch.float32 else 1e-3)


def test_no_post_has_tags():
    none = torch.from_numpy(np.full((2, 0), -1))
    assert hashtag_loss(torch.randn(2, 3), none, "softmax").item() == 0
