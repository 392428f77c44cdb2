"""Part d: images/s of sixteen small experts of one shape on one GPU, by how they share it.

One after the other (the project's loop, captured and not); 4 processes of that loop, with `--mps` also 4 and 16 under
CUDA's multi-process service; captured steps in one process, on one stream and on several; all experts fused into one
network by grouped convolutions (Wang et al. 2021, "Horizontally Fused Training Array"). Run in the repository's root:
python benchmarks/gpu/d_experts.py SECONDS [--mps]

Letters: K experts, N posts of an expert, B posts in its batch, T tags of a post at most, C channels, H W pixels,
V hashtags.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bare_loops import sparse_loss
from captured_step import Step
from common import CUDA, DEVICE, EPOCHS, NEEDS_CUDA, Results, parser, project_rate, rate
from torch import Tensor, nn

from moe_core.models.resnet import ResNet, build
from moe_core.settings import Network, Training
from moe_core.training.loop import Measurement, train
from moe_core.training.posts import ImagesOnDevice, Posts

K, V, POSTS, SIDE = (16, 500, 20_000, 32) if CUDA else (3, 12, 64, 8)
SHAPES = {"tiny": Network(), "wide": Network(widths=(32, 64, 128))}
if not CUDA:
    SHAPES = {"tiny": Network(widths=(4, 8), depths=(1, 1), embedding=8)}
BATCHES = {"tiny": (64, 256), "wide": (64,)} if CUDA else {"tiny": (8,)}
PROCESSES = (4,) if CUDA else (2,)
STREAMS = (1, 4, 16)
SECONDS, LR = 2.0 if CUDA else 0.05, 1e-3
WORKER_SECONDS = 4.0 if CUDA else 0.2


class Fused(nn.Module):
    """K networks of one shape as one: expert k has channels [k C, (k + 1) C) of every layer.

    Batch norm is per channel, so each expert keeps its own statistics. The last layer is the first expert's: the
    experts of a mixture train with the trunk's, frozen.
    """

    def __init__(self, models: list[ResNet], layout: torch.memory_format = torch.contiguous_format) -> None:
        super().__init__()
        first = models[0]
        self.models, self.k, self.layout = models, len(models), layout
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        self.blocks: list[tuple[int, int, int | None]] = []
        self.stem = self._add("conv1", "bn1")
        for stage in first.stages:
            for place in range(len(first.get_submodule(stage)._modules)):
                name = f"{stage}.{place}"
                shortcut = None
                if f"{name}.downsample" in dict(first.named_modules()):
                    shortcut = self._add(f"{name}.downsample.0", f"{name}.downsample.1")
                convs = [self._add(f"{name}.conv{number}", f"{name}.bn{number}") for number in (1, 2)]
                self.blocks.append((convs[0], convs[1], shortcut))
        self.embed = self._add("conv_embed", "bn_embed") if first.embeds else None
        self.fc = nn.Linear(first.fc.in_features, first.fc.out_features)
        self.fc.load_state_dict(first.fc.state_dict())
        del self.models
        self.to(memory_format=layout)  # type: ignore[call-overload]

    def _add(self, conv_name: str, norm_name: str) -> int:
        """Adds a layer of all experts. Returns its number."""
        convs: list[Any] = [model.get_submodule(conv_name) for model in self.models]
        norms: list[Any] = [model.get_submodule(norm_name) for model in self.models]
        one = convs[0]
        conv = nn.Conv2d(
            one.in_channels * self.k,
            one.out_channels * self.k,
            one.kernel_size,
            one.stride,
            one.padding,
            groups=self.k,
            bias=False,
        )
        conv.weight.data.copy_(torch.cat([conv.weight.data for conv in convs]))
        norm = nn.BatchNorm2d(one.out_channels * self.k)
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name).data.copy_(torch.cat([getattr(each, name).data for each in norms]))
        self.convs.append(conv)
        self.norms.append(norm)
        return len(self.convs) - 1

    def _layer(self, number: int, x_BCHW: Tensor) -> Tensor:
        return self.norms[number](self.convs[number](x_BCHW))

    def forward(self, x_BKCHW: Tensor) -> Tensor:
        """(B, K, V) logits of (B, K, 3, H, W) images."""
        batch, k, channels, height, width = x_BKCHW.shape
        x_BCHW = x_BKCHW.reshape(batch, k * channels, height, width).contiguous(memory_format=self.layout)
        y_BCHW = F.relu(self._layer(self.stem, x_BCHW))
        for first, second, shortcut in self.blocks:
            z_BCHW = self._layer(second, F.relu(self._layer(first, y_BCHW)))
            y_BCHW = F.relu(z_BCHW + (y_BCHW if shortcut is None else self._layer(shortcut, y_BCHW)))
        if self.embed is not None:
            y_BCHW = F.relu(self._layer(self.embed, y_BCHW))
        return self.fc(y_BCHW.mean(dim=(2, 3)).view(batch, k, -1))


class FusedStep(Step):
    """A step of all experts, each on a batch of its own posts; the loss is the sum of theirs."""

    def __init__(self, model: nn.Module, images_KNHWC: Tensor, tags_KNT: Tensor, **settings: Any) -> None:
        self.images_KNHWC, self.tags_KNT = images_KNHWC, tags_KNT
        super().__init__(model, images_KNHWC[0], tags_KNT[0], loss=self._sum, train_decoder=False, **settings)

    def _sum(self, logits_BKV: Tensor, tags_BKT: Tensor) -> Tensor:
        return sparse_loss(logits_BKV.flatten(0, 1), tags_BKT.flatten(0, 1)) * len(self.images_KNHWC)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Images (B, K, C, H, W) and tags (B, K, T)."""
        images, tags = [], []
        for k in range(len(self.images_KNHWC)):
            self.images_NHWC, self.tags_NT = self.images_KNHWC[k], self.tags_KNT[k]
            x_BCHW, tags_BT = super().next_batch()
            images.append(x_BCHW)
            tags.append(tags_BT)
        return torch.stack(images, 1), torch.stack(tags, 1)


