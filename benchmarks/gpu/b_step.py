"""Part b: images/s of the trunk's training step: the project's loop, a bare loop, and the fastest settings known.

Noise in device memory, in one process, so ratios are within one run on one card. Run in the repository's root:
python benchmarks/gpu/b_step.py SECONDS [NETWORK ...]
"""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from captured_step import Step
from common import CUDA, DEVICE, EPOCHS, NEEDS_CUDA, OUT, Results, parser, rate, strided_shortcuts, sync
from torch import nn

from moe_core.models.cost import multiply_adds
from moe_core.models.resnet import build, build_on_meta
from moe_core.settings import Network, Training
from moe_core.training.batches import MEAN, STD
from moe_core.training.loop import CHECK_EVERY, train
from moe_core.training.posts import ImagesInMemory, ImagesOnDevice, Posts

CROP, LR = 4, 1e-3
SECONDS, FEW = (2.0, 5) if CUDA else (0.05, 1)  # per measurement; calls that warm up and calls of a stretch
PROFILED = ("resnet50", "tiny32")


@dataclass(frozen=True)
class Case:
    """A network and the posts that it is trained on."""

    network: Network
    side: int
    batch: int
    hashtags: int
    posts: int


RESNET50 = Network(block="bottleneck", stem="imagenet", widths=(64, 128, 256, 512), depths=(3, 4, 6, 3), embedding=0)
RESNET18 = Network(stem="imagenet", widths=(64, 128, 256, 512), depths=(2, 2, 2, 2), embedding=0)
SMALL50 = RESNET50.model_copy(update={"widths": (4, 8, 8, 8), "depths": (1, 1, 1, 1)})
CASES = {  # the most wanted first
    "resnet50": Case(RESNET50, 224, 256, 1000, 8_192),
    "tiny32": Case(Network(), 32, 128, 500, 50_000),
    "resnet18": Case(RESNET18, 224, 256, 1000, 8_192),
    "tiny32_b1024": Case(Network(), 32, 1024, 500, 50_000),
    "resnet50_tags100k": Case(RESNET50, 224, 256, 100_000, 8_192),
    "tiny64": Case(Network(), 64, 128, 500, 50_000),
}
if not CUDA:
    CASES = {"tiny32": Case(Network(), 8, 8, 20, 64), "resnet50": Case(SMALL50, 32, 4, 20, 32)}


def project(posts: Posts, case: Case, device_mib: int = 4096) -> dict[str, float]:
    """The project's loop between two yields."""
    training = Training(
        epochs=EPOCHS, batch_size=case.batch, lr=LR, crop=CROP, device_mib=device_mib, checkpoint_seconds=1e9
    )
    steps = train(build(case.network, case.hashtags, 0), posts, training, device=DEVICE)
    images = CHECK_EVERY * case.batch
    measured = rate(lambda: next(steps), images, SECONDS, warm=1, least=1, steps_per_call=CHECK_EVERY)
    steps.close()  # type: ignore[attr-defined]
    return measured


@contextmanager
def cudnn_benchmark(enabled: bool = True) -> Iterator[None]:
    """Lets cuDNN choose its algorithms by trial."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, enabled
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def bare(posts: Posts, case: Case, network: nn.Module | None = None, fused: bool = False) -> dict[str, float]:
    """What any training does: gather, flips and crops, forward, loss, backward, SGD; the loss is never read."""
    model = (network or build(case.network, case.hashtags, 0)).to(DEVICE).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=LR, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=fused or None
    )
    assert isinstance(posts.images, ImagesOnDevice)
    images, tags, side = posts.images.images_NHWC, posts.tags_T.to(DEVICE), case.side
    pixel_S = torch.arange(side, device=DEVICE)
    mean_C11, std_C11 = (torch.tensor(value, device=DEVICE).view(3, 1, 1) for value in (MEAN, STD))

    def step() -> None:
        rows_B = torch.randint(0, len(images), (case.batch,), device=DEVICE)
        y_B1, x_B1 = torch.randint(-CROP, CROP + 1, (2, case.batch, 1), device=DEVICE)
        flip_B1 = torch.rand(case.batch, 1, device=DEVICE) < 0.5
        x_BS = (x_B1 + torch.where(flip_B1, side - 1 - pixel_S, pixel_S)).clamp(0, side - 1)
        y_BS = (y_B1 + pixel_S).clamp(0, side - 1)
        pixels_BHWC = images[rows_B[:, None, None], y_BS[:, :, None], x_BS[:, None, :]]
        x_BCHW = (pixels_BHWC.permute(0, 3, 1, 2).float() - mean_C11) / std_C11
        targets_BV = F.one_hot(tags[rows_B], case.hashtags).float()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=CUDA):
            logits_BV = model(x_BCHW)
        loss = F.cross_entropy(logits_BV.float(), targets_BV)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return rate(step, case.batch, SECONDS, warm=FEW, least=FEW)


def captured(posts: Posts, case: Case, compiled: bool = False, graph: bool = True) -> dict[str, float]:
    """Everything on the device and a sparse loss, with strided shortcuts and cuDNN's choice by trial."""
    assert isinstance(posts.images, ImagesOnDevice)
    with cudnn_benchmark(), strided_shortcuts():
        model = build(case.network, case.hashtags, 0).to(DEVICE)
        step = Step(
            model,
            posts.images.images_NHWC,
            posts.tags_T.to(DEVICE)[:, None],
            batch=case.batch,
            steps=10**6,
            lr=LR,
            flip=True,
            crop=CROP,
            forward=torch.compile(model) if compiled else model,
        )
        if graph:
            step.capture()
        return rate(step, case.batch, SECONDS, warm=FEW, least=FEW)


