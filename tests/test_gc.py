"""gc: old versions leave, and nothing that anything which stays was made from."""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from helpers.two_mixtures import BAD, GOOD, make, tiny_study
from moe_core.engine.build import build
from moe_core.errors import LockHeld
from moe_core.maintenance.gc import collect
from moe_core.maintenance.lineage import Lineage
from moe_core.serving.bundle import Bundle
from moe_core.serving.publication import published_bundle
from moe_core.serving.routed import predict
from moe_core.settings import Partition
from moe_core.stages.mixture.comparison import force, roll_back
from moe_core.store.artifact import Artifact, Spec, StageOutput
from moe_core.store.layout import Layout
from moe_core.store.locks import not_open, shared
from moe_core.store.store import Store
from moe_core.study_file import dump_study
from moe_core.tables.lance_tags import lance_tags
from moe_core.tables.location import tables_in
from moe_core.training.posts import ImagesInMemory
from moe_core.workspace import open_study
from pipelines.cli.main import main


@pytest.fixture
def root(both, tmp_path):
    return shutil.copytree(both, tmp_path / "store")


def files(root):
    return {p: p.read_bytes() for p in root.rglob("*") if p.is_file() and not p.name.startswith(".")}


def whole(root):
    """Every input of what is there is there."""
    lineage = Lineage(Store(root))
    return all(i.kind != "gone" and set(i.of) <= set(lineage.places) for v in lineage.places for i in lineage.inputs(v))


def versions(root, study, until="mixture"):
    """Of what the study's mixture (or another asset) is made from, itself included."""
    context = open_study(study, root)
    return set(Lineage(context.store).above(context.version(until)))


def there(root):
    return set(Lineage(Store(root)).places)


def newest_is(root, study):
    """The artifacts of a study are the newest of each."""
    context = open_study(study, root)
    now = time.time() + 100
    for version in Lineage(context.store).above(context.version("mixture")):
        os.utime(Lineage(context.store).artifact(version).path / "artifact.json", (now, now))


def test_without_apply_nothing_changes_and_the_same_is_said(root):
    newest_is(root, GOOD)
    before = files(root)
    said = collect(open_study(GOOD, root), keep=1, dry_run=True)
    assert files(root) == before
    done = collect(open_study(GOOD, root), keep=1)
    assert done.removed == said.removed
    assert list(root.rglob(".lock-*")) == []
    assert done.bytes == said.bytes > 0
    assert len(done.sizes) == len(done.removed)
    assert collect(open_study(GOOD, root), keep=1, dry_run=True).removed == []


def test_old_versions_leave_and_what_the_study_names_stays_whole(root):
    newest_is(root, GOOD)
    good, bad = versions(root, GOOD, "evaluation"), versions(root, BAD)
    before = there(root)
    collect(open_study(GOOD, root), keep=1)
    assert good < there(root)
    assert before - there(root) == bad - good
    assert len(bad - good) >= 6, "trunk, two of features, two experts, decoder, mixture"
    assert whole(root)
    Bundle(open_study(GOOD, root).need("mixture").path)


def test_published_and_previous_stay_with_all_they_were_made_from(root):
    for study in (BAD, GOOD):
        build(open_study(study, root), "published")
    good, bad = versions(root, GOOD), versions(root, BAD)
    evaluation = open_study(GOOD, root).version("evaluation")
    embeddings = {open_study(GOOD, root).version("embeddings", shard.key) for shard in open_study(GOOD, root).shards}
    other = tiny_study(lr=0.05)
    make(open_study(other, root), "mixture")
    newest_is(root, other)
    collect(open_study(other, root), keep=0)
    assert good | bad | embeddings < there(root)
    assert evaluation not in there(root)
    assert whole(root)
    roll_back(open_study(GOOD, root))
    predict(Bundle(published_bundle(root)), np.zeros((1, 16, 16, 3), np.uint8))
    collect(open_study(other, root), keep=0)
    assert bad < there(root)
    assert not (good - bad - versions(root, other)) & there(root), "taken back, and nothing names it"
    assert whole(root)


