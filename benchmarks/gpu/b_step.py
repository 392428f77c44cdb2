"""Part b: images/s of the trunk's training step: the project's loop, the one of before, and bare loops.

Noise in device memory, in one process, so ratios are within one run on one card. Run in the repository's root:
python benchmarks/gpu/b_step.py SECONDS [NETWORK ...]
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from bare_loops import bare_step, dense_loss, ten_steps_of_before
from captured_step import Step
from common import CUDA, DEVICE, EPOCHS, NEEDS_CUDA, OUT, Results, parser, project_rate, rate, sync

from moe_core.models.cost import multiply_adds
from moe_core.models.resnet import build, build_on_meta
from moe_core.settings import Network, Training
from moe_core.training.loop import CHECK_EVERY, train
from moe_core.training.losses import hashtag_loss
from moe_core.training.posts import ImagesInMemory, ImagesOnDevice, Posts

CROP, LR = 4, 1e-3
SECONDS, FEW = (2.0, 5) if CUDA else (0.05, 1)  # per measurement; calls that warm up and calls of a stretch
FIRST = ("resnet50", "tiny32")  # the networks of docs/gpu.md: profiled, compiled, and before the others
# what is measured of the others
RUNS = {
    "resnet50_tags100k": ("project", "before", "bare, captured"),
    "resnet18": ("project", "project, captured", "bare, captured"),
    "tiny32_b1024": ("project", "project, captured", "bare, captured"),
    "tiny64": ("project", "project, captured", "bare, captured"),
}


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
    "resnet50_tags100k": Case(RESNET50, 224, 256, 100_000, 8_192),
    "resnet18": Case(RESNET18, 224, 256, 1000, 8_192),
    "tiny32_b1024": Case(Network(), 32, 1024, 500, 50_000),
    "tiny64": Case(Network(), 64, 128, 500, 50_000),
}
if not CUDA:
    CASES = {"tiny32": Case(Network(), 8, 8, 20, 64), "resnet50": Case(SMALL50, 32, 4, 20, 32)}


def project(posts: Posts, case: Case, **changes: object) -> dict[str, float]:
    """The project's loop, with its own settings or some changed."""
    training = Training(epochs=EPOCHS, batch_size=case.batch, lr=LR, crop=CROP, checkpoint_seconds=1e9)
    model = build(case.network, case.hashtags, 0)
    return project_rate(train(model, posts, training.model_copy(update=changes), device=DEVICE), case.batch, SECONDS)


def before(posts: Posts, case: Case) -> dict[str, float]:
    """The project's loop before it was rebuilt for GPUs."""
    training = Training(epochs=EPOCHS, batch_size=case.batch, lr=LR, crop=CROP)
    ten_steps = ten_steps_of_before(build(case.network, case.hashtags, 0), posts, training, case.hashtags)
    return rate(ten_steps, CHECK_EVERY * case.batch, SECONDS, warm=1, least=1, steps_per_call=CHECK_EVERY)


@contextmanager
def cudnn_benchmark() -> Iterator[None]:
    """Lets cuDNN choose its algorithms by trial, as the project's loop does."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def bare(posts: Posts, case: Case) -> dict[str, float]:
    """A bare loop, launched kernel by kernel."""
    with cudnn_benchmark():
        model = build(case.network, case.hashtags, 0)
        step = bare_step(model, posts, case.side, case.batch, LR, CROP)
        return rate(step, case.batch, SECONDS, warm=FEW, least=FEW)


def captured(posts: Posts, case: Case, compiled: bool = False, graph: bool = True) -> dict[str, float]:
    """A bare loop of which everything is on the device, replayed as one graph, compiled before, or both."""
    assert isinstance(posts.images, ImagesOnDevice)
    with cudnn_benchmark():
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


def losses(results: Results) -> None:
    """The loss of many hashtags and its gradient: the project's against that with dense targets."""
    posts, hashtags = (256, 100_000) if CUDA else (8, 50)
    rng = np.random.default_rng(0)
    tags_BM = torch.from_numpy(np.array([rng.permutation(hashtags)[:4] for _ in range(posts)])).to(DEVICE)
    logits_BV = torch.randn(posts, hashtags, device=DEVICE, dtype=torch.bfloat16 if CUDA else torch.float32)
    logits_BV.requires_grad_()

    def dense() -> torch.Tensor:
        targets_BV = torch.zeros(posts, hashtags, device=DEVICE).scatter_(1, tags_BM, 1.0)
        return dense_loss(logits_BV.float(), targets_BV)

    fields: dict[str, float] = {}
    for name, loss in (("project", lambda: hashtag_loss(logits_BV, tags_BM, "softmax")), ("dense", dense)):
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()

        def step(loss: Callable[[], torch.Tensor] = loss) -> None:
            logits_BV.grad = None
            loss().backward()

        fields[f"{name}_ms"] = rate(step, posts, SECONDS / 4, warm=FEW, least=FEW)["ms_per_step"]
        fields[f"{name}_gib"] = round((torch.cuda.max_memory_allocated() - held) / 2**30, 2) if CUDA else 0.0
        fields[name] = round(float(loss().detach()), 5)
    results.record(f"loss of {posts} posts, {hashtags:,} hashtags", **fields)


