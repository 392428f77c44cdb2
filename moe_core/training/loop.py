"""The training loop. One function; it yields what it measures, and the caller prints, logs or plots it.

Letters: B posts in the batch, C channels, H W pixels, V hashtags.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from moe_core.errors import DeviceFailed, NotFinite, TooFewPosts
from moe_core.models.resnet import ResNet
from moe_core.training.batches import batches, normalize
from moe_core.training.captured import Captured
from moe_core.training.checkpoint import Checkpoints, load_checkpoint
from moe_core.training.losses import hashtag_loss
from moe_core.training.posts import Posts, bytes_for_posts
from moe_core.training.transfer import named

if TYPE_CHECKING:
    from moe_core.settings import Training

CHECK_EVERY = 10  # steps of a measurement
READERS = 2  # threads that read ahead; each decodes with as many as the process has cores
# Each reading of the losses waits for a GPU to end all that it was given: there they are read by time, many at once.
READ_BY_TIME = ("cuda",)
READ_SECONDS = 1.0
MOST_READ = 100  # measurements in one reading


@dataclass(frozen=True)
class Measurement:
    """Measurements of some steps."""

    step: int  # steps done
    steps: int  # steps in all
    loss: float  # mean over these steps
    lr: float
    images_per_second: float
    images_seen: int


def steps_of(posts: int, training: Training, ranks: int = 1) -> int:
    """Steps of a whole run over `posts` posts by `ranks` processes together."""
    batches_an_epoch = posts // (min(training.batch_size, posts // ranks) * ranks)
    return max(1, round(training.epochs * batches_an_epoch / training.accumulate))


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


def train(
    model: ResNet,
    posts: Posts,
    training: Training,
    *,
    train_decoder: bool = True,
    until: int | None = None,
    checkpoint: Path | None = None,
    device: str = "cpu",
    rank: int = 0,
    ranks: int = 1,
) -> Iterator[Measurement]:
    """Trains `model` in place, yielding every CHECK_EVERY steps; resumes from `checkpoint` where that file exists.

    `train_decoder=False` keeps the last layer fixed. `until` stops after so many of the steps and saves that state to
    `checkpoint`. Each of `ranks` processes in torch's default process group trains on its own part of every step and
    ends with the same weights; rank 0 writes the checkpoint, all read it. Raises TooFewPosts with fewer posts than
    ranks, and NotFinite at the first loss or weight that is not finite, naming the steps between which it arose.
    """
    if len(posts) < ranks:
        raise TooFewPosts("no posts to train on: wanted at least one" + (f" a rank, {ranks}" if ranks > 1 else ""))
    device = named(device)
    model.to(device).train()
    model.fc.requires_grad_(train_decoder)
    optimizer = _optimizer(model, training)
    steps, accumulate = steps_of(len(posts), training, ranks), training.accumulate
    images_a_step = min(training.batch_size, len(posts) // ranks) * ranks * accumulate
    stop = steps if until is None else min(until, steps)
    start = load_checkpoint(checkpoint, model, optimizer, steps) if checkpoint else 0
    posts = posts.on_device(bytes_for_posts(training.device_mib, device), device)
    network = _together(model, device) if ranks > 1 else model
    bfloat16 = uses_bfloat16(training.precision, device)
    readings = Readings(device, start, stop, ranks)

    captured = device.startswith("cuda") and training.capture and ranks == accumulate == 1
    if captured:
        for group in optimizer.param_groups:
            group["lr"] = torch.zeros((), device=device)  # which the graph reads

    def take(images_BCHW: Tensor, tags_BM: Tensor, part: int = 0) -> Tensor:
        """The loss of a part of a step; the last part ends the step."""
        if part == 0:
            optimizer.zero_grad(set_to_none=True)
        apart = part < accumulate - 1  # gradients of other ranks join in with the last part
        with network.no_sync() if apart and isinstance(network, DistributedDataParallel) else nullcontext():
            with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=bfloat16, cache_enabled=not captured):
                logits_BV = network(normalize(images_BCHW))
            loss = hashtag_loss(logits_BV, tags_BM, training.loss) / accumulate
            loss.backward()
        if not apart:
            optimizer.step()
        return loss.detach()

    captured_step = Captured(take) if captured else None

    with (
        _algorithms(device, training.deterministic),
        _memory_explained(device, images_a_step // ranks // accumulate),
        Checkpoints(checkpoint if rank == 0 else None, training.checkpoint_seconds) as checkpoints,
    ):
        parts = (start * accumulate, stop * accumulate)
        for batch in batches(posts, training, *parts, threads=READERS, rank=rank, ranks=ranks, device=device):
            step, part = divmod(batch.step, accumulate)
            if part == 0:
                lr = learning_rate(training.schedule, training.lr, training.warmup, step, steps)
                _set_rate(optimizer, lr)
            if captured_step:
                loss = captured_step(batch.images_BCHW, batch.tags_BM)
            else:
                loss = take(batch.images_BCHW, batch.tags_BM, part)
            readings.add(step, part, loss)
            if part < accumulate - 1:
                continue

            done = step + 1
            if done == readings.next:
                first, losses, seconds = readings.read()
                _check_finite(losses, model, first, steps, lr)
                speed = (done - first) * images_a_step / seconds
                for begin, end in _measured(first, done):
                    loss_mean = sum(losses[begin - first : end - first]) / (end - begin)
                    its_lr = learning_rate(training.schedule, training.lr, training.warmup, end - 1, steps)
                    yield Measurement(end, steps, loss_mean, its_lr, speed, end * images_a_step)
                readings.restart()
                if done == until or (done < stop and checkpoints.is_due):
                    checkpoints.save(model, optimizer, done, steps)
                    readings.restart()
    model.fc.requires_grad_(True)


@contextmanager
def _algorithms(device: str, deterministic: bool) -> Iterator[None]:
    """On a GPU: the fastest ones, by a trial of each shape; or those that give the same bits each time."""
    if not device.startswith("cuda"):
        yield
        return
    cudnn = torch.backends.cudnn
    filling: Any = torch.utils.deterministic  # its property is unknown to mypy
    before = cudnn.benchmark, torch.are_deterministic_algorithms_enabled(), filling.fill_uninitialized_memory
    if deterministic:
        let_products_repeat()
    cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic)
    filling.fill_uninitialized_memory = False  # which finds reads of memory that nothing was written to: none here
    try:
        yield
    finally:
        cudnn.benchmark = before[0]
        torch.use_deterministic_algorithms(before[1])
        filling.fill_uninitialized_memory = before[2]


def let_products_repeat() -> None:
    """What `deterministic` wants of cuBLAS, which looks at it once in a process: before the first product on a GPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def _memory_explained(device: str, batch: int) -> Iterator[None]:
    """Raises DeviceFailed, which says what was free before, where the memory of the device does not suffice."""
    free = torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else 0
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceFailed(
            f"{device} has no memory for a batch of {batch} images: {free / 2**30:.1f} GiB were free before. Lower "
            "batch_size (and raise accumulate, which keeps the step), or device_mib"
        ) from error


