"""Routed inference of a mixture larger than memory against trunk + one expert alone, on the same images.

K experts lie on disk; memory holds a few. The contestants answer every image in batches, through the same decoder.
They take turns, window by window, in one process; the ratio is that of the sums of their times, so what slows the
machine for a while slows all. One expert is asked as a whole network: the reference, whatever the mixture's experts
share with the trunk (--branch-at). With shared stages a third contestant is one expert that shares them too, so that
what sharing saves and what routing costs are told apart. Printed too: the bytes of experts that were held at the most,
and the peak memory.

Example: python benchmarks/routed.py --experts 64 --held 8 --branch-at 0 1
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
from moe_core.models.resnet import build, shared_layer_names
from moe_core.serving.bundle import Bundle, BundlePart, write_bundle
from moe_core.serving.routed import WINDOW, WINDOW_BYTES, routed
from moe_core.settings import Data, Expert, Network, Study
from moe_core.training.batches import as_tensor, normalize
from moe_core.training.infer import features_of, inference_context
from moe_core.training.posts import ImagesInMemory
from moe_core.weights import save_weights

HASHTAGS = 500
NETWORKS = {
    "tiny": (Network(), 32),
    "wide": (Network(widths=(32, 64, 128)), 32),
}


def bundle_of(folder: Path, network: Network, side: int, experts: int, branch_at: int) -> None:
    """Networks with drawn weights, which share the trunk's first stages, and a gate that sends every expert about the
    same number of drawn images."""
    parts = folder / "parts"
    parts.mkdir()

    def part(name: str, state: dict[str, torch.Tensor], about: dict[str, str]) -> BundlePart:
        save_weights(parts / f"{name}.safetensors", state, about)
        return BundlePart(parts / f"{name}.safetensors", "1")

    study = Study(network=network, data=Data(image_size=side), expert=Expert(branch_at=branch_at))
    trunk = build(network, HASHTAGS, 0)
    router = part("trunk", trunk.state_dict(), {"asset": "trunk", "version": "1"})
    decoder = {"weight": trunk.fc.weight, "bias": trunk.fc.bias}
    shared = part("decoder", decoder, {"asset": "shared_decoder", "version": "1", "trunk": "1"})
    features_ND = features_of(trunk, ImagesInMemory(drawn(4096, side, 1))).numpy()
    gate_of(features_ND, experts).save(parts / "gate.safetensors", {"asset": "partition", "version": "1", "trunk": "1"})
    networks, shared_layers = {}, tuple(f"{name}." for name in shared_layer_names(branch_at))
    early = {name: tensor for name, tensor in trunk.state_dict().items() if name.startswith(shared_layers)}
    for number in range(experts):
        key = f"e{number:03d}"
        state = build(network, HASHTAGS, number + 1).state_dict() | early
        networks[key] = part(key, state, {"asset": "expert", "key": key, "version": "1"})
    tags = [f"t{n}" for n in range(HASHTAGS)]
    gate = BundlePart(parts / "gate.safetensors", "1")
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


def sharing(bundle: Bundle, batches: list[np.ndarray]) -> Iterator[torch.Tensor]:
    """Trunk + the first expert, which goes on from the trunk's first stages."""
    at = bundle.branch_at
    with bundle.experts.using("e000") as state, bundle.filled(state) as network:
        for batch in batches:
            with inference_context(bundle.precision, "cpu"):
                early_BCHW = bundle.router.forward_stem(normalize(as_tensor(batch)), at)
                trunk_BD = bundle.router.forward_rest(early_BCHW, at).float()
                expert_BD = network.forward_rest(early_BCHW, at).float()
            yield bundle.mixed(bundle.logits(expert_BD), bundle.router_logits(trunk_BD))


def alone(bundle: Bundle, batches: list[np.ndarray]) -> Iterator[torch.Tensor]:
    """Trunk + the first expert for every image: no gate, no grouping, nothing read meanwhile."""
    with bundle.experts.using("e000") as state, bundle.filled(state) as network:
        for batch in batches:
            images = ImagesInMemory(batch)
            router_BV = bundle.router_logits(features_of(bundle.router, images, bundle.precision))
            yield bundle.mixed(bundle.logits(features_of(network, images, bundle.precision)), router_BV)