def noise() -> tuple[Tensor, Tensor]:
    """Images (K, N, H, W, 3) uint8 and one tag each, (K, N, 1)."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    shape = (K, POSTS, SIDE, SIDE, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=DEVICE, generator=generator)
    return images, torch.randint(0, V, (K, POSTS, 1), device=DEVICE, generator=generator)


def loop_of(network: Network, batch: int, images: Tensor, tags_N: Tensor, capture: bool) -> Iterator[Measurement]:
    """The project's loop on one expert's posts."""
    posts = Posts(ImagesOnDevice(images), tags_N.cpu(), torch.arange(POSTS + 1))
    training = Training(epochs=EPOCHS, batch_size=batch, lr=LR, capture=capture)
    return train(build(network, V, 0), posts, training, device=DEVICE, train_decoder=False)


def project(network: Network, batch: int, images: Tensor, tags: Tensor, capture: bool) -> dict[str, float]:
    """The rate of experts one after the other: that of the first."""
    return project_rate(loop_of(network, batch, images[0], tags[0, :, 0], capture), batch, SECONDS)


def worker(shape: str, batch: int, go: Path, capture: bool, seconds: float) -> None:
    """One process: warms up, waits for the file `go`, then prints images/s of the project's loop over some seconds."""
    generator = torch.Generator(DEVICE).manual_seed(os.getpid())
    images = torch.randint(0, 256, (POSTS, SIDE, SIDE, 3), dtype=torch.uint8, device=DEVICE, generator=generator)
    steps = loop_of(SHAPES[shape], batch, images, torch.randint(0, V, (POSTS,)), capture)
    for _ in range(3):
        next(steps)
    Path(f"{go}.{os.getpid()}").touch()
    while not go.exists():
        time.sleep(0.01)
    print(project_rate(steps, batch, seconds)["images_per_s"])


def processes(
    shape: str, batch: int, count: int, capture: bool, environment: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Images/s of `count` processes of the project's loop together, and how many of them answered."""
    with tempfile.TemporaryDirectory() as folder:
        go = Path(folder) / "go"
        command = [
            sys.executable,
            __file__,
            "--worker",
            shape,
            str(batch),
            str(go),
            str(int(capture)),
            str(WORKER_SECONDS),
        ]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) for _ in range(count)]
        end = time.monotonic() + 60
        while time.monotonic() < end and all(process.poll() is None for process in running):
            if len(list(Path(folder).glob("go.*"))) == count:
                break
            time.sleep(0.05)
        go.touch()
        rates = []
        for process in running:
            try:
                rates.append(float(process.communicate(timeout=30)[0].strip().splitlines()[-1]))
            except (subprocess.TimeoutExpired, ValueError, IndexError):
                process.kill()
                process.wait()
        if not rates:
            raise RuntimeError(f"none of {count} processes printed a rate")
        return {"images_per_s": round(sum(rates)), "answered": len(rates)}