@pytest.mark.slow
def test_a_mixture_that_a_program_has_open_stays_whole_until_it_is_closed(root):
    """Two are published after it, and it is neither the published one nor the one before."""
    force(open_study(BAD, root), open_study(BAD, root).version("mixture"))
    bundle = Bundle(published_bundle(root))
    version = bundle.folder.name
    other = tiny_study(lr=0.05)
    make(open_study(other, root), "mixture")
    for study in (GOOD, other):
        (root / "study.toml").write_text(dump_study(study))
        done = hardmoe("publish", "--study", root, "--version", open_study(study, root).version("mixture"), "--force")
        assert done.returncode == 0, done.stderr
    needed = versions(root, BAD)
    done = hardmoe("gc", "--study", root, "--keep", 0, "--apply")
    assert done.returncode == 0, done.stderr
    assert f"Kept: mixture {version}, which a program has open" in done.stdout
    assert needed <= there(root)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    for key in bundle.published:
        assert bundle.expert_features(key, ImagesInMemory(pixels)).isfinite().all()
    assert json.loads(hardmoe("gc", "--study", root, "--keep", 0, "--json").stdout)["open"] == [version]
    del bundle
    done = hardmoe("gc", "--study", root, "--keep", 0, "--apply")
    assert "Kept" not in done.stdout
    assert f"mixture/{version}\n" in done.stdout
    assert not (root / "mixture" / version).exists()


def test_a_mixture_cannot_be_opened_while_it_is_removed(root):
    folder = open_study(GOOD, root).need("mixture").path
    with ExitStack() as removing:
        assert not_open(folder / "manifest.json", removing)
        with ThreadPoolExecutor(1) as pool:
            opening = pool.submit(Bundle, folder)  # waits, or comes too late
            shutil.rmtree(folder)
            removing.close()
            with pytest.raises(ValueError, match=r"no bundle at .*"):
                opening.result()


def test_several_programs_may_have_a_mixture_open_and_one_that_was_killed_has_not(root):
    folder = open_study(GOOD, root).need("mixture").path
    program = [sys.executable, "-c", OPENING, folder]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "open\n"
        mine = Bundle(folder)
        with ExitStack() as removing:
            assert not not_open(folder / "manifest.json", removing)
        del mine
        with ExitStack() as removing:
            assert not not_open(folder / "manifest.json", removing)
        process.kill()
        process.wait()
    with ExitStack() as removing:
        assert not_open(folder / "manifest.json", removing)


