"""Bundles: what they refuse, and routed answers to streams of batches."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.bundles import EXPERTS, NETWORK, SIDE, TAGS, bundle_at, flip, images, random_parts, room_for
from moe_core.data.images import REASONS
from moe_core.errors import NotFinite
from moe_core.models.resnet import ResNet, build
from moe_core.serving.bundle import Bundle, BundlePart, write_bundle
from moe_core.serving.cache import ExpertCache
from moe_core.serving.files import decoded, entries_of
from moe_core.serving.routed import predict, routed
from moe_core.settings import Data, Network, Study
from moe_core.training.infer import features_of
from moe_core.training.posts import ImagesInMemory
from moe_core.weights import load_weights, save_weights


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return random_parts(tmp_path_factory.mktemp("parts"), 0)


@pytest.fixture(scope="module")
def branches(tmp_path_factory):
    return random_parts(tmp_path_factory.mktemp("branches"), 1)


@pytest.fixture
def folder(tmp_path, parts):
    return bundle_at(tmp_path / "bundle", parts)


def one_by_one(bundle, pictures, topk=1, temperature=0.1):
    """The answer by its definition, an image at a time."""
    rows = []
    for n in range(len(pictures)):
        image = ImagesInMemory(pictures[n : n + 1])
        trunk_1D = features_of(bundle.router, image)
        router_V = bundle.router_logits(trunk_1D)[0]
        weight_K = bundle.gate.weights(trunk_1D.numpy(), topk, temperature)[0]
        total_V = torch.zeros(TAGS)
        for key, weight in zip(bundle.published, weight_K, strict=True):
            logits_V = bundle.logits(bundle.expert_features(key, image))[0] if bundle.published[key] else router_V
            if topk == 1 and bundle.answer == "mixture_top1_router":
                logits_V = 0.75 * logits_V + 0.25 * router_V
            total_V += float(weight) * logits_V.softmax(0)
        rows.append(total_V)
    return torch.stack(rows)


def in_batches(pictures, *sizes):
    return np.split(pictures, np.cumsum(sizes)[:-1])


@pytest.mark.parametrize("answer", ["mixture_top1", "mixture_top1_router"])
@pytest.mark.parametrize("topk", [1, 3, 9])
@pytest.mark.parametrize("shared", ["parts", "branches"])
def test_batches_are_answered_in_order_as_each_image_alone(tmp_path, request, answer, topk, shared):
    files = request.getfixturevalue(shared)
    folder = bundle_at(tmp_path / "bundle", files, answer, int(shared == "branches"))
    bundle = Bundle(folder, room_for(folder, 2))
    pictures = images(40, seed=1)
    batches = in_batches(pictures, 7, 0, 20, 12, 1)
    got = list(routed(bundle, batches, window=3, topk=topk, temperature=0.5))
    assert [len(a.experts) for a in got] == [7, 0, 20, 12, 1]
    wanted_NV = one_by_one(bundle, pictures, min(topk, EXPERTS), 0.5)
    assert torch.cat([a.probabilities_BV for a in got]).numpy() == pytest.approx(wanted_NV.numpy(), abs=1e-5)
    nearest = bundle.gate.assign(features_of(bundle.router, ImagesInMemory(pictures)).numpy())
    assert [key for a in got for key in a.experts] == [f"e{n:03d}" for n in nearest]
    assert len(set(nearest)) == EXPERTS  # the pictures do reach all of them, the unpublished one too


def test_more_experts_than_there_are_give_the_mean_of_all_without_the_router_s_share(tmp_path):
    bundle = Bundle(bundle_at(tmp_path / "bundle", random_parts(tmp_path, 0, count=1), "mixture_top1_router"))
    one, many = (next(routed(bundle, [images(5)], topk=topk)).probabilities_BV for topk in (1, 4))
    alone = bundle.probabilities(bundle.logits(bundle.expert_features("e000", ImagesInMemory(images(5)))))
    assert torch.allclose(many, alone, atol=1e-5)
    assert not torch.allclose(one, alone, atol=1e-3)


def test_the_temperature_is_the_bundles_where_none_is_given(folder):
    bundle = Bundle(folder)
    (own,), (same,), (other,) = (
        list(routed(bundle, [images(9)], topk=3, temperature=at)) for at in (None, bundle.temperature, 0.05)
    )
    assert torch.equal(own.probabilities_BV, same.probabilities_BV)
    assert not torch.equal(own.probabilities_BV, other.probabilities_BV)


@pytest.mark.parametrize("at", [1e-50, 1e-310, 1e30])
def test_a_temperature_however_small_or_large_gives_weights(folder, at):
    bundle = Bundle(folder)
    (answer,) = routed(bundle, [images(9)], topk=3, temperature=at)
    assert torch.allclose(answer.probabilities_BV.sum(1), torch.ones(9), atol=1e-5)
    features_ND = features_of(bundle.router, ImagesInMemory(images(9))).numpy()
    largest_N = bundle.gate.weights(features_ND, 3, at).max(axis=1)
    assert largest_N == pytest.approx(1.0 if at < 1 else 1 / 3)


@pytest.mark.parametrize("at", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_temperature_is_refused(folder, at):
    with pytest.raises(ValueError, match="wanted 1 or more of each, a finite temperature above 0"):
        list(routed(Bundle(folder), [images(2)], topk=3, temperature=at))


def test_an_expert_s_features_are_those_of_its_network(tmp_path, branches):
    bundle = Bundle(bundle_at(tmp_path / "bundle", branches, branch_at=1, precision="float32"))
    network = build(NETWORK, TAGS, 0)
    network.load_state_dict(load_weights(branches.experts["e001"].path)[0])
    wanted_ND = features_of(network, ImagesInMemory(images(9)), "float32")
    assert bundle.expert_features("e001", ImagesInMemory(images(9))).numpy() == pytest.approx(
        wanted_ND.numpy(), abs=1e-5
    )


def test_an_expert_s_file_holds_what_is_its_own(tmp_path, branches):
    folder = bundle_at(tmp_path / "bundle", branches, branch_at=1, precision="float32")
    state, about = load_weights(folder / "experts" / "e001.safetensors")
    assert {name.split(".")[0] for name in state} == {"layer2", "conv_embed", "bn_embed"}
    assert about["key"] == "e001"


def test_an_expert_that_does_not_share_the_router_s_stages_is_refused(tmp_path, parts):
    with pytest.raises(ValueError, match=r"e000.safetensors: \S+ is not the router's"):
        bundle_at(tmp_path / "bundle", parts, branch_at=1)


def test_an_expert_of_another_network_is_refused(tmp_path, parts):
    other = build(Network(widths=(4, 16), depths=(1, 1), embedding=6), TAGS, 0).state_dict()
    save_weights(tmp_path / "e001.safetensors", other, {"version": "1", "asset": "expert", "key": "e001"})
    experts = parts.experts | {"e001": BundlePart(tmp_path / "e001.safetensors", "1")}
    folder = bundle_at(tmp_path / "bundle", SimpleNamespace(**vars(parts) | {"experts": experts}))
    with pytest.raises(ValueError, match=r"e001.safetensors: conv_embed.weight is not as the manifest.s network"):
        Bundle(folder)


def test_predict_is_one_batch_of_it(folder):
    bundle = Bundle(folder)
    probabilities_NV, experts = predict(bundle, images(9))
    (answer,) = routed(Bundle(folder), [images(9)])
    assert torch.equal(probabilities_NV, answer.probabilities_BV)
    assert experts == answer.experts


def test_an_expert_is_read_once_for_all_the_batches_of_a_window(folder):
    batches = [images(5, seed) for seed in range(8)]
    reads = {}
    for window in (1, 4, 8):
        bundle = Bundle(folder, room_for(folder, 2))
        list(routed(bundle, batches, window=window))
        reads[window] = bundle.experts.reads
    assert reads[8] == 3  # of four experts one is not published, so not read
    assert reads[4] == 4  # two stay held, of which one at least is wanted again
    assert reads[1] > 4


def test_what_is_looked_at_together_is_bounded(folder):
    taken = []

    def stream():
        for seed in range(100):
            taken.append(seed)
            yield images(2, seed)

    answers = routed(Bundle(folder), stream(), window=4)
    next(answers)
    assert len(taken) == 4


@pytest.mark.parametrize(("shared", "kept"), [("parts", 8 * 8 * 3), ("branches", 8 * 8 * 4 * 4)])
def test_what_is_kept_of_the_images_bounds_it_too(tmp_path, request, shared, kept):
    """Of each image its pixels, or four channels of float32 after the shared stage; and six features of float32."""
    files = request.getfixturevalue(shared)
    folder = bundle_at(tmp_path / "bundle", files, branch_at=int(shared == "branches"), precision="float32")
    taken = []
    batches = (taken.append(seed) or images(2, seed) for seed in range(100))
    next(routed(Bundle(folder), batches, window=32, window_bytes=2 * 3 * (kept + 6 * 4)))
    assert len(taken) == 3


@pytest.mark.parametrize(("shared", "side", "at_once"), [("parts", 8, 3), ("branches", 8, 3), ("parts", 8, 0)])
def test_images_that_pass_a_network_together_are_bounded_by_their_activations(
    tmp_path, request, monkeypatch, shared, side, at_once
):
    """Four maps of four channels of float32 each; one image passes however large it is."""
    files = request.getfixturevalue(shared)
    folder = bundle_at(tmp_path / "bundle", files, branch_at=int(shared == "branches"), precision="float32")
    (wanted,) = routed(Bundle(folder), [images(20, seed=1)], topk=2)
    passed = []
    stem, rest = ResNet.forward_stem, ResNet.forward_rest
    monkeypatch.setattr(ResNet, "forward_stem", lambda self, x, at: passed.append(len(x)) or stem(self, x, at))
    monkeypatch.setattr(ResNet, "forward_rest", lambda self, x, at: passed.append(len(x)) or rest(self, x, at))
    monkeypatch.setattr("moe_core.serving.routed.ACTIVATION_BYTES", at_once * side * side * 4 * 4 * 4)
    (found,) = routed(Bundle(folder), [images(20, seed=1)], topk=2)
    assert max(passed) == max(1, at_once)
    assert torch.allclose(found.probabilities_BV, wanted.probabilities_BV, atol=1e-5)


def test_images_that_pass_a_network_together_are_bounded_by_its_widest_stage(tmp_path, monkeypatch):
    """The second stage has a quarter of the pixels, and ten times the channels."""
    network = NETWORK.model_copy(update={"widths": (4, 40)})
    parts = random_parts(tmp_path, 0, network=network)
    folder = bundle_at(tmp_path / "bundle", parts, precision="float32", network=network)
    passed, stem = [], ResNet.forward_stem
    monkeypatch.setattr(ResNet, "forward_stem", lambda self, x, at: passed.append(len(x)) or stem(self, x, at))
    monkeypatch.setattr("moe_core.serving.routed.ACTIVATION_BYTES", 3 * 4 * 4 * 40 * 4 * 4)
    list(routed(Bundle(folder), [images(20)]))
    assert max(passed) == 3


def test_images_of_another_size_are_refused(folder):
    with pytest.raises(ValueError, match=r"images of uint8 and shape \(1, 9, 9, 3\): wanted uint8 and \(B, 8, 8, 3\)"):
        list(routed(Bundle(folder), [np.zeros((1, 9, 9, 3), np.uint8)]))
    with pytest.raises(ValueError, match="wanted 1 or more"):
        list(routed(Bundle(folder), [], topk=0))


def held(most_bytes):
    sizes = dict.fromkeys("abcdef", 10)
    return ExpertCache(sizes, lambda key: {"weight": torch.full((1,), ord(key))}, most_bytes)


def test_the_least_recently_used_go_first():
    experts = held(30)
    for key in "abcad":
        with experts.using(key):
            pass
    assert list(experts.held) == ["c", "a", "d"]
    assert experts.reads == 4


def test_bytes_are_bounded_and_the_one_being_read_counts():
    sizes = {"a": 30, "b": 20, "c": 30, "d": 10}
    seen, reading = [], []

    def read(key):
        reading.append(sum(sizes[k] for k in experts.held))
        return {}

    experts = ExpertCache(sizes, read, most_bytes=60)
    experts.each("abcd", lambda key, state: seen.append(key))
    assert seen == ["a", "b", "c", "d"]
    assert all(bytes_held <= 60 for bytes_held in reading)  # the one that is being read has its place already
    assert experts.most_held_bytes <= 60


def test_those_held_come_first_and_are_not_read_again():
    experts = held(30)
    with experts.using("d"):
        pass
    seen = []
    experts.each("abd", lambda key, state: seen.append((key, int(state["weight"]))))
    assert seen == [("d", ord("d")), ("a", ord("a")), ("b", ord("b"))]
    assert experts.reads == 3


def test_memory_for_less_than_two_experts_is_refused():
    with pytest.raises(ValueError, match="memory for 19 bytes of experts: wanted room for two"):
        held(19)


def files_in(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_flipped_byte_in_any_file_is_refused_when_the_bundle_is_opened(folder):
    names = files_in(folder)
    assert len(names) == 5 + EXPERTS  # manifest, hashtags, router, gate, decoder
    Bundle(folder)
    for name in names:
        whole = (folder / name).read_bytes()
        for place in (0, 8, len(whole) // 2, len(whole) - 1):
            flip(folder / name, place)
            with pytest.raises(ValueError, match=name):
                Bundle(folder)
            (folder / name).write_bytes(whole)


def test_every_single_byte_of_the_manifest_counts(folder):
    path = folder / "manifest.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in (0x01, 0x20):  # the second turns e into E, which JSON reads as the same number
            data = bytearray(whole)
            data[place] ^= bit
            path.write_bytes(data)
            with pytest.raises(ValueError, match=r"manifest\.json"):
                Bundle(folder)


def test_an_expert_that_was_damaged_after_the_bundle_was_opened_is_refused_when_it_is_read(folder):
    bundle = Bundle(folder)
    flip(folder / "experts" / "e001.safetensors", -1)
    bundle.logits(bundle.expert_features("e000", ImagesInMemory(images(1))))
    with pytest.raises(ValueError, match=r"e001.safetensors is not the file the manifest names"):
        bundle.logits(bundle.expert_features("e001", ImagesInMemory(images(1))))
    with pytest.raises(ValueError, match=r"e001.safetensors is not the file the manifest names"):
        list(routed(bundle, [images(40)]))


def test_a_missing_file_and_another_program_s_manifest_are_refused(folder):
    (folder / "experts" / "e002.safetensors").rename(folder / "gone")
    with pytest.raises(ValueError, match=r"e002.safetensors is missing from the bundle"):
        Bundle(folder)
    for text in ("[]", "null", '{"format": 1, "checksum": 2}'):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"manifest\.json"):
            Bundle(folder)


def test_features_that_are_not_finite_are_named():
    model = build(NETWORK, TAGS, 0)
    with torch.no_grad():
        model.conv1.weight.fill_(float("inf"))
    with pytest.raises(NotFinite, match="features of image 0 of 3 hold a number that is not finite"):
        features_of(model, ImagesInMemory(images(3)))


def test_folders_are_searched_and_what_is_no_image_is_named(tmp_path):
    from PIL import Image

    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("b.png", "in/c.PNG", "in/deep/a.png", "in/.hidden.png"):
        Image.fromarray(images(1)[0]).save(tmp_path / name, "PNG")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    (tmp_path / "in" / "bad.jpg").write_bytes(b"no")
    named = (tmp_path / "b.png", tmp_path / "in", tmp_path / "none.png")
    entries = [(Path(name), why) for path in named for name, why in entries_of(path)]
    files, skipped = [path for path, why in entries if not why], [entry for entry in entries if entry[1]]
    assert [p.name for p in files] == ["b.png", "bad.jpg", "c.PNG", "a.png", "none.png"]
    assert skipped == [
        (tmp_path / "in" / ".hidden.png", "hidden"),
        (tmp_path / "in" / "notes.txt", "no image by its name"),
    ]
    ((read, images_BHWC),) = decoded(files, SIDE, threads=2)
    assert [error for _, error in read][:4] == ["", f"not_an_image: {REASONS['not_an_image']}", "", ""]
    assert "No such file" in read[4][1]
    assert np.array_equal(images_BHWC, images(1).repeat(3, 0))


def test_images_whose_experts_are_all_unpublished_are_answered_by_the_router(tmp_path, parts):
    folder = tmp_path / "bundle"
    folder.mkdir()
    study = Study(network=NETWORK, data=Data(image_size=SIDE))
    files = (parts.router, parts.gate, parts.decoder, parts.experts)
    none = dict.fromkeys(parts.experts, False)
    write_bundle(folder, study, list("abcde"), *files, none, "mixture_top1", router_weight=0.25, temperature=0.5)
    bundle = Bundle(folder)
    (answer,) = routed(bundle, [images(6)])
    features_ND = features_of(bundle.router, ImagesInMemory(images(6)))
    assert torch.allclose(answer.probabilities_BV, bundle.probabilities(bundle.router_logits(features_ND)), atol=1e-5)