def under_mps(results: Results, shape: str, batch: int) -> None:
    """The same under CUDA's multi-process service, which ends with this process. Changes no setting of the card."""
    with tempfile.TemporaryDirectory() as folder:
        folders = {"CUDA_MPS_PIPE_DIRECTORY": f"{folder}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{folder}/log"}
        for path in folders.values():
            Path(path).mkdir()
        variables = os.environ | folders
        quiet = subprocess.DEVNULL
        daemon = subprocess.Popen(
            ["nvidia-cuda-mps-control", "-f"], env=variables, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet
        )
        time.sleep(2)
        try:
            for count in (4, 16):
                what = f"{shape}, batch {batch}: {count} processes under MPS"
                measured = results.attempt(what, partial(processes, shape, batch, count, True, folders), 25)
                if measured:
                    results.record(what, **measured)
        finally:
            subprocess.run(
                ["nvidia-cuda-mps-control"], input="quit\n", text=True, env=variables, timeout=10, capture_output=True
            )
            daemon.kill()
            daemon.wait()


def captured(network: Network, batch: int, images: Tensor, tags: Tensor, streams: int) -> dict[str, float]:
    """K captured steps: in turn on one stream, or each on one of `streams`."""
    steps = [
        Step(build(network, V, k).to(DEVICE), images[k], tags[k], batch=batch, steps=10**6, lr=LR, train_decoder=False)
        for k in range(K)
    ]
    pool = [torch.cuda.Stream() for _ in range(streams)] if CUDA else [None]
    for number, step in enumerate(steps):
        step.capture(pool[number % len(pool)])
        step.concurrent = streams > 1

    def all_steps() -> None:
        for step in steps:
            step()

    return rate(all_steps, K * batch, SECONDS, warm=3, least=3)


def fused(
    network: Network, batch: int, images: Tensor, tags: Tensor, layout: torch.memory_format, compiled: bool = False
) -> dict[str, float]:
    """All experts as one network, in one captured step."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        model = Fused([build(network, V, k) for k in range(K)], layout).to(DEVICE)
        forward = torch.compile(model) if compiled else None
        step = FusedStep(model, images, tags, batch=batch, steps=10**6, lr=LR, forward=forward)
        step.capture()
        return rate(step, K * batch, SECONDS, warm=3, least=3)
    finally:
        torch.backends.cudnn.benchmark = before


def measure(results: Results, shape: str, batch: int, images: Tensor, tags: Tensor) -> None:
    """All measurements of one shape and batch, each beside the project's loop."""
    network, title = SHAPES[shape], f"{shape}, batch {batch}"
    one_by_one: float | None = None

    def run(what: str, work: Callable[[], dict[str, float]]) -> None:
        nonlocal one_by_one
        measured = work()
        one_by_one = one_by_one or measured["images_per_s"]
        times = round(measured["images_per_s"] / one_by_one, 2)
        results.record(f"{title}: {what}", **measured, times_one_after_the_other=times)

    runs: dict[str, Callable[[], dict[str, float]]] = {
        "one after the other": lambda: project(network, batch, images, tags, False),
        "one after the other, captured": lambda: project(network, batch, images, tags, True),
    }
    for streams in STREAMS:
        runs[f"captured, {streams} streams"] = partial(captured, network, batch, images, tags, streams)
    for layout in (torch.contiguous_format, torch.channels_last):
        name = str(layout).removeprefix("torch.")
        runs[f"fused, captured, {name}"] = partial(fused, network, batch, images, tags, layout)
    for count in PROCESSES if (shape, batch) == ("tiny", BATCHES["tiny"][0]) else ():
        runs[f"{count} processes"] = partial(processes, shape, batch, count, False)
        runs[f"{count} processes, captured"] = partial(processes, shape, batch, count, True)
    if (shape, batch) == ("tiny", BATCHES["tiny"][0]):
        runs["fused, captured, compiled"] = lambda: fused(network, batch, images, tags, torch.contiguous_format, True)
    for what, work in runs.items():
        if not CUDA and (what.endswith("compiled") or what in [f"captured, {n} streams" for n in STREAMS[1:]]):
            results.skip(f"{title}: {what}", NEEDS_CUDA)
            continue
        least = 30 if what.endswith("compiled") else 15
        results.attempt(f"{title}: {what}", partial(run, what, work), least)
        if CUDA:
            torch.cuda.empty_cache()


def main() -> None:
    arguments = parser(__doc__, 100)
    arguments.add_argument("--mps", action="store_true", help="also under CUDA's multi-process service")
    arguments.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.worker:
        shape, batch, go, capture, seconds = options.worker
        worker(shape, int(batch), Path(go), capture == "1", float(seconds))
        return
    results, (images, tags) = Results("d", options.seconds), noise()
    for shape in SHAPES:
        for batch in BATCHES[shape]:
            measure(results, shape, batch, images, tags)
    if options.mps and not CUDA:
        results.skip("processes under MPS", NEEDS_CUDA)
    elif options.mps:
        results.attempt("processes under MPS", lambda: under_mps(results, "tiny", 64), 30)


if __name__ == "__main__":
    main()
