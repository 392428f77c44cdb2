"""Bundles whose experts and decoder all differ."""

from types import SimpleNamespace

import numpy as np

from moe_core.clustering.gate import Gate
from moe_core.clustering.whitening import Whitening
from moe_core.models.resnet import build
from moe_core.serving.bundle import BundlePart, write_bundle
from moe_core.settings import Data, Expert, Network, Study, Training
from moe_core.training.batches import as_tensor, normalize
from moe_core.training.infer import features_of
from moe_core.training.posts import ImagesInMemory
from moe_core.weights import save_weights

SIDE, TAGS, EXPERTS = 8, 5, 4
CENTROIDS = [16, 17, 18, 19]  # of 64 drawn images: these attract some of any others
NETWORK = Network(widths=(4, 8), depths=(1, 1), embedding=6)


def images(count, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
    return coarse.repeat(4, 1).repeat(4, 2)


def random_parts(folder, branch_at, count=EXPERTS, hashtags=TAGS, network=NETWORK):
    """Files of a bundle whose experts and decoder all differ but for the first stages; e003 is not published."""

    def part(name, state, **about):
        save_weights(folder / f"{name}.safetensors", state, {"version": "1"} | about)
        return BundlePart(folder / f"{name}.safetensors", "1")

    trunk = used(build(network, hashtags, 0))
    features_ND = features_of(trunk, ImagesInMemory(images(64))).numpy()
    whitening = Whitening(features_ND.mean(0), np.diag(1 / features_ND.std(0).clip(1e-3)).astype(np.float32))
    gate = Gate(whitening, whitening.apply(features_ND[CENTROIDS[:count]]), np.arange(count))
    gate.save(folder / "gate.safetensors", {"version": "1", "asset": "partition", "trunk": "1"})
    decoder = build(network, hashtags, 99).fc
    experts = {}
    for n in range(count):
        expert, key = used(build(network, hashtags, n + 1)), f"e{n:03d}"
        for mine, router in zip(expert.shared_layers(branch_at), trunk.shared_layers(branch_at), strict=True):
            mine.load_state_dict(router.state_dict())
        experts[key] = part(key, expert.state_dict(), asset="expert", key=key)
    return SimpleNamespace(
        router=part("router", trunk.state_dict(), asset="trunk"),
        gate=BundlePart(folder / "gate.safetensors", "1"),
        decoder=part("decoder", {"weight": decoder.weight, "bias": decoder.bias}, asset="shared_decoder", trunk="1"),
        experts=experts,
    )


def used(model):
    """A network whose batch norms have seen images."""
    model.train()(normalize(as_tensor(images(32, seed=3))))
    return model


def bundle_at(
    folder,
    parts,
    answer="mixture_top1",
    branch_at=0,
    precision="auto",
    tags=("a", "b", "c", "d", "é"),
    network=NETWORK,
    **measured,
):
    folder.mkdir()
    expert, training = Expert(branch_at=branch_at), Training(precision=precision)
    study = Study(network=network, data=Data(image_size=SIDE), expert=expert, expert_training=training)
    published = {key: key != "e003" for key in parts.experts}
    files = (parts.router, parts.gate, parts.decoder, parts.experts)
    write_bundle(folder, study, list(tags), *files, published, answer, router_weight=0.25, temperature=0.5, **measured)
    return folder


def room_for(folder, experts):
    """Bytes of memory for so many experts of a bundle."""
    return experts * max(path.stat().st_size for path in (folder / "experts").iterdir())


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