OPENING = """
import sys
from pathlib import Path
from moe_core.serving.bundle import Bundle
from moe_core.store.layout import Layout
bundle = Bundle(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def hardmoe(*arguments):
    """The command in a process of its own."""
    program = [sys.executable, "-c", "from pipelines.cli.main import main; main()", *(str(a) for a in arguments)]
    environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}
    return subprocess.run(program, capture_output=True, text=True, env=environment, check=False)


def test_keep_says_how_many_of_the_newest_stay(root):
    force(open_study(GOOD, root), open_study(GOOD, root).version("mixture"))
    newest_is(root, GOOD)
    assert collect(open_study(GOOD, root), keep=2, dry_run=True).removed == []
    assert any(name.startswith("mixture/") for name in collect(open_study(GOOD, root), keep=1, dry_run=True).removed)
    with pytest.raises(ValueError, match="--keep -1: wanted 0 or more"):
        collect(open_study(GOOD, root), keep=-1, dry_run=True)


def test_experts_that_the_study_has_no_more_leave_unless_a_mixture_here_needs_them(root):
    one = tiny_study(partition=Partition(experts=1, pca=4))
    mixture, versions = open_study(GOOD, root).version("mixture"), {}
    for key in ("e000", "e001"):
        versions[key] = open_study(GOOD, root).version("expert", key)
    make(open_study(one, root), "mixture")
    (gone,) = set(versions) - set(open_study(one, root).experts)
    newest_is(root, one)
    force(open_study(GOOD, root), mixture)
    collect(open_study(one, root), keep=1)
    assert [a.version for a in Store(root).versions("expert", gone)] == [versions[gone]]
    Layout(root).publication.unlink()
    collect(open_study(one, root), keep=0)  # else the newest evaluation stays, and its mixture
    assert Store(root).versions("expert", gone) == []
    assert whole(root)


def test_posts_of_old_settings_leave_with_their_rows(root):
    smaller = tiny_study(data=GOOD.data.model_copy(update={"image_size": 8}))
    make(open_study(smaller, root), "mixture")
    newest_is(root, smaller)
    assert len(lance_tags(tables_in(root).posts)) == 4
    done = collect(open_study(smaller, root), keep=0)
    gone = [name for name in done.removed if name.startswith("posts/")]
    assert len(gone) == 2
    assert done.bytes > sum(done.sizes), "rows too"
    assert len(lance_tags(tables_in(root).posts)) == 2
    assert whole(root)


def test_nothing_leaves_of_which_the_study_cannot_say_yet_what_it_names(root):
    """The trunk is to be made to know the rest."""
    other = tiny_study(partition=Partition(experts=2, pca=3))  # a partition that is not made: experts are not known
    done = collect(open_study(other, root), keep=0, dry_run=True)
    assert not any(name.startswith(("expert/", "mixture/", "evaluation/")) for name in done.removed)


def test_a_partition_keeps_the_one_before_it_and_an_expert_the_one_it_went_on_from(tmp_path):
    from helpers.two_mixtures import write

    write(tmp_path)
    store = Store(tmp_path)

    def made(asset, key, inputs, **metadata):
        return store.make(Spec(asset, key, "1", {}, inputs), lambda folder: StageOutput(metadata))

    trunk = made("trunk", None, {}, pointer="of other settings")
    features = made("trunk_features", "s0", {"trunk": trunk.version})
    partitions = [made("partition", None, {"features s0": features.version}, members={"e000": "0"}, pointer="")]
    experts = [made("expert", "e000", {"members": "0", "trunk": trunk.version})]
    for n in (1, 2):
        inputs = {"features s0": features.version, "previous": partitions[-1].version}
        partitions.append(made("partition", None, inputs, members={"e000": str(n)}, pointer=""))
        inputs = {"members": str(n), "trunk": trunk.version, "from": experts[-1].version}
        experts.append(made("expert", "e000", inputs))
    alone = made("expert", "e000", {"members": "0", "trunk": "another"})
    for artifact in (*partitions, *experts, alone):
        old = artifact is not partitions[-1] and artifact is not experts[-1]
        os.utime(artifact.path / "artifact.json", (1, 1) if old else (2, 2))
    context = open_study(GOOD, tmp_path)
    named = [
        Artifact(None, "", a, k, "", {}, "", {}, {}, "", None) for a, k in (("partition", None), ("expert", "e000"))
    ]
    context = replace(context, planner=context.planner.pinned(named))  # what the study names now is none of these
    assert collect(context, keep=1, dry_run=True).removed == [f"expert/e000/{alone.version}"]


def test_checkpoints_of_what_the_study_makes_stay_and_those_of_given_up_settings_leave(root):
    context = open_study(GOOD, root)
    trunk = context.need("trunk")
    shutil.rmtree(trunk.path)
    unfinished = context.store.work_folder(context.spec("trunk"))
    given_up = unfinished.with_name(".work-0123456789abcdef0123")
    for folder in (unfinished, given_up):
        folder.mkdir()
        (folder / "checkpoint.safetensors").write_bytes(b"x")
    done = collect(open_study(GOOD, root), keep=1)
    assert unfinished.exists()
    assert not given_up.exists()
    assert "trunk/.work-0123456789abcdef0123" in done.removed


def test_in_doubt_nothing_is_removed(root):
    newest_is(root, GOOD)
    with shared(open_study(GOOD, root).store.layout.in_use), pytest.raises(LockHeld, match="held by another process"):
        collect(open_study(GOOD, root), keep=1)
    manifest = open_study(BAD, root).need("mixture").path / "artifact.json"
    text = manifest.read_text()
    manifest.write_text(text[:100])
    before = files(root)
    with pytest.raises(ValueError, match=r"artifact.json is damaged"):
        collect(open_study(GOOD, root), keep=1)
    manifest.write_text(text)
    Layout(root).publication.write_text("no")
    with pytest.raises(ValueError, match=r"published.json is damaged"):
        collect(open_study(GOOD, root), keep=1)
    Layout(root).publication.unlink()
    assert files(root) == before | {manifest: text.encode()}


def test_superseded_leaves_the_published_mixtures_embeddings(root):
    context = open_study(GOOD, root)
    embeddings = {context.version("embeddings", shard.key) for shard in context.shards}
    force(context, context.version("mixture"))
    collect(open_study(BAD, root), superseded=True)
    assert embeddings | {context.version("mixture")} < there(root)
    Layout(root).publication.unlink()
    collect(open_study(BAD, root), superseded=True)
    assert not embeddings & there(root)


def test_the_command_says_what_would_go_and_removes_with_apply(root):
    newest_is(root, GOOD)
    (root / "study.toml").write_text(dump_study(GOOD))

    def gc(*more):
        return CliRunner().invoke(main, ["gc", "--study", str(root / "study.toml"), *more])

    assert "mixture" not in gc().output, "without --keep no version of an artifact goes"
    old = f"mixture/{open_study(BAD, root).version('mixture')}"
    said = gc("--keep", "1")
    assert f"MiB  {old}" in said.output
    assert said.output.splitlines()[-1].endswith("MiB would be freed; --apply frees it")
    assert (root / old).exists()
    done = json.loads(gc("--keep", "1", "--apply", "--json").output)
    assert done["applied"]
    assert old in done["removed"]
    assert not (root / old).exists()
