"""Bundles that are damaged, gone, replaced while they are read, or of two generations."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from helpers.publishing import hardmoe, log_of, publish, version
from helpers.two_mixtures import BAD, GOOD
from moe_core.engine.build import build
from moe_core.serving.bundle import Bundle
from moe_core.serving.publication import published_bundle
from moe_core.serving.routed import predict
from moe_core.stages.mixture import bundle
from moe_core.stages.mixture.comparison import force, roll_back
from moe_core.store.layout import Layout
from moe_core.workspace import open_study


@pytest.fixture
def root(both, tmp_path):
    return shutil.copytree(both, tmp_path / "store")


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_damaged_new_mixture_is_an_error_and_the_old_one_stays(root):
    publish(root, BAD)
    flip(root / "mixture" / version(root, GOOD) / "experts" / "e001.safetensors")
    with pytest.raises(ValueError, match=r"e001.safetensors is not the file the manifest names"):
        publish(root, GOOD)
    with pytest.raises(ValueError, match=r"e001.safetensors is not the file the manifest names"):
        force(open_study(GOOD, root), version(root, GOOD))
    assert log_of(root).published == version(root, BAD)
    assert len(log_of(root).history) == 1


def test_a_published_bundle_that_is_gone_is_said_and_replaced_by_the_next(root):
    publish(root, BAD)
    shutil.rmtree(root / "mixture" / version(root, BAD))
    with pytest.raises(ValueError, match=f"the published mixture {version(root, BAD)} is not at .*restore the folder"):
        published_bundle(root)
    said = publish(root, GOOD)
    assert said.action == "published"
    assert f"the published mixture {version(root, BAD)} cannot be opened any more" in said.why
    with pytest.raises(ValueError, match=f"no mixture {version(root, BAD)} in"):
        roll_back(open_study(GOOD, root))
    assert log_of(root).published == version(root, GOOD)


@pytest.mark.parametrize("how", ["torn", "changed", "not ours", "binary", "empty", "deep"])
def test_a_damaged_published_json_is_an_error_and_left_as_it_is(root, how):
    publish(root, BAD)
    path = Layout(root).publication
    text = path.read_text()
    damaged = {
        "torn": text[: len(text) // 2].encode(),
        "changed": text.replace(version(root, BAD), version(root, GOOD)).encode(),
        "not ours": b"[]",
        "binary": b"\xff\x00",
        "empty": b"",
        "deep": b"[" * 100_000,
    }[how]
    path.write_bytes(damaged)
    for broken in (
        lambda: published_bundle(root),
        lambda: publish(root, GOOD),
        lambda: force(open_study(GOOD, root), version(root, GOOD)),
        lambda: roll_back(open_study(GOOD, root)),
    ):
        with pytest.raises(ValueError, match=r"published.json is damaged .* move it away and run `hardmoe publish"):
            broken()
    assert path.read_bytes() == damaged
    done = hardmoe("predict", "--bundle", root, "x.png")
    assert done.exit_code == 1
    assert "published.json is damaged" in done.output


def test_the_published_bundle_is_there_while_it_is_made_again(root, monkeypatch):
    publish(root, GOOD)
    made, seen = bundle.choose, []
    monkeypatch.setattr(bundle, "choose", lambda *a: (seen.append(Bundle(published_bundle(root))), made(*a))[1])
    before = Bundle(published_bundle(root)).parts
    assert not build(open_study(GOOD, root), "mixture", force=True).reused
    assert len(seen) == 1
    assert Bundle(published_bundle(root)).parts == before
    assert sorted(p.name for p in (root / "mixture").iterdir() if not p.name.startswith(".lock")) == sorted(
        [version(root, GOOD), version(root, BAD)]
    )


MISMATCHES = {
    "the decoder was made from trunk": lambda said: said["decoder"]["made_from"].update(trunk="other"),
    "the decoder was made from e001": lambda said: said["decoder"]["made_from"].update(e001="other"),
    "expert e000 was made from trunk": lambda said: said["experts"]["e000"]["made_from"].update(trunk="other"),
    "expert e001 was made from members": lambda said: said["experts"]["e001"]["made_from"].update(members="other"),
    "expert e000 was made from members": lambda said: said["gate"]["made_from"].update(e000="other"),
    "the manifest wants expert e001 other": lambda said: said["experts"]["e001"].update(version="other"),
    "the manifest wants trunk other": lambda said: said["router"].update(version="other"),
    "the manifest wants partition other": lambda said: said["gate"].update(version="other"),
    "the manifest wants shared_decoder other": lambda said: said["decoder"].update(version="other"),
}


@pytest.mark.parametrize("why", MISMATCHES)
def test_a_bundle_of_two_generations_is_refused(root, why):
    """Its manifest gets a new checksum, as one has that was written wrongly."""
    from moe_core.store.hashing import content_hash

    path = open_study(GOOD, root).need("mixture").path / "manifest.json"
    said = json.loads(path.read_text())
    said.pop("checksum")
    MISMATCHES[why](said)
    path.write_text(json.dumps(said | {"checksum": content_hash(said)}, indent=1))
    with pytest.raises(ValueError, match=why):
        Bundle(path.parent)
    with pytest.raises(ValueError, match=why):
        publish(root, GOOD)
    assert log_of(root).history == ()


def test_a_mixture_that_is_not_what_its_artifact_says_is_not_published(root, monkeypatch):
    context = open_study(GOOD, root)
    store_read = context.store.read
    monkeypatch.setattr(
        context.store,
        "read",
        lambda path: (a := store_read(path)) and replace(a, inputs={**a.inputs, "e000": "another"}),
    )
    with pytest.raises(ValueError, match=r"holds e000 .*, it was made from another: delete the folder and run again"):
        force(context, context.version("mixture"))


def test_a_reader_keeps_its_bundle_while_another_is_published(root):
    publish(root, BAD)
    bundle = Bundle(published_bundle(root))
    publish(root, GOOD)
    pictures = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    predict(bundle, pictures)
    assert bundle.folder.name == version(root, BAD)
    assert bundle.parts["trunk"] != Bundle(published_bundle(root)).parts["trunk"]
