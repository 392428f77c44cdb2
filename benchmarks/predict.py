"""`hardmoe predict --out FILE.parquet` against bare `routed` on the same files, and a kill in the middle.

Both decode the same JPEG files by `moe_core.serving.files` in the same threads, and answer them by `routed` with the
same bundle in one process: bare `routed` drops the probabilities; predict lists the folder, picks each image's first
hashtags, writes parts and joins them. They take turns; the ratio is that of the sums of their times. Then the command
itself runs in a process of its own, is killed with SIGKILL when its first parts are there, and runs again: every
picture must be in the file once.

Example: python benchmarks/predict.py --pictures 10000
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import torch
from PIL import Image
from routed import NETWORKS, bundle_of, drawn

from moe_core import threads
from moe_core.models.cost import multiply_adds
from moe_core.serving.bundle import Bundle
from moe_core.serving.files import BATCH, decoded, entries_of
from moe_core.serving.routed import routed
from moe_core.tagging.answers import Asked, Wanted
from moe_core.tagging.inputs import open_inputs, records_of, settle
from moe_core.tagging.output import Output

TARGET = 0.90


def pictures(folder: Path, count: int, side: int) -> None:
    """JPEG files of drawn images, each four times the side of the network's."""
    folder.mkdir()
    for first in range(0, count, 1000):
        for number, pixels in enumerate(drawn(min(1000, count - first), side, first + 1), first):
            Image.fromarray(pixels).resize((4 * side, 4 * side)).save(folder / f"{number:06d}.jpg", quality=85)


def bare(bundle: Bundle, folder: Path) -> int:
    """Decodes and answers; the number of answers."""
    files = [Path(name) for name, skipped in entries_of(folder) if not skipped]
    stream = (images for _, images in decoded(files, bundle.image_size, threads.share()))
    return sum(len(answer.experts) for answer in routed(bundle, stream))


def written(bundle: Bundle, folder: Path, out: Path) -> int:
    """As the command does it, with its defaults; the number of rows."""
    asked = Asked(bundle, Wanted(), threads=threads.share())
    with Output(out, force=True) as output:
        units = open_inputs([str(folder)], output.folder, None, {})
        before = output.begin({"input": [unit.made_of for unit in units]})
        settle(units)
        for rows in asked.rows(records_of(units, (before.unit, before.row))):
            output.add(rows, asked)
        output.finish(asked)
    return output.done.records


def killed_and_again(bundle: Path, folder: Path, out: Path, count: int) -> None:
    """The command, a SIGKILL when some parts are there, and the command again."""
    command = [sys.executable, "-m", "pipelines.cli.main", "predict", "--bundle", str(bundle), str(folder)]
    command += ["--out", str(out)]
    began = time.perf_counter()
    process = subprocess.Popen(command)
    parts = out.with_name(f".{out.name}.parts")
    while process.poll() is None and not list(parts.glob("[0-9]*.parquet")):
        time.sleep(0.01)
    if process.poll() is not None:
        raise SystemExit("it ended before it could be killed: take more pictures")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    killed = time.perf_counter() - began
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    total = time.perf_counter() - began
    images = pl.read_parquet(out)["image"]
    once = len(images) == images.n_unique() == count
    print(f"  killed after {killed:.1f} s; {again.stderr.strip()}; {again.stdout.strip()}; both {total:.1f} s")
    print(f"  every picture once: {once}")
    if not once:
        raise SystemExit(1)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pictures", type=int, default=10_000)
    options.add_argument("--network", choices=list(NETWORKS), default="tiny")
    options.add_argument("--experts", type=int, default=64)
    options.add_argument("--repeats", type=int, default=3)
    args = options.parse_args()
    network, side = NETWORKS[args.network]
    with tempfile.TemporaryDirectory() as root:
        bundle_of(Path(root), network, side, args.experts, branch_at=0)
        folder, out = Path(root) / "pictures", Path(root) / "tags.parquet"
        pictures(folder, args.pictures, side)
        bundle = Bundle(Path(root) / "bundle")
        threads.use(multiply_adds(bundle.router, side) * BATCH)
        turns: dict[str, Callable[[], int]] = {
            "bare routed": lambda: bare(bundle, folder),
            "predict --out": lambda: written(bundle, folder, out),
        }
        turns["bare routed"]()  # experts are in memory, files in the page cache
        wall, busy = ({name: [0.0] * args.repeats for name in turns} for _ in range(2))
        for repeat in range(args.repeats):
            for name in list(turns) if repeat % 2 else list(turns)[::-1]:
                began, began_busy = time.perf_counter(), time.process_time()
                if turns[name]() != args.pictures:
                    raise SystemExit(f"{name} left pictures out")
                wall[name][repeat] = time.perf_counter() - began
                busy[name][repeat] = time.process_time() - began_busy
        print(
            f"{args.pictures:,} JPEG files of {4 * side} pixels a side, network {args.network} of {side} pixels, "
            f"{args.experts} experts, {torch.get_num_threads()} threads compute and {threads.share()} decode"
        )
        for name in turns:
            speed, busy_speed = (args.pictures * args.repeats / sum(times[name]) for times in (wall, busy))
            print(f"  {name:14} {speed:8,.0f} pictures/s, {busy_speed:8,.0f} a second of processor time")
        ratios = [a / b for a, b in zip(wall["bare routed"], wall["predict --out"], strict=True)]
        in_all, of_processor = (sum(times["bare routed"]) / sum(times["predict --out"]) for times in (wall, busy))
        print(
            f"  predict against bare routed: {in_all:.3f}, of each pass: {', '.join(f'{r:.3f}' for r in ratios)}; "
            f"of processor time {of_processor:.3f} (target {TARGET:.2f})"
        )
        out.unlink()
        killed_and_again(Path(root) / "bundle", folder, out, args.pictures)


if __name__ == "__main__":
    main()
