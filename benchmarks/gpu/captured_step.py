"""A bare training step that draws on the device, so that CUDA replays all of it as one graph.

The project's captured step (`capture = true`) draws on the CPU, so that a training is resumed to the bit, and its order
and moves come from outside its graph. This one is what that costs, and the step of what the project does not have:
experts on streams of their own, or fused into one network.

Letters: N posts, B posts in the batch, T tags of a post at most (padded with -1), V hashtags, C channels, H W pixels,
S pixels a side.
"""

from collections.abc import Callable

import torch
from bare_loops import sparse_loss
from common import CUDA, DEVICE
from torch import Tensor, nn

from moe_core.training.batches import MEAN, STD


class Step:
    """Trains one network on posts in device memory, one step per call, by SGD with Nesterov momentum.

    Order, flips, crops and the one-cycle learning rate are computed on the device from a counter there. Weight decay is
    on matrices and filters only, as in the project's loop. `forward` replaces the network's own, `loss` is given
    float32 logits and tags (B, T).
    """

    def __init__(
        self,
        model: nn.Module,
        images_NHWC: Tensor,
        tags_NT: Tensor,
        *,
        batch: int,
        steps: int,
        lr: float,
        warmup: float = 0.2,
        momentum: float = 0.9,
        decay: float = 5e-4,
        flip: bool = False,
        crop: int = 1,
        train_decoder: bool = True,
        forward: Callable[[Tensor], Tensor] | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] = sparse_loss,
        bf16: bool = CUDA,
    ) -> None:
        self.model, self.images_NHWC, self.tags_NT = model.train(), images_NHWC, tags_NT
        self.batch, self.steps, self.lr, self.warmup = batch, steps, lr, warmup
        self.momentum, self.decay, self.flip, self.crop = momentum, decay, flip, crop
        self.forward, self.loss, self.bf16 = forward or model, loss, bf16
        model.get_submodule("fc").requires_grad_(train_decoder)
        self.params: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self.decayed = [p for p in self.params if p.ndim > 1]
        device, side = images_NHWC.device, images_NHWC.shape[1]
        self.velocities = [torch.zeros_like(p) for p in self.params]
        self.step_no = torch.zeros((), dtype=torch.int64, device=device)
        self.mean_loss = torch.zeros((), device=device)  # exponential moving average
        self.order = torch.randperm(len(images_NHWC), device=device)[: len(images_NHWC) // batch * batch]
        self.place_B = torch.arange(batch, device=device)
        self.side_S = torch.arange(side, device=device)
        self.mean_C11 = torch.tensor(MEAN, device=device).view(3, 1, 1)
        self.std_C11 = torch.tensor(STD, device=device).view(3, 1, 1)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream: torch.cuda.Stream | None = None
        self.concurrent = False  # replay on the stream of the capture, beside other steps

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Normalized images (B, C, H, W) float32 and their tags (B, T) of the step that the counter names."""
        images, side = self.images_NHWC, self.images_NHWC.shape[1]
        rows_B = self.order[(self.step_no * self.batch + self.place_B) % len(self.order)]
        corner_B2 = torch.randint(-self.crop, self.crop + 1, (self.batch, 2), device=images.device)
        x_S = self.side_S[None]
        if self.flip:
            x_S = torch.where(torch.rand(self.batch, 1, device=images.device) < 0.5, side - 1 - x_S, x_S)
        y_BS, x_BS = corner_B2[:, :1] + self.side_S, corner_B2[:, 1:] + x_S
        inside_BSS = ((y_BS >= 0) & (y_BS < side))[:, :, None] & ((x_BS >= 0) & (x_BS < side))[:, None, :]
        y_BS1, x_B1S = y_BS.clamp(0, side - 1)[:, :, None], x_BS.clamp(0, side - 1)[:, None, :]
        pixels_BHWC = images[rows_B[:, None, None], y_BS1, x_B1S] * inside_BSS[..., None]
        x_BCHW = (pixels_BHWC.permute(0, 3, 1, 2).float() - self.mean_C11) / self.std_C11
        return x_BCHW, self.tags_NT[rows_B]

    def body(self) -> None:
        """One step, launched kernel by kernel."""
        x_BCHW, tags_BT = self.next_batch()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=self.bf16, cache_enabled=self.graph is None):
            logits_BV = self.forward(x_BCHW)
        loss = self.loss(logits_BV.float(), tags_BT)
        grads = torch.autograd.grad(loss, self.params)
        with torch.no_grad():
            self._update(list(torch._foreach_add(grads, 0.0)))
            self.mean_loss.mul_(0.98).add_(loss.detach(), alpha=0.02)
            self.step_no.add_(1)

    def _update(self, grads: list[Tensor]) -> None:
        climb = max(self.warmup * self.steps, 1.0)
        t = self.step_no.float()
        share = torch.where(t < climb, 0.1 + 0.9 * t / climb, (self.steps - t) / max(self.steps - climb, 1.0))
        torch._foreach_add_([g for g in grads if g.ndim > 1], self.decayed, alpha=self.decay)
        torch._foreach_mul_(self.velocities, self.momentum)
        torch._foreach_add_(self.velocities, grads)
        torch._foreach_add_(grads, self.velocities, alpha=self.momentum)  # Nesterov
        torch._foreach_mul_(grads, self.lr * share)
        torch._foreach_add_(self.params, grads, alpha=-1)

    def capture(self, stream: torch.cuda.Stream | None = None) -> "Step":
        """Records the step as a CUDA graph, which every later call replays. Changes nothing without CUDA.

        Three steps warm up; weights, statistics and counters are restored afterwards.
        """
        if not CUDA:
            return self
        self.stream = stream or torch.cuda.Stream()
        params = [p.detach().clone() for p in self.params]
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(3):
                self.body()
        torch.cuda.current_stream().wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            self.body()
        with torch.no_grad():
            for param, value in zip(self.params, params, strict=True):
                param.copy_(value)
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])
            for counter in (*self.velocities, self.step_no, self.mean_loss):
                counter.zero_()
        torch.cuda.synchronize()
        self.graph = graph
        return self

    def __call__(self) -> None:
        if self.graph is None:
            self.body()
        elif self.concurrent:
            with torch.cuda.stream(self.stream):
                self.graph.replay()
        else:
            self.graph.replay()
