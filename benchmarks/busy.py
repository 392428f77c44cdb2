"""Training on an idle machine and beside two programs that compute all the time: how many threads, and how they wait.

Four ways, each in a process of its own, which train the same network by turns, a stretch each, first while nothing else
runs and then beside two hogs, which are stopped in between:

    default   as torch does by itself: all the cores, and threads that spin for milliseconds while they wait
    one       one thread
    passive   all the cores, and threads that sleep at once (OMP_WAIT_POLICY=PASSIVE)
    ours      threads by the work in a batch, that spin for microseconds (moe_core.threads)

For each network and state of the machine it prints images/s by the median of the rounds, in brackets those of a second
of processor time, and ours as a ratio of the best of the others (idle) or of the default (beside hogs). `--spins` adds
ways: all the cores and other GOMP_SPINCOUNT. Idle means that nothing else runs on the machine.

Example: python benchmarks/busy.py --rounds 8 --seconds 3
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moe_core.threads import VARIABLES, cores

HOGS = 2
BEST_IDLE, TIMES_BESIDE = 0.97, 5.0  # targets: ours by the best of the others, and by the default
NETWORKS = {"tiny": (8, 16, 32), "wide": (32, 64, 128)}  # widths; images of 32 px, 128 a batch
WAYS: dict[str, dict[str, str]] = {"default": {}, "one": {}, "passive": {"OMP_WAIT_POLICY": "PASSIVE"}, "ours": {}}
TRAIN = """
import sys, time
way, widths, posts_N, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if way != "ours":
    import torch  # first: moe_core sets how threads wait, for what loads torch after it
from moe_core import threads
import numpy as np
import torch
from moe_core.models.resnet import build
from moe_core.settings import Network, Training
from moe_core.stages.training.fit import training_threads
from moe_core.training.posts import ImagesInMemory, Posts
from moe_core.training.loop import CHECK_EVERY, train

draw = np.random.default_rng(0)
images, tags = draw.integers(0, 256, (posts_N, 32, 32, 3), dtype=np.uint8), draw.integers(0, 500, posts_N)
posts = Posts(ImagesInMemory(images), torch.from_numpy(tags), torch.arange(posts_N + 1))
training = Training(epochs=1e5, batch_size=size, lr=1e-3, crop=4)
model = build(Network(widths=tuple(map(int, widths.split(",")))), 500, seed=0)
if way == "ours":
    training_threads(model, 32, training, posts_N)
else:
    torch.set_num_threads(1 if way == "one" else threads.cores())
steps = train(model, posts, training)
next(steps)  # warms up
print(torch.get_num_threads(), flush=True)
for line in sys.stdin:
    images, began, began_busy = 0, time.perf_counter(), time.process_time()
    while not images or time.perf_counter() - began < float(line):
        next(steps)
        images += CHECK_EVERY * size
    print(images / (time.perf_counter() - began), images / (time.process_time() - began_busy), flush=True)
"""


class Trainer:
    """A process that trains when it is asked."""

    def __init__(self, way: str, widths: tuple[int, ...], posts: int, batch: int, environment: dict[str, str]) -> None:
        clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-c", TRAIN, way, ",".join(map(str, widths)), str(posts), str(batch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean | environment | {"PYTHONPATH": path.rstrip(os.pathsep)},
        )
        self.threads = int(self._line())
        self.rates: dict[str, list[tuple[float, float]]] = {"idle": [], "hogs": []}

    def turn(self, state: str, seconds: float) -> None:
        """Trains so long, and keeps (images a second, images a second of processor time)."""
        assert self.process.stdin
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        images, busy = map(float, self._line().split())
        self.rates[state].append((images, busy))

    def rate(self, state: str, which: int = 0) -> float:
        return statistics.median(rates[which] for rates in self.rates[state])

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a training ended: what it args last is above")
        return line


@contextmanager
def hogs() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Programs that compute all the time, stopped until they are let go."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(HOGS)]
    try:
        let(running, signal.SIGSTOP)
        yield running
    finally:
        for hog in running:
            hog.kill()
            hog.wait()


def let(running: list[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    """SIGCONT: compute; SIGSTOP: do not."""
    for hog in running:
        hog.send_signal(number)


def said_of(name: str, trainers: dict[str, Trainer]) -> list[str]:
    """What is printed of a network."""
    lines = []
    for state in ("idle", "hogs"):
        rates = {way: trainer.rate(state) for way, trainer in trainers.items()}
        cells = [
            f"{way} {rates[way]:,.0f} ({trainer.rate(state, 1):,.0f} a processor second, {trainer.threads} threads)"
            for way, trainer in trainers.items()
        ]
        lines.append(f"{name}, {'idle' if state == 'idle' else f'beside {HOGS} hogs'}, images/s: {'; '.join(cells)}")
        best = rates["ours"] / max(rates[way] for way in ("default", "one", "passive"))
        times = rates["ours"] / rates["default"]
        target = f"target {BEST_IDLE}" if state == "idle" else "no target"
        lines.append(f"    ours by the best of the other three {best:.3f} ({target})")
        target = f"target {TIMES_BESIDE:g}" if (state, name) == ("hogs", "tiny") else "no target"
        lines.append(f"    ours by the default {times:.2f} ({target})")
    return lines


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    options.add_argument("--rounds", type=int, default=8)
    options.add_argument("--seconds", type=float, default=3.0, help="of a turn, at least: ten steps are the least")
    options.add_argument("--batch", type=int, default=128)
    options.add_argument("--posts", type=int, default=4_000)
    options.add_argument("--spins", type=int, nargs="*", default=[], help="more ways: all the cores, GOMP_SPINCOUNT")
    args = options.parse_args()
    ways = WAYS | {f"spins {count}": {"GOMP_SPINCOUNT": str(count)} for count in args.spins}
    print(f"{cores()} cores, load average {os.getloadavg()[0]:.2f} before, {args.rounds} rounds", flush=True)
    with hogs() as running:
        for name in args.networks:
            trainers: dict[str, Trainer] = {}
            try:
                for way, environment in ways.items():
                    trainers[way] = Trainer(way, NETWORKS[name], args.posts, args.batch, environment)
                for number in range(args.rounds):
                    for state, signal_ in (("idle", signal.SIGSTOP), ("hogs", signal.SIGCONT)):
                        let(running, signal_)
                        for way in list(trainers)[:: 1 if number % 2 else -1]:
                            trainers[way].turn(state, args.seconds)
                    let(running, signal.SIGSTOP)
                print("\n".join(said_of(name, trainers)), flush=True)
            finally:
                for trainer in trainers.values():
                    trainer.end()


if __name__ == "__main__":
    main()
