"""Bundles from elsewhere, whose seal and checksums were made to fit: refused in one line, before anything is built."""

import json
import os
import shutil

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from moe_core.errors import NotFinite
from moe_core.serving.bundle import Bundle
from moe_core.serving.manifest import read_manifest
from moe_core.serving.routed import predict
from moe_core.settings import Network
from moe_core.store.hashing import content_hash, file_hash
from pipelines.cli.main import main
from test_serving import TAGS, bundle_at, drawn_parts, images

PARTS = ["router", "gate", "decoder"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("manifest")
    return bundle_at(root / "bundle", drawn_parts(root, 0, count=2))


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "bundle")


def manifest_of(folder):
    said = json.loads((folder / "manifest.json").read_text())
    del said["checksum"]
    return said


def seal(folder, said):
    sealed = said | {"checksum": content_hash(said)} if isinstance(said, dict) else said
    (folder / "manifest.json").write_text(json.dumps(sealed, indent=1))


def changed(folder, *path, to=None, drop=False):
    """The manifest with the value at a path replaced or dropped, sealed as if it had been written so."""
    said = manifest_of(folder)
    place = said
    for name in path[:-1]:
        place = place[name]
    if drop:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    seal(folder, said)


def refused(folder):
    """What opening it is answered with."""
    with pytest.raises(ValueError, match=r".") as error:
        Bundle(folder)
    assert not isinstance(error.value, UnicodeError)
    text = str(error.value)
    assert "\n" not in text
    assert "pydantic" not in text
    assert len(text) < 1000
    return text


def entry_of(said, name):
    return said["experts"]["e000"] if name == "e000" else said[name]