class Readings:
    """Losses of the steps since the last reading, which lie on the device until the next one."""

    def __init__(self, device: str, start: int, stop: int, ranks: int) -> None:
        self.first, self.stop, self.ranks = start, stop, ranks
        self.by_time = device.startswith(READ_BY_TIME)
        # and, at the end, the seconds of rank 0, so that all ranks read after the same step
        self.losses_S1 = torch.zeros(CHECK_EVERY * MOST_READ + 1, device=device)
        self.next = self._after(1)
        self.restart()

    def restart(self) -> None:
        """Time counts from now on: what the caller did with a measurement is not training."""
        self.began = time.monotonic()

    def add(self, step: int, part: int, loss: Tensor) -> None:
        place = self.losses_S1[step - self.first]
        place.copy_(loss) if part == 0 else place.add_(loss)

    def read(self) -> tuple[int, list[float], float]:
        """(first step, loss of each step from there to `next`, seconds that they took), of all ranks together."""
        first, last = self.first, self.next
        if self.ranks > 1:
            if self.losses_S1.is_cuda:
                torch.cuda.synchronize(self.losses_S1.device)  # seconds until the steps are done, not begun
            self.losses_S1[-1] = time.monotonic() - self.began if torch.distributed.get_rank() == 0 else 0.0
            torch.distributed.all_reduce(self.losses_S1)
        *losses, its = torch.cat([self.losses_S1[: last - first] / self.ranks, self.losses_S1[-1:]]).tolist()
        seconds = its if self.ranks > 1 else time.monotonic() - self.began  # the reading waited for the device
        self.first = last
        measurements = READ_SECONDS / seconds * (last - first) / CHECK_EVERY if self.by_time else 1
        self.next = self._after(int(min(max(measurements, 1), MOST_READ)))
        return first, losses, seconds

    def _after(self, measurements: int) -> int:
        """The step at the end of so many measurements."""
        return min((self.first // CHECK_EVERY + measurements) * CHECK_EVERY, self.stop)


def _measured(first: int, last: int) -> Iterator[tuple[int, int]]:
    """(first step, step after the last) of each measurement in [first, last)."""
    while first < last:
        end = min((first // CHECK_EVERY + 1) * CHECK_EVERY, last)
        yield first, end
        first = end


def _check_finite(losses: list[float], model: nn.Module, first: int, steps: int, lr: float) -> None:
    """Raises NotFinite for a loss of the steps from `first` on, or a weight after them, that is not finite."""
    help_ = f"of {steps} at learning rate {lr:.3g}: lower the learning rate, or train in float32"
    for number, loss in enumerate(losses, first):
        if not math.isfinite(loss):
            raise NotFinite(f"loss is {loss} between steps {number} and {number + 1} {help_}")
    state = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    if not torch.stack([tensor.isfinite().all() for tensor in state.values()]).all():  # one wait for the device
        name = next(name for name, tensor in state.items() if not tensor.isfinite().all())
        last = first + len(losses)
        raise NotFinite(f"{name} is no longer finite between steps {last - 1} and {last} {help_}")


def _together(model: ResNet, device: str) -> DistributedDataParallel:
    """The network with gradients averaged over the ranks of the default process group."""
    return DistributedDataParallel(model, device_ids=[device] if device.startswith("cuda") else None)


def uses_bfloat16(precision: str, device: str) -> bool:
    """auto: where the device computes in bfloat16, which on a CPU means AVX-512 BF16 or AMX."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported())


def _set_rate(optimizer: torch.optim.SGD, lr: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def _optimizer(model: nn.Module, training: Training) -> torch.optim.SGD:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": training.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},  # batch norm and biases
        ],
        lr=training.lr,
        momentum=training.momentum,
        nesterov=training.momentum > 0,
        fused=True,  # one pass over a weight, its gradient and its momentum
    )
