"""Data sets and sources whose names some library reads as a pattern, a URL or an option, or that are not UTF-8."""

import io
import os
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from helpers.growing import opened
from helpers.odd_names import FOLDER, ODD, png
from helpers.without_controls import quick_study
from moe_core.data.sources.guessing import guess_format
from moe_core.data.sources.shards import find_shards, read_shard
from moe_core.engine.build import build
from moe_core.settings import Source
from moe_core.tables.lance_tags import lance_tag_of, lance_tags
from moe_core.tables.location import tables_in
from moe_core.tables.reading import read_rows
from moe_core.tables.shards import replace_rows
from moe_core.tables.vectors import ids_in, vectors_in, write_vectors

# what a name may hold, and each library reads otherwise than a file system does
NAMES = [
    ODD,
    FOLDER,
    "trailing ",
    "-leading",
    "~",
    "line\nend",
    "\"'\\",
    "🐱\u202e",
    "é" * 120,
    "a:b",
    "{a,b}",
    "%2e%2e",
    os.fsdecode(b"caf\xe9"),
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_lance_writes_into_the_folder_of_that_name_alone(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    schema = pa.schema({"position": pa.int64(), "id": pa.string()})
    rows = [pa.record_batch([[0, 1], ["a", "b"]], schema=schema)]
    replace_rows(tables_in(folder).posts, schema, "s0", rows, ["posts.s0.v1"])
    assert read_rows(tables_in(folder).posts, "posts.s0.v1", "s0", ["id"])["id"].to_pylist() == ["a", "b"]
    assert set(lance_tags(tables_in(folder).posts)) == {"posts.s0.v1"}
    vectors_BD = np.eye(2, dtype=np.float32)
    parts = [({"id": pa.array(["a", "b"])}, vectors_BD)]
    write_vectors(folder / "x.lance", {"id": pa.string()}, "vector", 2, parts)
    assert list(ids_in(folder / "x.lance")) == ["a", "b"]
    assert np.array_equal(np.concatenate(list(vectors_in(folder / "x.lance", "vector"))), vectors_BD)
    assert os.listdir(tmp_path) == [name]


def test_a_data_set_that_takes_the_place_of_another_is_the_one_that_is_read(tmp_path):
    schema = pa.schema({"position": pa.int64()})
    for count in (1, 2):
        (tmp_path / ODD).mkdir()
        table = tables_in(tmp_path / ODD).posts
        replace_rows(
            table, schema, "s0", [pa.record_batch([list(range(count))], schema=schema)], [f"posts.s0.v{count}"]
        )
        assert read_rows(table, f"posts.s0.v{count}", "s0", ["position"]).num_rows == count
        shutil.rmtree(tmp_path / ODD)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_lance_table_of_that_name_is_a_source(tmp_path, name):
    import lance

    lance.write_dataset(pa.table({"id": ["a"], "image": [png()], "tags": [["x"]]}), tmp_path / "plain")
    (tmp_path / "plain").rename(tmp_path / f"{name[:100]}.lance")
    source = Source(format="lance", uri=str(tmp_path))
    (shard,) = find_shards(source)
    assert [row["id"] for batch in read_shard(source, shard) for row in batch.to_pylist()] == ["a"]
    assert os.listdir(tmp_path) == [f"{name[:100]}.lance"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_files_of_that_name_are_sources_also_by_a_glob_below_that_name(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    with tarfile.open(folder / f"{name[:100]}.tar", "w") as tar:
        for member, data in (("a.png", png()), ("a.cls", b"x")):
            about = tarfile.TarInfo(member)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    for uri in (folder, folder / "*.tar", folder / f"{name[:100]}.tar"):
        source = Source(format="webdataset", uri=str(uri))
        unready = []
        (shard,) = find_shards(source, None, unready)
        assert not unready
        assert shard.path == str(folder / f"{name[:100]}.tar")
        assert [row["id"] for batch in read_shard(source, shard) for row in batch.to_pylist()] == ["a"]
        assert guess_format(str(uri)) == "webdataset"


def test_posts_and_rejects_of_files_whose_names_are_not_utf8_are_counted(tmp_path):
    folder = tmp_path / "source" / os.fsdecode(b"user=caf\xe9")
    folder.mkdir(parents=True)
    table = pa.table({"id": ["a", "b"], "image": [png(0), b"no"], "tags": [["x"], ["y"]]})
    with open(folder / os.fsdecode(b"\xe9.parquet"), "wb") as file:
        pa.parquet.write_table(table, file)
    context = opened(quick_study(source=Source(format="parquet", uri=str(tmp_path / "source"))), tmp_path / "store")
    (shard,) = context.shards
    made = build(context, "posts", shard.key).artifact
    assert (made.metadata["accepted"], made.metadata["rejected"]) == (1, 1)
    tag = lance_tag_of(shard.key, made.version)
    posts = read_rows(tables_in(tmp_path / "store").posts, tag, shard.key, ["user"])
    assert posts["user"].to_pylist() == ["caf\\udce9"]
    rejects = read_rows(tables_in(tmp_path / "store").rejects, tag, shard.key, ["id", "source"])
    assert rejects.to_pylist()[0]["source"].endswith("/user=caf\\udce9/\\udce9.parquet")


def test_images_of_yfcc_lie_in_tars_with_names_that_are_not_utf8(tmp_path):
    from moe_core.data.sources.files import walk
    from moe_core.data.sources.tars import TarImages

    tars = tmp_path / os.fsdecode(b"caf\xe9")
    tars.mkdir()
    with tarfile.open(tars / os.fsdecode(b"\xe9.tar"), "w") as tar:
        for member in ("12.jpg", os.fsdecode(b"\xe9.jpg")):
            about = tarfile.TarInfo(member)
            about.size = 3
            tar.addfile(about, io.BytesIO(b"jpg"))
    for _ in range(2):  # the second time by the index of the first
        with TarImages(list(walk(tars)), tmp_path / "cache").open() as images:
            assert images.read("12") == b"jpg"
            assert images.read(os.fsdecode(b"\xe9")) == b"jpg"
