"""Bytes that flip in artifacts, bundles, checkpoints and posts: each is refused or found."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from helpers.checkpoints import save_checkpoint
from helpers.faulty import files, tasks
from moe_core.engine.build import build
from moe_core.maintenance.verify import Damage, verify
from moe_core.models.resnet import build as build_network
from moe_core.serving.bundle import Bundle
from moe_core.settings import Network
from moe_core.stages.graph import GRAPH
from moe_core.store.artifact import Artifact
from moe_core.store.store import Store
from moe_core.weights import load_weights
from moe_core.workspace import open_study

pytestmark = pytest.mark.usefixtures("one_thread")


# Flipped bytes


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_flipped_byte_in_any_file_of_any_artifact_is_refused(copied):
    kinds = set()
    for artifact in [a for name in GRAPH for a in copied.store.everything(name)]:
        for name in artifact.files:
            path = artifact.path / name
            kinds.add(path.suffix)
            flip(path, len(name) * 7919 % path.stat().st_size)
            with pytest.raises(ValueError, match="is not the file that was written"):
                artifact.file(name)
            flip(path, len(name) * 7919 % path.stat().st_size)
            artifact.file(name)
        manifest = artifact.path / "artifact.json"
        for at in range(5, manifest.stat().st_size, 97):
            flip(manifest, at)
            with pytest.raises(ValueError, match="is damaged"):
                copied.store.read(artifact.path)
            flip(manifest, at)
    assert {".json", ".parquet", ".safetensors", ".jsonl", ".lance", ".manifest", ".png", ".html"} <= kinds


def test_every_stage_checks_each_file_that_it_reads(copied, tmp_path, monkeypatch):
    """What a stage has not checked is torn to pieces, and it makes the same: it did not read it."""
    checked, real = set(), Artifact.file
    monkeypatch.setattr(Artifact, "file", lambda self, name: (checked.add(self.path / name), real(self, name))[1])
    for number, (stage, key) in enumerate(tasks(copied)):
        if stage.name == "published":  # it reads bundles alone, and compares again once it has published
            continue
        checked.clear()
        context = open_study(copied.study, copied.root)
        wanted = copied.need(stage.name, key).content_hash

        def hash_of_another(folder, stage=stage, key=key, context=context):
            spec = context.spec(stage.name, key)
            made = Store(folder).make(replace(spec, asset="another"), lambda there: stage.maker()(context, spec, there))
            return made.content_hash

        assert hash_of_another(tmp_path / f"a{number}") == wanted
        mine = copied.need(stage.name, key).path
        torn = [
            artifact.path / name
            for other in GRAPH
            for artifact in copied.store.everything(other)
            for name in artifact.files
            if artifact.path / name not in checked and artifact.path != mine
            if other != "mixture"  # its files are checked by the bundle's own manifest: the next test
        ]
        kept = {path: path.read_bytes() for path in torn}
        for path in torn:
            path.write_bytes(b"torn")
        assert hash_of_another(tmp_path / f"b{number}") == wanted, (stage.name, key)
        for path, data in kept.items():
            path.write_bytes(data)


def test_a_flipped_byte_in_any_file_of_a_bundle_is_refused(copied):
    folder = copied.need("mixture").path
    bundle = Bundle(folder)
    for path in [p for p in files(folder) if p.name not in ("artifact.json", "MODEL_CARD.md")]:
        flip(path, path.stat().st_size * 2 // 3)
        with pytest.raises(ValueError, match=r"differs|was changed|not a|swapped|missing"):
            Bundle(folder)
        if path.parent.name == "experts":  # damaged after the bundle was opened
            with pytest.raises(ValueError, match="SHA-256 differs"), bundle.experts.using(path.stem):
                pass
        flip(path, path.stat().st_size * 2 // 3)


def test_a_flipped_byte_anywhere_in_a_checkpoint_is_never_loaded_as_another_state(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    model = build_network(Network(widths=(4,), depths=(1,), embedding=8), 3, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.zeros(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    save_checkpoint(path, model, optimizer, 3, 9)
    wanted, about = load_weights(path)
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    refused = 0
    for at in [*range(header), *range(header, path.stat().st_size, 101)]:
        flip(path, at)
        try:
            state, said = load_weights(path)
        except ValueError:
            refused += 1
        else:  # the name of the seal itself, or JSON that means the same
            assert at < header
            assert state.keys() == wanted.keys()
            assert all(torch.equal(state[name], wanted[name]) for name in state)
            assert about.items() <= said.items() or "steps" not in said
        flip(path, at)
    assert refused > 0.9 * header


def test_a_flipped_byte_in_posts_is_found_by_verify_which_says_what_to_do(copied):
    assert not [one for one in verify(copied) if isinstance(one, Damage)]
    found = sorted((copied.root / "posts.lance" / "data").iterdir())
    assert len(found) == 2
    flip(found[0], found[0].stat().st_size // 2)
    (damage,) = [one for one in verify(open_study(copied.study, copied.root)) if isinstance(one, Damage)]
    shard = found[0].name.split(".")[0]
    assert Path(damage.where).parent == copied.root / "posts" / shard
    assert f"{found[0]} is not the file that was written" in damage.why
    assert f"delete {damage.where} and run again" in damage.why
    content_hash = copied.need("posts", shard).content_hash
    shutil.rmtree(damage.where)
    again = open_study(copied.study, copied.root)
    assert build(again, "posts", shard).artifact.content_hash == content_hash
    assert not [one for one in verify(again) if isinstance(one, Damage)]


def test_verify_as_a_command(copied):
    from pipelines.cli.main import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARDMOE_STUDY", "")
        command = ["verify", "--study", str(copied.root / "study.toml")]
        assert CliRunner().invoke(main, command).output == "18 artifacts read, 0 damaged\n"
        flip(copied.need("expert", "e001").path / "weights.safetensors", 999)
        done = CliRunner().invoke(main, command)
    assert done.exit_code == 1
    assert "18 artifacts read, 1 damaged\n" in done.output
    assert "e001" in done.output
