"""Bundles from elsewhere, whose seal and checksums were made to fit: refused in one line, before anything is built."""

import os
import shutil

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from helpers.bundles import images
from helpers.sealed import changed, manifest_of, refused, rewritten, seal
from moe_core.errors import NotFinite
from moe_core.serving.bundle import Bundle
from moe_core.serving.manifest import read_manifest
from moe_core.serving.routed import predict
from moe_core.settings import Network
from moe_core.store.hashing import file_hash
from pipelines.cli.main import main

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
def test_a_wrong_value_is_named_in_one_line(bundle_folder, name, value, why):
    changed(bundle_folder, name, to=value)
    assert why in refused(bundle_folder)


@pytest.mark.parametrize("path", [("answer",), ("network",), ("experts",), ("router", "sha256"), ("gate", "file")])
def test_a_missing_key_is_named_in_one_line(bundle_folder, path):
    changed(bundle_folder, *path, drop=True)
    assert f"{'.'.join(path)} is missing" in refused(bundle_folder)


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
def test_what_is_no_manifest_is_refused_in_one_line(bundle_folder, text):
    (bundle_folder / "manifest.json").write_text(text)
    assert "manifest.json" in refused(bundle_folder)


def test_a_manifest_that_is_nested_deep_within_a_right_one_is_refused(bundle_folder):
    deep = []
    for _ in range(200):
        deep = [deep]
    changed(bundle_folder, "network", "widths", to=deep)
    assert "network.widths.0: Input should be a valid integer, it is [[[" in refused(bundle_folder)


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
def test_a_network_of_other_sizes_than_the_files_is_refused_before_it_is_built(
    bundle_folder, network, why, monkeypatch
):
    said = manifest_of(bundle_folder)
    changed(bundle_folder, "network", to=said["network"] | network)
    read = []
    monkeypatch.setattr("moe_core.weights.read_weights", lambda path, sha256: read.append(path))
    assert why in refused(bundle_folder)
    assert read == []


def test_a_study_s_network_has_the_same_bounds():
    for network in ({"depths": (10**7, 1, 1)}, {"widths": (8, 16, 10**9)}, {"embedding": 10**9}):
        with pytest.raises(ValueError, match=r"at most 1,000|less than or equal to 16384"):
            Network(**network)
    assert Network(block="bottleneck", widths=(64, 128, 256, 512), depths=(3, 8, 36, 3), embedding=0)  # ResNet-152


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
def test_hashtags_are_a_list_of_distinct_strings(bundle_folder, text):
    path = bundle_folder / "hashtags.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    changed(bundle_folder, "vocabulary", "sha256", to=file_hash(path))
    assert "wanted a list of distinct strings" in refused(bundle_folder)


@pytest.mark.parametrize("about", ["[]", "7", "[" * 100_000, '{"asset": ["trunk"]}', "no json"])
def test_what_a_file_says_about_itself_may_be_anything(bundle_folder, about):
    said = manifest_of(bundle_folder)
    path = bundle_folder / "router.safetensors"
    with safe_open(path, framework="pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(state, path, metadata={"about": about})
    said["router"]["sha256"] = file_hash(path)
    seal(bundle_folder, said)
    assert "router.safetensors is not a readable weights file" in refused(bundle_folder)


def test_answers_that_are_not_finite_are_an_error(bundle_folder):
    """Weights that are finite, and their sums are not."""
    rewritten(bundle_folder, "decoder", lambda state: [tensor.fill_(3e38) for tensor in state.values()])
    with pytest.raises(NotFinite, match="answer"):
        predict(Bundle(bundle_folder), images(5))


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
def test_a_changed_manifest_is_refused_in_one_line_or_says_the_same(whole_bundle, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzzed")
    said = manifest_of(whole_bundle)
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
        os.link(whole_bundle / f"{name}.safetensors", folder / f"{name}.safetensors")
    os.link(whole_bundle / "hashtags.json", folder / "hashtags.json")
    shutil.copytree(whole_bundle / "experts", folder / "experts", copy_function=os.link)
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
def test_a_file_of_text_without_end_is_refused(bundle_folder, name):
    os.truncate(bundle_folder / name, 6 << 30)
    assert "has more than" in refused(bundle_folder)


def test_a_bundle_s_mistakes_are_one_line_of_the_command(bundle_folder):
    changed(bundle_folder, "network", "depths", to=[10**7, 1])
    done = CliRunner().invoke(main, ["predict", "--bundle", str(bundle_folder), "x.png"])
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "manifest.json is not a bundle's manifest: network: depths are 10,000,001 blocks in all" in done.stderr