def profile(results: Results, posts: Posts, case: Case, name: str) -> None:
    """Where the time of twenty steps of the project's loop goes, by kernel: OUT/b-kernels-NAME.txt."""
    training = Training(epochs=EPOCHS, batch_size=case.batch, lr=LR, crop=CROP)
    steps = train(build(case.network, case.hashtags, 0), posts, training, device=DEVICE, until=CHECK_EVERY + 20)
    next(steps)  # the first reading
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiled:
        for _ in steps:
            pass
        sync()
    events = profiled.key_averages()
    table = events.table(sort_by="self_device_time_total", row_limit=40, max_name_column_width=90)
    (OUT / f"b-kernels-{name}.txt").write_text(table)
    cuda = torch.autograd.DeviceType.CUDA
    busy = sum(event.self_device_time_total for event in events if event.device_type == cuda)
    launches = sum(event.count for event in events if event.key.startswith(("cudaLaunchKernel", "cuLaunchKernel")))
    results.record(
        f"{name}: profile of the project's loop",
        gpu_busy_us_per_step=round(busy / 20),
        launches_per_step=round(launches / 20),
    )


def runs_of(name: str, posts: Posts, case: Case) -> dict[str, Callable[[], dict[str, float]]]:
    """The measurements of one network, in order."""

    def from_host_memory() -> dict[str, float]:
        assert isinstance(posts.images, ImagesOnDevice)
        images = ImagesInMemory(posts.images.images_NHWC.cpu().numpy())
        return project(Posts(images, posts.tags_T, posts.starts_N1), case, device_mib=0)

    runs: dict[str, Callable[[], dict[str, float]]] = {
        "project": lambda: project(posts, case),
        "project, captured": lambda: project(posts, case, capture=True),
        "before": lambda: before(posts, case),
        "bare, captured": lambda: captured(posts, case),
        "bare": lambda: bare(posts, case),
        "project, images in host memory": from_host_memory,
        "bare, compiled": lambda: captured(posts, case, True, False),
        "bare, compiled and captured": lambda: captured(posts, case, True, True),
    }
    return {what: run for what, run in runs.items() if what in RUNS.get(name, runs)}


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
        if ("compiled" in what) != compiled:
            continue
        if compiled and not CUDA:
            results.skip(f"{name}: {what}", NEEDS_CUDA)
            continue
        results.attempt(f"{name}: {what}", partial(run, what, work), 25 if compiled else 6)
        if CUDA:
            torch.cuda.empty_cache()
    torch._dynamo.reset()
    if name in FIRST and not compiled:
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
    for name in (name for name in names if name in FIRST):
        results.attempt(name, partial(measure, results, name, False, project_rates))
    results.attempt("loss", lambda: losses(results))
    for name in reversed([name for name in names if name in FIRST]):  # what is quick to compile first
        results.attempt(name, partial(measure, results, name, True, project_rates))
    for name in (name for name in names if name not in FIRST):
        results.attempt(name, partial(measure, results, name, False, project_rates))


if __name__ == "__main__":
    main()
