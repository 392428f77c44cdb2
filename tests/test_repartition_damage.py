"""Damaged pointers to the current trunk and partition: written again from the store, or an error; never guessed."""

import os
import shutil
from pathlib import Path

import polars as pl
import pytest

from helpers.arrivals import kept_at, pointer_of, shards_of
from helpers.command import hardmoe
from helpers.growing import add_shard, make, opened
from moe_core.settings import Partition
from moe_core.stages.gate import current_partition
from moe_core.store.documents import FolderDocuments
from moe_core.store.layout import Layout
from moe_core.study_file import load_study

# ---- pointers


def damages(study, root):
    from moe_core.maintenance.verify import Damage, verify

    return {Path(one.where): one.why for one in verify(opened(study, root)) if isinstance(one, Damage)}


def grown(study, root):
    """A fourth shard by the kept trunk, then a fit that was asked for: the newest partition follows two."""
    add_shard(shards_of(root), 3, posts=30)
    make(study, root)
    current_partition.request_refit(opened(study, root))
    make(study, root)


def one_character(path):
    """Of the version that it names; what it says is JSON still."""
    text = path.read_text()
    at = text.index('": "') + 4
    path.write_text(text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :])


def half(path):
    path.write_text(path.read_text()[:50])


@pytest.mark.parametrize("damage", [one_character, half, os.unlink])
@pytest.mark.parametrize("asset", ["trunk", "partition"])
def test_what_the_study_lives_with_is_written_again_from_the_store(study_of, asset, damage):
    study, root = study_of(**kept_at(1.0))
    grown(study, root)
    assert damages(study, root) == {}
    before = opened(study, root)
    path = pointer_of(before, asset)
    wanted, versions = path.read_text(), {name: before.version(name) for name in ("trunk", "partition", "mixture")}
    damage(path)
    if damage is not os.unlink:
        said = damages(study, root)
        assert list(said) == [path]
        assert f"from the store, where {asset} {versions[asset]} is the newest" in said[path]
    now = opened(study, root)
    assert {name: now.version(name) for name in versions} == versions
    assert make(study, root) == []
    assert path.read_text() == wanted
    assert damages(study, root) == {}


def test_a_key_is_not_given_away_again_when_the_file_is_written_from_the_store(study_of):
    more = kept_at(1.0)
    for count in (4, 3):
        study, root = study_of(partition=Partition(experts=count, pca=8), **more)
        make(study, root)
    half(pointer_of(opened(study, root), "partition"))
    study, root = study_of(partition=Partition(experts=4, pca=8), **more)
    assert opened(study, root).experts[-1] == "e004", "e003 was used"


def test_partitions_of_other_settings_are_not_taken_for_what_a_damaged_file_said(study_of):
    study, root = study_of()
    version = opened(study, root).version("partition")
    other = study.model_copy(update={"trunk": study.trunk.model_copy(update={"lr": 0.1})})
    make(other, root, "partition")
    half(pointer_of(opened(study, root), "partition"))
    half(pointer_of(opened(study, root), "trunk"))
    assert opened(study, root).version("partition") == version
    assert opened(other, root).version("partition") != version
    assert len(damages(other, root)) == 2, "all are looked at"
    assert make(study, root) == []


def test_where_the_store_does_not_tell_nothing_is_guessed(study_of):
    study, root = study_of()
    for asset, lost in (("trunk", "splits"), ("partition", "partition")):
        shutil.copytree(root, root.with_name(asset))
        there = root.with_name(asset)
        path = pointer_of(opened(study, there), asset)
        half(path)
        version = next(p for p in (there / lost).iterdir() if p.is_dir())
        shutil.rmtree(version)
        with pytest.raises(ValueError, match="restore the file from a backup") as raised:
            opened(study, there).version("partition")
        assert str(path) in str(raised.value)
        assert damages(study, there) == {path: str(raised.value)}


def test_a_dry_run_tells_of_a_damaged_file(study_of):
    from click.testing import CliRunner

    from pipelines.cli.main import main

    study, root = study_of()
    path = pointer_of(opened(study, root), "partition")
    half(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARDMOE_STUDY", "")
        done = CliRunner().invoke(main, ["run", "--dry-run", "--study", str(root / "study.toml")])
    assert (done.exit_code, done.stderr.startswith(f"Damaged: {path} is damaged (")) == (0, True)


def test_after_a_takedown_a_damaged_file_of_the_trunk_is_no_obstacle(study_of):
    from moe_core.maintenance.takedown import forget

    study, root = study_of()
    rows = pl.read_parquet(opened(study, root).need("partition").path / "assignment")
    forget(opened(study, root), ids=[rows.filter(pl.col("split") == "train")["id"][0]])
    half(pointer_of(opened(study, root), "trunk"))
    assert len(damages(study, root)) == 1
    assert "trunk" in make(study, root)
    assert damages(study, root) == {}


def test_verify_looks_at_what_is_published(study_of):
    from moe_core.serving import publication

    study, root = study_of()
    decision = publication.Decision("published", "m", "", "m", "the first", "a test")
    publication.change(FolderDocuments(root), lambda log: log.adding(decision))
    assert damages(study, root) == {}
    path = Layout(root).publication
    path.write_text(path.read_text().replace("the first", "the worst"))
    assert list(damages(study, root)) == [path]
    assert "its checksum does not match" in damages(study, root)[path]


def test_a_new_fit_needs_a_partition_in_the_store_to_begin_from(file):
    before = opened(load_study(file), file.parent).need("partition")
    shutil.rmtree(before.path)
    done = hardmoe("repartition", "--study", file, check=False)
    assert done.returncode == 1
    assert "no partition in the store to begin from: `hardmoe run` fits one from scratch" in done.stderr
    hardmoe("run", "--study", file, "--until", "partition", "--workers", "1")
    assert opened(load_study(file), file.parent).need("partition").version == before.version