def peak_mib() -> float:
    """Largest resident memory of this process so far."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) / 1024


def measure(name: str, branch_at: int, args: argparse.Namespace) -> None:
    network, side = NETWORKS[name]
    with tempfile.TemporaryDirectory() as root:
        bundle_of(Path(root), network, side, args.experts, branch_at)
        file = (Path(root) / "bundle" / "experts" / "e000.safetensors").stat().st_size
        bundle = Bundle(Path(root) / "bundle", args.held * file)
        images = drawn(args.images, side, 2)
        batches = [images[first : first + args.batch] for first in range(0, len(images), args.batch)]
        expert_N = bundle.gate.assign(features_of(bundle.router, ImagesInMemory(images[:4096])).numpy())
        share = np.bincount(expert_N, minlength=args.experts) / len(expert_N)
        mine = Bundle(Path(root) / "bundle", 2 * file)
        windows = [batches[first : first + args.window] for first in range(0, len(batches), args.window)]

        def many(window: list[np.ndarray]) -> None:
            for _ in routed(bundle, window, window=args.window, window_bytes=args.window_mib << 20):
                pass

        turns = {"trunk + one expert": lambda window: [len(p_BV) for p_BV in alone(mine, window)], "routed": many}
        if branch_at:
            turns["sharing stages"] = lambda window: [len(p_BV) for p_BV in sharing(mine, window)]
        for turn in turns.values():
            turn(windows[0])
        before, reads = peak_mib(), bundle.experts.reads
        wall = {who: np.zeros(args.repeats) for who in turns}
        busy = {who: np.zeros(args.repeats) for who in turns}
        for repeat in range(args.repeats):
            for number, window in enumerate(windows):
                for who in list(turns) if (repeat + number) % 2 else list(turns)[::-1]:
                    began, began_busy = time.perf_counter(), time.process_time()
                    turns[who](window)
                    wall[who][repeat] += time.perf_counter() - began
                    busy[who][repeat] += time.process_time() - began_busy
        reads = (bundle.experts.reads - reads) / args.repeats
        whole, rest = (multiply_adds(bundle.router, side, after) / 1e6 for after in (0, branch_at))
        print(
            f"{name}, branch_at {branch_at}: {side} px, {whole:,.1f} M multiply-adds a network, {rest:,.1f} M after "
            f"the shared stages, {args.experts} experts of {file / 2**20:.2f} MiB, memory for {args.held}; "
            f"{args.images} images in batches of {args.batch}, at most {args.window} and {args.window_mib} MiB looked "
            f"at together; an expert gets {share.min():.1%} to {share.max():.1%} of the images; "
            f"{torch.get_num_threads()} threads"
        )
        for who in turns:
            speed, busy_speed = (args.images * args.repeats / times[who].sum() for times in (wall, busy))
            print(f"  {who:18} {speed:10,.0f} images/s, {busy_speed:10,.0f} a second of processor time")
        print(f"  {reads:,.0f} experts read in a pass of {len(windows)} windows")
        for who in turns:
            if who != "routed":
                print(f"  routed against {who}: {wall[who].sum() / wall['routed'].sum():.3f}, of each pass: ", end="")
                print(", ".join(f"{ratio:.3f}" for ratio in wall[who] / wall["routed"]), end="; ")
                print(f"of processor time {busy[who].sum() / busy['routed'].sum():.3f} (target 0.90)")
        print(
            f"  held at most {bundle.experts.most_held_bytes / 2**20:.1f} of {args.experts * file / 2**20:.1f} MiB of "
            f"experts; peak of the process {peak_mib():,.0f} MiB, before the passes {before:,.0f} MiB"
        )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    options.add_argument("--experts", type=int, default=64)
    options.add_argument("--held", type=int, default=8)
    options.add_argument("--branch-at", type=int, nargs="+", default=[0, 1], help="stages the experts share")
    options.add_argument("--batch", type=int, default=256)
    options.add_argument("--window", type=int, default=WINDOW)
    options.add_argument("--window-mib", type=int, default=WINDOW_BYTES >> 20)
    options.add_argument("--images", type=int, default=8192)
    options.add_argument("--repeats", type=int, default=3)
    args = options.parse_args()
    for name in args.networks:
        for branch_at in args.branch_at:
            measure(name, branch_at, args)


if __name__ == "__main__":
    main()