def rewritten(folder, name, change):
    """A part with other tensors under the same words about it, and its right SHA-256 in the manifest."""
    said = manifest_of(folder)
    path = folder / entry_of(said, name)["file"]
    with safe_open(path, framework="pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        about = file.metadata()
    change(state)
    save_file(state, path, metadata=about)
    entry_of(said, name)["sha256"] = file_hash(path)
    seal(folder, said)


WRONG = [
    ("answer", "mixture_of_all", "answer: Input should be 'mixture_top1' or 'mixture_top1_router', it is 'mixture_of"),
    ("answer", 7, "answer: "),
    ("loss", "hinge", "loss: Input should be 'softmax' or 'sigmoid', it is 'hinge'"),
    ("precision", "float8", "precision: "),
    ("router_weight", 1.5, "router_weight: Input should be less than or equal to 1"),
    ("router_weight", "0.5", "router_weight: Input should be a valid number"),
    ("router_weight", None, "router_weight: "),
    ("temperature", 0, "temperature: "),
    ("temperature", [0.1], "temperature: "),
    ("branch_at", -1, "branch_at: "),
    ("branch_at", 2, "branch_at 2 of 2 stages leaves experts none"),
    ("branch_at", 10**400, "branch_at"),
    ("image_size", 10**9, "image_size: Input should be less than or equal to 1024"),
    ("image_size", True, "image_size: "),
    ("image_size", 8.0, "image_size: "),
    ("network", None, "network: "),
    ("network", [], "network: "),
    ("experts", {}, "experts: "),
    ("experts", [], "experts: "),
    ("experts", {"e000": None}, "experts.e000: "),
    ("experts", {f"e{n:05d}": None for n in range(10_001)}, "experts"),
    ("router", "router.safetensors", "router: "),
    ("vocabulary", {}, "vocabulary.file is missing"),
    ("format", "hardmoe bundle 3", "this hardmoe reads"),
    ("format", None, "this hardmoe reads"),
    ("format", [], "this hardmoe reads"),
]


@pytest.mark.parametrize(("name", "value", "why"), WRONG, ids=lambda one: str(one)[:30])
def test_a_wrong_value_is_named_in_one_line(folder, name, value, why):
    changed(folder, name, to=value)
    assert why in refused(folder)


@pytest.mark.parametrize("path", [("answer",), ("network",), ("experts",), ("router", "sha256"), ("gate", "file")])
def test_a_missing_key_is_named_in_one_line(folder, path):
    changed(folder, *path, drop=True)
    assert f"{'.'.join(path)} is missing" in refused(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "7",
        "[]",
        "{}",
        '"text"',
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"checksum": ' + "9" * 5000 + "}",
        '{"checksum": NaN}',
        '{"checksum": "x", "format": 1e999}',
        '{"checksum": "\\ud800"}',
        "[" * 400 + "]" * 400,
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_manifest_is_refused_in_one_line(folder, text):
    (folder / "manifest.json").write_text(text)
    assert "manifest.json" in refused(folder)


def test_a_manifest_that_is_nested_deep_within_a_right_one_is_refused(folder):
    deep = []
    for _ in range(200):
        deep = [deep]
    changed(folder, "network", "widths", to=deep)
    assert "recursion limit exceeded" in refused(folder)


@pytest.mark.parametrize(
    ("network", "why"),
    [
        ({"depths": [10**7, 1]}, "depths are 10,000,001 blocks in all: wanted at most 1,000"),
        ({"depths": [10**30, 1]}, "network.depths.0: "),
        ({"depths": [1] * 10**6, "widths": [1] * 10**6}, "depths are 1,000,000 blocks"),
        ({"widths": [4, 10**12]}, "network.widths.1: Input should be less than or equal to 16384"),
        ({"embedding": 10**12}, "network.embedding: Input should be less than or equal to 16384"),
        ({"depths": [500, 500]}, "tensors: the manifest's network has 1,000 blocks, each with several"),
        ({"depths": [2, 1]}, "router.safetensors: layer1.1.bn1.bias is not as the manifest's network has it: nothing"),
        ({"widths": [16384, 16384]}, "router.safetensors: bn1.bias is not as the manifest's network has it: F32 [4]"),
        ({"embedding": 16384}, "router.safetensors: bn_embed.bias is not as the manifest's network has it: F32 [6]"),
        ({"embedding": -1}, "network.embedding: "),
        ({"block": "dense"}, "network.block: "),
        ({"layers": 3}, "network.layers: "),
    ],
    ids=lambda one: str(one)[:40],
)
def test_a_network_of_other_sizes_than_the_files_is_refused_before_it_is_built(folder, network, why, monkeypatch):
    said = manifest_of(folder)
    changed(folder, "network", to=said["network"] | network)
    read = []
    monkeypatch.setattr("moe_core.weights.read_weights", lambda path, sha256: read.append(path))
    assert why in refused(folder)
    assert read == []


def test_a_study_s_network_has_the_same_bounds():
    for network in ({"depths": (10**7, 1, 1)}, {"widths": (8, 16, 10**9)}, {"embedding": 10**9}):
        with pytest.raises(ValueError, match=r"at most 1,000|less than or equal to 16384"):
            Network(**network)
    assert Network(block="bottleneck", widths=(64, 128, 256, 512), depths=(3, 8, 36, 3), embedding=0)  # ResNet-152


def test_more_or_other_experts_than_the_gate_s_are_refused(folder):
    said = manifest_of(folder)
    changed(folder, "experts", to={"e000": said["experts"]["e000"]})
    assert "the gate knows 2 experts, here are 1" in refused(folder)


@pytest.mark.parametrize("name", ["router", "gate", "decoder", "vocabulary", "e000"])
@pytest.mark.parametrize("how", ["../", "absolute", "inside and out", "link", "link to a folder", "fifo", "folder"])
def test_a_part_outside_the_bundle_or_no_file_is_refused(folder, name, how):
    said = manifest_of(folder)
    entry = entry_of(said, name)
    path = folder / entry["file"]
    outside = folder.parent / path.name
    shutil.copyfile(path, outside)
    if how == "../":
        entry["file"] = f"../{path.name}"
    elif how == "absolute":
        entry["file"] = str(outside)
    elif how == "inside and out":
        entry["file"] = f"experts/../../{path.name}"
    elif how == "link":
        path.unlink()
        path.symlink_to(outside)
    elif how == "link to a folder":
        (folder / "linked").symlink_to(folder.parent)
        entry["file"] = f"linked/{path.name}"
    elif how == "fifo":
        path.unlink()
        os.mkfifo(path)
    else:
        path.unlink()
        path.mkdir()
    seal(folder, said)
    text = refused(folder)
    assert any(why in text for why in ("lies outside the bundle", "is a link", "is no regular file")), text


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "", "\x1b]0;title\x07", "a" * 300, "é" * 150, "none.safetensors"])
def test_a_part_of_a_strange_name_is_refused(folder, name):
    changed(folder, "router", "file", to=name)
    assert "router" in refused(folder) or "missing from the bundle" in refused(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("part", "tensor"),
    [
        ("router", "layer2.0.conv1.weight"),
        ("router", "fc.bias"),
        ("decoder", "weight"),
        ("gate", "centroids"),
        ("gate", "mean"),
        ("gate", "projection"),
        ("e000", "bn_embed.running_var"),
    ],
)
def test_a_number_that_is_not_finite_is_refused_under_a_right_checksum(folder, part, tensor, value):
    rewritten(folder, part, lambda state: state[tensor].view(-1)[-1:].fill_(value))
    assert f"{tensor} holds a number that is not finite" in refused(folder)


def test_the_same_tensors_written_again_are_taken(folder, whole):
    for name in (*PARTS, "e000"):
        rewritten(folder, name, lambda state: None)
    assert torch.equal(predict(Bundle(folder), images(5))[0], predict(Bundle(whole), images(5))[0])


