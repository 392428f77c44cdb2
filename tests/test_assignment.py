"""The assignment of posts to experts: a file a shard; one file for all is read too; the same with next to no memory."""

import json
import shutil

import numpy as np
import polars as pl
import pytest

from helpers.arrivals import kept_at, shards_of
from helpers.growing import add_shard, make, opened
from moe_core.maintenance.exposure import networks_that_saw
from moe_core.maintenance.takedown import forget
from moe_core.stages import reading
from moe_core.stages.gate import assignment, membership, posts, previous
from moe_core.stages.gate.stages import PARTITION
from moe_core.store.hashing import file_hash, with_checksum


def in_one_file(artifact):
    """As partitions were written before there was a file a shard."""
    rows = pl.read_parquet(artifact.path / "assignment")
    shutil.rmtree(artifact.path / "assignment")
    rows.write_parquet(artifact.path / assignment.ONE_FILE)
    manifest = json.loads((artifact.path / "artifact.json").read_text())
    del manifest["checksum"]
    files = {name: seal for name, seal in manifest["files"].items() if not name.startswith("assignment/")}
    files[assignment.ONE_FILE] = file_hash(artifact.path / assignment.ONE_FILE)
    (artifact.path / "artifact.json").write_text(json.dumps(with_checksum(manifest | {"files": files})))


def seen_by_readers(context):
    artifact = context.need("partition")
    columns = {name: reading.assigned(context, name).tolist() for name in ("expert", "random", "trained")}
    of_shards = [reading.experts_of(context, shard.key).tolist() for shard in context.shards]
    post = ("s1", reading.ids_of(context, "s1")[5].as_py())
    saw = sorted(a.version for a in networks_that_saw(context.store, {post}))
    return columns, of_shards, PARTITION.post_ids(artifact), saw, artifact.content_hash


def test_a_shard_has_a_file_of_its_own_and_readers_of_a_shard_read_no_other(study_of):
    context = opened(*study_of())
    artifact = context.need("partition")
    assert [name for name in artifact.files if "assignment" in name] == [f"assignment/s{n}.parquet" for n in range(3)]
    everything = reading.assigned(context, "expert")
    (artifact.path / "assignment" / "s0.parquet").unlink()
    counts = [len(reading.ids_of(context, shard.key)) for shard in context.shards]
    found = reading.experts_of(context, "s1")
    assert np.array_equal(found, everything[counts[0] : counts[0] + counts[1]])


def test_a_shard_of_which_all_posts_were_taken_down_has_a_file_of_none(study_of):
    study, root = study_of()
    forget(opened(study, root), ids=reading.ids_of(opened(study, root), "s1").to_pylist())
    make(study, root, "partition")
    context = opened(study, root)
    assert [len(reading.experts_of(context, f"s{number}")) > 0 for number in range(3)] == [True, False, True]
    assert len(reading.assigned(context, "random")) == len(reading.index(context).split_N)


def test_a_partition_in_one_file_is_read_and_continued_as_one_of_files(study_of):
    study, root = study_of(**kept_at(0.0))
    wanted = seen_by_readers(opened(study, root))
    shutil.copytree(root, root.parent / "other")
    in_one_file(opened(study, root).need("partition"))
    assert seen_by_readers(opened(study, root)) == wanted
    add_shard(shards_of(root), 3, posts=30)
    found = []
    for folder in (root, root.parent / "other"):
        make(study, folder, "partition")
        artifact = opened(study, folder).need("partition")
        found.append((artifact.version, artifact.content_hash, artifact.metadata, artifact.files))
    assert found[0] == found[1]


@pytest.mark.parametrize("refit", [False, True])
def test_with_next_to_no_memory_the_partition_is_the_same(study_of, monkeypatch, refit):
    study, root = study_of(**kept_at(0.0))
    shutil.copytree(root, root.parent / "other")
    add_shard(shards_of(root), 3, posts=30)
    changed = {"partition": study.partition.model_copy(update={"seed": 1})} if refit else {}
    files = []
    for folder in (root, root.parent / "other"):
        make(study.model_copy(update=changed), folder, "partition")
        files.append(dict(opened(study.model_copy(update=changed), folder).need("partition").files))
        for module in (posts, membership, previous):
            monkeypatch.setattr(module, "MEMORY", 1)
        monkeypatch.setattr(assignment, "ROWS", 7)
        monkeypatch.setattr(reading, "BATCH", 11)
        monkeypatch.setattr(membership, "PART", 3)
    assert files[0] == files[1]
