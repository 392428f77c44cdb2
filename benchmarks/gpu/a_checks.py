"""Part a: what `pytest -m gpu` leaves open: copies, waits by line, how far two runs differ, forking.

Each check records what it measured; none stops another. Run in the repository's root:
python benchmarks/gpu/a_checks.py SECONDS
"""

import multiprocessing
import os
import subprocess
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from common import CUDA, DEVICE, EPOCHS, NEEDS_CUDA, Results, parser, project_rate, sync

from moe_core.devices import gpu_names
from moe_core.models.resnet import build
from moe_core.settings import Network, Training
from moe_core.training.loop import CHECK_EVERY, train
from moe_core.training.posts import ImagesInMemory, ImagesOnDevice, Posts

NETWORK = Network(widths=(16, 32, 64), depths=(1, 1, 1), embedding=64)
RESNET18 = Network(widths=(64, 128, 256, 512), depths=(2, 2, 2, 2), embedding=0)
POSTS, SIDE, BATCH, TAGS = (4096, 32, 64, 50) if CUDA else (128, 8, 16, 10)


def noise(on_device: bool, count: int = POSTS) -> Posts:
    """Posts of noise, one tag each, in device memory or in the host's."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    tags = torch.from_numpy(rng.integers(0, TAGS, count))
    if on_device:
        return Posts(ImagesOnDevice(torch.from_numpy(images).to(DEVICE)), tags, torch.arange(count + 1))
    return Posts(ImagesInMemory(images), tags, torch.arange(count + 1))


def output_of(*command: str) -> str:
    """What a program prints, or the name of the error."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()[:300]
    except (OSError, subprocess.SubprocessError) as error:
        return type(error).__name__


def bandwidths() -> dict[str, float]:
    """GB/s of copies from host memory, pageable and pinned, and within the device (read and written)."""
    size, speeds = 256 << 20, {}
    target = torch.empty(size, dtype=torch.uint8, device=DEVICE)
    pageable = torch.empty(size, dtype=torch.uint8).fill_(1)
    for name, host in (("pageable", pageable), ("pinned", torch.empty(size, dtype=torch.uint8, pin_memory=True))):
        target.copy_(host)
        sync()
        began = time.perf_counter()
        for _ in range(4):
            target.copy_(host, non_blocking=True)
        sync()
        speeds[name] = round(4 * size / (time.perf_counter() - began) / 1e9, 1)
    a = torch.empty(4 << 30, dtype=torch.uint8, device=DEVICE)
    b = torch.empty_like(a).copy_(a)
    sync()
    began = time.perf_counter()
    for _ in range(5):
        b.copy_(a)
    sync()
    speeds["within_device"] = round(5 * 2 * a.nbytes / (time.perf_counter() - began) / 1e9)
    return speeds


def machine(results: Results) -> None:
    """What the measurements ran on."""
    properties = torch.cuda.get_device_properties(0) if CUDA else None
    results.record(
        "machine",
        gpu=properties.name if properties else None,
        gib=round(properties.total_memory / 2**30, 1) if properties else None,
        torch=torch.__version__,
        numpy=np.__version__,
        copies_gb_per_s=bandwidths() if CUDA else {},
        gpus_in_proc=[path.name for path in Path("/proc/driver/nvidia/gpus").glob("*")],
        gpu_names=gpu_names(),
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        cores=len(os.sched_getaffinity(0)),
        mps=output_of("which", "nvidia-cuda-mps-control"),
        nvidia_smi=output_of("nvidia-smi", "--query-gpu=name,driver_version,compute_mode,memory.used", "--format=csv"),
        glibc=output_of("ldd", "--version").splitlines()[:1],
    )


def waits(results: Results) -> None:
    """Where steps wait for the device: torch's own warnings, counted by line, from the first reading to the last."""
    if not CUDA:
        results.skip("waits per step", NEEDS_CUDA)
        return
    count = 40 * CHECK_EVERY
    for place, changes in (
        ("device memory", {}),
        ("host memory", {"device_mib": 0}),
        ("device memory, captured", {"capture": True}),
    ):
        posts = noise(on_device=place != "host memory")
        training = Training(epochs=EPOCHS, batch_size=128, lr=1e-3).model_copy(update=changes)
        steps = train(build(NETWORK, TAGS, 0), posts, training, device=DEVICE, until=CHECK_EVERY + count)
        next(steps)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            for _ in steps:
                pass
            torch.cuda.set_sync_debug_mode("default")
        lines = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in caught if "called a synch" in str(w.message))
        results.record(
            f"waits per step, images in {place}",
            all=round(sum(lines.values()) / count, 3),
            lines={line: round(times / count, 3) for line, times in lines.most_common(12)},
        )


def resuming(results: Results) -> None:
    """A run stopped halfway and resumed against the whole run, beside how far two whole runs differ: not deterministic,
    as settings are by default."""
    posts, training = noise(True), Training(epochs=4, batch_size=BATCH, lr=0.05)

    def weights(until: int | None = None, checkpoint: Path | None = None) -> dict[str, torch.Tensor]:
        model = build(NETWORK, TAGS, 0)
        for _ in train(model, posts, training, device=DEVICE, until=until, checkpoint=checkpoint):
            pass
        return {name: tensor.cpu() for name, tensor in model.state_dict().items()}

    def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
        return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)

    first, second = weights(), weights()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.safetensors"
        weights(until=2 * POSTS // BATCH, checkpoint=checkpoint)
        resumed = weights(checkpoint=checkpoint)
    results.record(
        "resuming",
        two_whole_runs_differ=largest_difference(first, second),
        resumed_differs=largest_difference(first, resumed),
    )


def speed_after_resuming(results: Results) -> None:
    """Images/s of a ResNet-18 at 32 px, fresh and resumed: momentum must lie in memory as before."""
    if not CUDA:
        results.skip("speed after resuming", NEEDS_CUDA)
        return
    posts, training, rates = noise(True), Training(epochs=1e4, batch_size=128, lr=1e-3), {}
    for name in ("fresh", "resumed"):
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "checkpoint.safetensors"
            model = build(RESNET18, TAGS, 0)
            for _ in train(model, posts, training, device=DEVICE, until=20, checkpoint=checkpoint):
                pass
            if name == "fresh":
                checkpoint.unlink()
            steps = train(build(RESNET18, TAGS, 0), posts, training, device=DEVICE, checkpoint=checkpoint)
            rates[name] = project_rate(steps, training.batch_size)["images_per_s"]
    results.record("speed after resuming", **rates)


def _use_cuda_in_a_thread(pipe: Connection) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = "0"

    def work() -> None:
        try:
            pipe.send(f"{torch.cuda.get_device_name(0)} {float(torch.ones(3, device='cuda').sum())}")
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}"[:200])

    threading.Thread(target=work).start()


def forked(results: Results) -> None:
    """CUDA in a worker as the scheduler starts it: a fork server that has imported torch, first use in a thread."""
    if not CUDA:
        results.skip("CUDA in a forked worker", NEEDS_CUDA)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    ours, theirs = context.Pipe()
    process = context.Process(target=_use_cuda_in_a_thread, args=(theirs,))
    process.start()
    answer = ours.recv() if ours.poll(60) else "no answer in 60 s"
    process.join(10)
    results.record("CUDA in a forked worker", answer=answer)


CHECKS: list[Callable[[Results], None]] = [machine, waits, resuming, speed_after_resuming, forked]


def main() -> None:
    results = Results("a", parser(__doc__, 100).parse_args().seconds)
    for check in CHECKS:
        results.attempt(check.__name__, partial(check, results))


if __name__ == "__main__":
    main()
