"""Routed inference of a mixture larger than memory against trunk + one expert alone, on the same images.

K experts lie on disk; memory holds a few. Both contestants answer every image in batches, through the same decoder.
They take turns, window by window, in one process; the ratio is that of the sums of their times, so what slows the
machine for a while slows both. Printed too: the bytes of experts that were held at the most, and the peak memory.

Example: python benchmarks/routed.py --experts 64 --held 8
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from moe_core.clustering.gate import Gate
from moe_core.clustering.whitening import Whitening
from moe_core.models.cost import multiply_adds
from moe_core.models.resnet import build
from moe_core.serving.bundle import Bundle, Part, write_bundle
from moe_core.serving.routed import WINDOW, routed
from moe_core.settings import Data, Network, Study
from moe_core.training.batches import ImagesInMemory
from moe_core.training.infer import features_of
from moe_core.weights import save_weights

HASHTAGS = 500
NETWORKS = {
    "tiny": (Network(), 32),
    "wide": (Network(widths=(32, 64, 128)), 32),
}


def bundle_of(folder: Path, network: Network, side: int, experts: int) -> None:
    """Networks with drawn weights, and a gate that sends every expert about the same number of drawn images."""
    parts = folder / "parts"
    parts.mkdir()

    def part(name: str, state: dict[str, torch.Tensor], about: dict[str, str]) -> Part:
        save_weights(parts / f"{name}.safetensors", state, about)
        return Part(parts / f"{name}.safetensors", "1")

    study = Study(network=network, data=Data(image_size=side))
    trunk = build(network, HASHTAGS, 0)
    router = part("trunk", trunk.state_dict(), {"asset": "trunk", "version": "1"})
    decoder = {"weight": trunk.fc.weight, "bias": trunk.fc.bias}
    shared = part("decoder", decoder, {"asset": "shared_decoder", "version": "1", "trunk": "1"})
    features_ND = features_of(trunk, ImagesInMemory(drawn(4096, side, 1))).numpy()
    gate_of(features_ND, experts).save(parts / "gate.safetensors", {"asset": "partition", "version": "1", "trunk": "1"})
    networks = {}
    for number in range(experts):
        key = f"e{number:03d}"
        state = build(network, HASHTAGS, number + 1).state_dict()
        networks[key] = part(key, state, {"asset": "expert", "key": key, "version": "1"})
    tags = [f"t{n}" for n in range(HASHTAGS)]
    gate = Part(parts / "gate.safetensors", "1")
    (folder / "bundle").mkdir()
    published = dict.fromkeys(networks, True)
    write_bundle(
        folder / "bundle", study, tags, router, gate, shared, networks, published, "mixture_top1_router", 0.3, 0.1
    )


def gate_of(features_ND: np.ndarray, experts: int) -> Gate:
    """A drawn image's features at random are the centroid of each expert."""
    scale_D = 1 / np.maximum(features_ND.std(0), 1e-6)
    whitening = Whitening(features_ND.mean(0), np.diag(scale_D).astype(np.float32))
    rows = np.random.default_rng(0).permutation(len(features_ND))[:experts]
    return Gate(whitening, whitening.apply(features_ND[rows]), np.arange(experts))


def drawn(count: int, side: int, seed: int) -> np.ndarray:
    """Images of blurred noise, so that their features differ."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(side // 4, 1).repeat(side // 4, 2)


def alone(bundle: Bundle, batches: list[np.ndarray]) -> Iterator[torch.Tensor]:
    """Trunk + the first expert for every image: no gate, no grouping, nothing read meanwhile."""
    network = bundle.filled(bundle.experts.get("e000"))
    for batch in batches:
        images = ImagesInMemory(batch)
        router_BV = bundle.router_logits(features_of(bundle.router, images, bundle.precision))
        yield bundle.mixed(bundle.logits(features_of(network, images, bundle.precision)), router_BV)


def peak_mib() -> float:
    """Largest resident memory of this process so far."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) / 1024


def measure(name: str, said: argparse.Namespace) -> None:
    network, side = NETWORKS[name]
    with tempfile.TemporaryDirectory() as root:
        bundle_of(Path(root), network, side, said.experts)
        bundle = Bundle(Path(root) / "bundle", most_experts=said.held)
        images = drawn(said.images, side, 2)
        batches = [images[first : first + said.batch] for first in range(0, len(images), said.batch)]
        expert_N = bundle.gate.assign(features_of(bundle.router, ImagesInMemory(images[:4096])).numpy())
        share = np.bincount(expert_N, minlength=said.experts) / len(expert_N)
        file = (Path(root) / "bundle" / "experts" / "e000.safetensors").stat().st_size
        mine = Bundle(Path(root) / "bundle", most_experts=2)
        windows = [batches[first : first + said.window] for first in range(0, len(batches), said.window)]
        turns = (
            lambda window: sum(len(answer) for answer in alone(mine, window)),
            lambda window: sum(len(answer.experts) for answer in routed(bundle, window, window=said.window)),
        )
        for turn in turns:
            turn(windows[0])
        before, reads = peak_mib(), bundle.experts.reads
        wall, busy = np.zeros((2, said.repeats)), np.zeros((2, said.repeats))
        for repeat in range(said.repeats):
            for number, window in enumerate(windows):
                for who in (0, 1) if (repeat + number) % 2 else (1, 0):
                    began, began_busy = time.perf_counter(), time.process_time()
                    turns[who](window)
                    wall[who, repeat] += time.perf_counter() - began
                    busy[who, repeat] += time.process_time() - began_busy
        reads = (bundle.experts.reads - reads) / (said.repeats * len(windows))
        cost = multiply_adds(bundle.router, side) / 1e6
        print(
            f"{name}: {side} px, {cost:,.1f} M multiply-adds a network, {said.experts} experts of {file / 2**20:.1f} "
            f"MiB, memory for {said.held}; {said.images} images in batches of {said.batch}, {said.window} looked at "
            f"together; an expert gets {share.min():.1%} to {share.max():.1%} of the images"
        )
        one, many = said.images * said.repeats / wall.sum(1)
        print(f"  trunk + one expert {one:10,.0f} images/s")
        print(f"  routed             {many:10,.0f} images/s, {reads:,.0f} experts read for a window")
        print(f"  ratio {many / one:.3f} (target 0.90), of each pass: ", end="")
        print(", ".join(f"{ratio:.3f}" for ratio in wall[0] / wall[1]), end="; ")
        print(f"of processor time {busy[0].sum() / busy[1].sum():.3f}")
        print(
            f"  held at most {bundle.experts.most_held_bytes / 2**20:.1f} of {said.experts * file / 2**20:.1f} MiB of "
            f"experts; peak of the process {peak_mib():,.0f} MiB, before the passes {before:,.0f} MiB"
        )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    options.add_argument("--experts", type=int, default=64)
    options.add_argument("--held", type=int, default=8)
    options.add_argument("--batch", type=int, default=256)
    options.add_argument("--window", type=int, default=WINDOW)
    options.add_argument("--images", type=int, default=8192)
    options.add_argument("--repeats", type=int, default=3)
    said = options.parse_args()
    for name in said.networks:
        measure(name, said)


if __name__ == "__main__":
    main()
