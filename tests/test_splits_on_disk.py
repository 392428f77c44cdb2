"""The stage `splits` with next to no memory, killed, and on a full disk: always the splits that it gives otherwise."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from helpers.pictures_in_memory import groups_by_scan, numbers_of
from moe_core import sorting
from moe_core.data.duplicates import signature
from moe_core.data.splits import ALONE, SPLITS, Places, decide, given_of, leaks
from moe_core.engine.build import build, build_all
from moe_core.settings import Data, Source, Study
from moe_core.stages import reading
from moe_core.stages.data import split_check, splits
from moe_core.study_file import dump_study
from moe_core.workspace import open_study

SHARDS, POSTS = 3, 1000


def picture(number):
    """8x8 pixels, of which each is a cell; every fifth is the one before with other levels."""
    cells = np.random.default_rng(number - (number % 5 == 4)).integers(20, 200, (8, 8, 3))
    return (cells + 3 * (number % 5 == 4)).astype(np.uint8)


def write_source(folder):
    """Shards in which pictures, ids and users come again, and some posts are given a split."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for shard in range(SHARDS):
        rows = []
        for place in range(POSTS):
            number = int(draw.integers(0, 2000))
            file = folder / "images" / f"{number}.png"
            if not file.exists():
                file.parent.mkdir(exist_ok=True)
                Image.fromarray(picture(number)).save(file)
            given = [None, None, None, "train", "test"][draw.integers(0, 5)]
            name = f"{shard}-{place}" if draw.random() < 0.9 else f"id{draw.integers(0, 200)}"
            rows.append((name, file.read_bytes(), ["cat"], f"u{draw.integers(0, 900)}", given, number))
        columns = ["id", "image", "tags", "user", "split", "number"]
        schema = [(name, pl.List(pl.String) if name == "tags" else None) for name in columns]
        pl.DataFrame(rows, schema=schema, orient="row").write_parquet(folder / f"s{shard}.parquet")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    write_source(folder)
    return folder


def study_of(source):
    data = Data(image_size=8, test=0.3, validation=0.2, router=0.1)
    return Study(source=Source(format="parquet", uri=f"{source}/s*.parquet"), data=data)


def opened(folder, source):
    context = open_study(study_of(source), folder / "store")
    build_all(context, ("posts",))
    return context


def tables(context):
    artifact = context.need("splits")
    return [pl.read_parquet(artifact.file(f"{name}.parquet")) for name in ("splits", "leaks")], artifact.metadata


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory):
    context = opened(tmp_path_factory.mktemp("undisturbed"), source)
    build(context, "splits")
    return tables(context)


@pytest.fixture
def no_memory(monkeypatch):
    for module in (splits, split_check):
        monkeypatch.setattr(module, "MEMORY", 1)
    monkeypatch.setattr(reading, "BATCH", 37)


def same(found, wanted):
    return all(one.equals(other) for one, other in zip(found[0], wanted[0], strict=True)) and found[1] == wanted[1]


def test_the_splits_are_those_that_follow_from_all_posts_in_memory(source, undisturbed):
    (found, leaking), metadata = undisturbed
    files = [pl.read_parquet(source / f"s{shard}.parquet") for shard in range(SHARDS)]
    rows = pl.concat([file.unique("id", keep="first", maintain_order=True) for file in files])  # others are rejects
    posts = rows.select("id", "user", pl.col("split").alias("given"))
    look = signature(np.stack([picture(number) for number in rows["number"]]))
    used = np.flatnonzero(posts["id"].is_first_distinct().to_numpy())
    group_N = np.full(len(posts), ALONE)
    group_N[used] = used[groups_by_scan(look[used], 8.0)]
    data = study_of(source).data
    first_N = np.where(group_N == ALONE, len(posts), group_N)
    split = pl.Series(np.array(SPLITS)[decide(first_N, given_of(posts), Places(data).of(posts), data)])
    assert found["group"].to_list() == group_N.tolist()
    assert found["split"].to_list() == split.to_list()
    posts = posts.with_columns(found.select("shard", "position", "group", "split"))
    assert leaking.equals(leaks(posts, numbers_of(look)))
    apart = posts.filter(pl.col("split") != "dropped").group_by("user").agg(pl.col("split").n_unique())
    assert metadata["users_apart"] == apart.filter(pl.col("split") > 1).height > 100
    sizes = np.unique(group_N[used], return_counts=True)[1]
    assert (metadata["pictures"], metadata["largest_group"]) == (len(sizes), sizes.max())
    assert metadata["groups"] == (sizes > 1).sum() > 100
    assert metadata["duplicate_ids"] == len(posts) - len(used) > 10
    assert metadata["equal_signatures"] == len(used) - len(set(numbers_of(look)[used].tolist()))
    assert metadata["splits"] == dict.fromkeys(metadata["splits"], 0) | dict(split.value_counts().iter_rows())
    assert len(leaking) > 100


@pytest.mark.usefixtures("no_memory")
def test_without_memory_the_splits_are_the_same(tmp_path, source, undisturbed):
    context = opened(tmp_path, source)
    build(context, "splits")
    assert same(tables(context), undisturbed)
    folder = context.need("splits").path
    assert sorted(path.name for path in folder.iterdir()) == ["artifact.json", "leaks.parquet", "splits.parquet"]
    found = split_check.check(context)
    assert found.good
    assert (found.searched, found.given > 50) == (1000, True)
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]
    assert [*context.store.layout.scratch.iterdir()] == []


@pytest.mark.parametrize("write", [1, 20, 60])
def test_a_kill_midway_leaves_nothing_and_the_same_command_makes_the_same(tmp_path, source, undisturbed, write):
    context = opened(tmp_path, source)
    (tmp_path / "study.toml").write_text(dump_study(study_of(source)))
    command = [
        sys.executable,
        str(Path(__file__).parent / "helpers" / "killed_splits.py"),
        str(tmp_path / "study.toml"),
        str(write),
    ]
    assert subprocess.run(command, cwd=Path(__file__).parent.parent).returncode == -9
    folder = context.store.layout.partition("splits", None)
    assert context.find("splits") is None
    assert [path.name[:6] for path in folder.iterdir() if path.is_dir()] == [".part-"]  # the killed one's
    build(context, "splits")
    assert same(tables(context), undisturbed)
    assert [path.name for path in folder.iterdir() if path.is_dir()] == [context.version("splits")]


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize("write", [1, 20, 60])
def test_a_full_disk_is_named_and_nothing_stays(tmp_path, source, undisturbed, monkeypatch, write):
    context = opened(tmp_path, source)
    whole, left = os.write, write

    class Full:
        """A file of which the n-th write fails."""

        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, data):
            nonlocal left
            left -= 1
            if not left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return whole(self.file.fileno(), data)

    monkeypatch.setattr(sorting, "open", lambda *args, **more: Full(open(*args, **more)), raising=False)  # noqa: SIM115
    with pytest.raises(OSError, match="No space left on device") as error:
        build(context, "splits")
    assert "/splits/.part-" in error.value.filename
    folder = context.store.layout.partition("splits", None)
    assert [path for path in folder.iterdir() if path.is_dir()] == []
    build(context, "splits")
    assert same(tables(context), undisturbed)