@pytest.mark.parametrize(
    ("part", "change", "why"),
    [
        ("gate", lambda s: s.update(expert=torch.tensor([0, 10**15])), "wanted experts 0 to K - 1"),
        ("gate", lambda s: s.update(expert=torch.tensor([-1, 0])), "wanted experts 0 to K - 1"),
        ("gate", lambda s: s.update(expert=torch.tensor([0, 0])), "the gate knows 1 experts, here are 2"),
        ("gate", lambda s: s.update(expert=torch.zeros(2)), "expert is not as the manifest's network has it: F32"),
        ("gate", lambda s: s.update(expert=torch.zeros(2, 1)), "is not a gate: 0 centroids"),
        ("gate", lambda s: s.pop("expert"), "is not a gate: 0 centroids"),
        ("gate", lambda s: s.pop("projection"), "is not a gate: 2 centroids of 0 dimensions"),
        ("gate", lambda s: s.update(projection=torch.zeros(6, 5)), "centroids is not as the manifest's network has it"),
        ("gate", lambda s: s.update(mean=torch.zeros(7)), "mean is not as the manifest's network has it"),
        ("decoder", lambda s: s.update(weight=torch.zeros(4, 6)), "the decoder knows 4 hashtags, the vocabulary 5"),
        ("decoder", lambda s: s.update(weight=torch.zeros(TAGS, 7)), "weight is not as the manifest's network has it"),
        ("decoder", lambda s: s.pop("weight"), "the decoder knows 0 hashtags"),
        ("decoder", lambda s: s.pop("bias"), "bias is not as the manifest's network has it: nothing"),
        ("decoder", lambda s: s.update({"x\n": torch.zeros(1)}), r"x\n is not as the manifest's network has it"),
        ("router", lambda s: s.update({"fc.bias": s["fc.bias"].double()}), "fc.bias is not as the manifest's"),
        ("router", lambda s: s.pop("conv1.weight"), "conv1.weight is not as the manifest's network has it: nothing"),
        ("e000", lambda s: s.update({"more": torch.zeros(9)}), "more is not as the manifest's network has it"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, part, change, why):
    rewritten(folder, part, change)
    assert why in refused(folder)


@pytest.mark.parametrize(
    "text",
    [
        '["a", "b", "c", "d", "a"]',
        '["a", "b", "c", "d", 5]',
        '["a", "b", "c", "d", ""]',
        '["a", "b", "c", "d", "\\ud800"]',
        '{"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}',
        '"abcde"',
        "[]",
        "null",
        "[" * 100_000,
        "not json",
        b"\xff\xfe",
    ],
    ids=lambda text: text[:20],
)
def test_hashtags_are_a_list_of_distinct_strings(folder, text):
    path = folder / "hashtags.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    changed(folder, "vocabulary", "sha256", to=file_hash(path))
    assert "wanted a list of distinct strings" in refused(folder)


@pytest.mark.parametrize("about", ["[]", "7", "[" * 100_000, '{"asset": ["trunk"]}', "no json"])
def test_what_a_file_says_about_itself_may_be_anything(folder, about):
    said = manifest_of(folder)
    path = folder / "router.safetensors"
    with safe_open(path, framework="pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(state, path, metadata={"about": about})
    said["router"]["sha256"] = file_hash(path)
    seal(folder, said)
    assert "router.safetensors is not a readable weights file" in refused(folder)


def test_answers_that_are_not_finite_are_an_error(folder):
    """Weights that are finite, and their sums are not."""
    rewritten(folder, "decoder", lambda state: [tensor.fill_(3e38) for tensor in state.values()])
    with pytest.raises(NotFinite, match="answer"):
        predict(Bundle(folder), images(5))


def paths_in(said, at=()):
    yield at
    if isinstance(said, dict):
        for name, value in said.items():
            yield from paths_in(value, (*at, name))
    if isinstance(said, list):
        for number, value in enumerate(said):
            yield from paths_in(value, (*at, number))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**30, -1, 0, 2**63, "../x", "/etc/passwd", "\x00", "softmax", "e000"])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_changed_manifest_is_refused_in_one_line_or_says_the_same(whole, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzzed")
    said = manifest_of(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(paths_in(said))))
        if not path:
            continue
        place = said
        for name in path[:-1]:
            place = place[name]
        if data.draw(st.booleans()) and isinstance(place, dict):
            del place[path[-1]]
        else:
            place[path[-1]] = data.draw(JSON)
    seal(folder, said)
    for name in ("router", "gate", "decoder"):
        os.link(whole / f"{name}.safetensors", folder / f"{name}.safetensors")
    os.link(whole / "hashtags.json", folder / "hashtags.json")
    shutil.copytree(whole / "experts", folder / "experts", copy_function=os.link)
    for look in (read_manifest, Bundle):
        if (why := said_of(look, folder)) is not None:
            assert "\n" not in why
            assert len(why) < 1000


def said_of(look, folder):
    """The error that it raises; None where it is content."""
    try:
        look(folder)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", ["manifest.json", "hashtags.json"])
def test_a_file_of_text_without_end_is_refused(folder, name):
    os.truncate(folder / name, 6 << 30)
    assert "has more than" in refused(folder)


def test_a_bundle_s_mistakes_are_one_line_of_the_command(folder):
    changed(folder, "network", "depths", to=[10**7, 1])
    done = CliRunner().invoke(main, ["predict", "--bundle", str(folder), "x.png"])
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "manifest.json is not a bundle's manifest: network: depths are 10,000,001 blocks in all" in done.stderr