def bare_strided(posts: Posts, case: Case, fastest: bool = False) -> dict[str, float]:
    """The bare loop with strided shortcuts; `fastest` adds cuDNN's choice by trial and fused SGD."""
    with strided_shortcuts(), cudnn_benchmark() if fastest else nullcontext():
        return bare(posts, case, fused=fastest)


def torchvision_resnet50(hashtags: int) -> nn.Module:
    """torchvision's own network, for the bare loop."""
    from torchvision.models import resnet50

    return resnet50(num_classes=hashtags).to(memory_format=torch.channels_last)


def profile(results: Results, posts: Posts, case: Case, name: str) -> None:
    """Where the time of one stretch of the project's loop goes, by kernel: OUT/b-kernels-NAME.txt."""
    training = Training(epochs=EPOCHS, batch_size=case.batch, lr=LR, crop=CROP)
    steps = train(build(case.network, case.hashtags, 0), posts, training, device=DEVICE)
    next(steps)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiled:
        next(steps)
        sync()
    steps.close()  # type: ignore[attr-defined]
    events = profiled.key_averages()
    table = events.table(sort_by="self_device_time_total", row_limit=40, max_name_column_width=90)
    (OUT / f"b-kernels-{name}.txt").write_text(table)
    cuda = torch.autograd.DeviceType.CUDA
    busy = sum(event.self_device_time_total for event in events if event.device_type == cuda)
    launches = sum(event.count for event in events if event.key.startswith(("cudaLaunchKernel", "cuLaunchKernel")))
    results.record(
        f"{name}: profile of the project's loop",
        gpu_busy_us_per_step=round(busy / CHECK_EVERY),
        launches_per_step=round(launches / CHECK_EVERY),
    )


def runs_of(name: str, posts: Posts, case: Case) -> dict[str, Callable[[], dict[str, float]]]:
    """The measurements of one network, in order."""

    def from_host_memory() -> dict[str, float]:
        assert isinstance(posts.images, ImagesOnDevice)
        images = ImagesInMemory(posts.images.images_NHWC.cpu().numpy())
        return project(Posts(images, posts.tags_T, posts.starts_N1), case, device_mib=0)

    runs: dict[str, Callable[[], dict[str, float]]] = {
        "project": lambda: project(posts, case),
        "bare": lambda: bare(posts, case),
        "project, images in host memory": from_host_memory,
        "bare, strided shortcuts": lambda: bare_strided(posts, case),
        "bare, strided shortcuts, cudnn.benchmark, fused SGD": lambda: bare_strided(posts, case, True),
        "captured": lambda: captured(posts, case),
        "compiled": lambda: captured(posts, case, True, False),
        "compiled and captured": lambda: captured(posts, case, True, True),
    }
    if name == "resnet50":
        runs["torchvision, bare"] = lambda: bare(posts, case, torchvision_resnet50(case.hashtags))
    if name == "resnet50_tags100k":
        runs = {what: runs[what] for what in ("project", "project, images in host memory", "captured")}
    if name == "resnet18":
        runs = {what: runs[what] for what in ("project", "bare, strided shortcuts", "captured")}
    return runs


def measure(results: Results, name: str, compiled: bool, project_rates: dict[str, float]) -> None:
    """All measurements of one network that compile, or all that do not."""
    case = CASES[name]
    shape = (case.posts, case.side, case.side, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=DEVICE)
    tags = torch.from_numpy(np.random.default_rng(0).integers(0, case.hashtags, case.posts))
    posts = Posts(ImagesOnDevice(images), tags, torch.arange(case.posts + 1))
    # forward and backward cost three times the forward pass, a multiply-add is two operations
    flop = 6 * multiply_adds(build_on_meta(case.network, case.hashtags), case.side)

    def run(what: str, work: Callable[[], dict[str, float]]) -> None:
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        measured = work()
        speed = measured["images_per_s"]
        results.record(
            f"{name}: {what}",
            **measured,
            times_project=round(speed / project_rates.setdefault(name, speed), 2),
            tflop_per_s=round(speed * flop / 1e12, 4),
            peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 1) if CUDA else None,
        )

    for what, work in runs_of(name, posts, case).items():
        if what.startswith("compiled") != compiled:
            continue
        peer = what.startswith("torchvision")
        if (compiled or peer) and not CUDA:
            results.skip(f"{name}: {what}", NEEDS_CUDA)
            continue
        if peer and not importlib.util.find_spec("torchvision"):
            results.skip(f"{name}: {what}", "torchvision is not installed")
            continue
        results.attempt(f"{name}: {what}", partial(run, what, work), 25 if compiled else 6)
        if CUDA:
            torch.cuda.empty_cache()
        torch._dynamo.reset()
    if name in PROFILED and not compiled:
        if CUDA:
            results.attempt(f"{name}: profile", lambda: profile(results, posts, case, name))
        else:
            results.skip(f"{name}: profile of the project's loop", NEEDS_CUDA)


def main() -> None:
    arguments = parser(__doc__, 150)
    arguments.add_argument("networks", nargs="*", help=f"of {', '.join(CASES)}; all where none is named")
    options = arguments.parse_args()
    if unknown := set(options.networks) - set(CASES):
        arguments.error(f"no network {', '.join(sorted(unknown))}: choose among {', '.join(CASES)}")
    results, names = Results("b", options.seconds), options.networks or list(CASES)
    project_rates: dict[str, float] = {}
    for compiled in (False, True):  # what takes long to compile comes last, and the quickest of it first
        for name in sorted(names, key=lambda name: name != "tiny32") if compiled else names:
            results.attempt(name, partial(measure, results, name, compiled, project_rates))


if __name__ == "__main__":
    main()
