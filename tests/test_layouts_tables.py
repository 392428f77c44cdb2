"""Tables with a log, saved datasets, blobs and extension types: read, or refused by name."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.formats import yfcc_line
from helpers.layouts import described, parquet, picture, rows_of
from moe_core.data.sources.guessing import guess_format
from moe_core.data.sources.shards import find_shards
from moe_core.errors import BadSource
from moe_core.settings import Source

MARKS = {
    "Delta": ["_delta_log/00000000000000000000.json"],
    "Iceberg": ["metadata/00000-0b1c.metadata.json", "metadata/snap-1.avro"],
    "Iceberg of Hadoop": ["metadata/version-hint.text", "metadata/v1.metadata.json"],
    "Hudi": [".hoodie/hoodie.properties"],
}


@pytest.mark.parametrize("kind", MARKS)
@pytest.mark.parametrize("where", ["part-0.parquet", "date=1/part-0.parquet", "data/a/b/part-0.parquet"])
def test_tables_with_a_log_are_refused_by_name(tmp_path, kind, where):
    file = parquet(tmp_path / "t" / where, ["p0"])
    for name in MARKS[kind]:
        (tmp_path / "t" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "t" / name).write_text("{}")
    wanted = rf"{tmp_path}/t is an? {kind.split()[0]} table: .* Export its current rows"
    for uri in (tmp_path, tmp_path / "t", file.parent, tmp_path / "t" / "**" / "*.parquet"):
        with pytest.raises(BadSource, match=wanted):
            find_shards(Source(format="parquet", uri=str(uri)))
    assert len(find_shards(Source(format="parquet", uri=str(file)))) == 1  # which was asked for by its name
    (tmp_path / "t" / "metadata").mkdir(exist_ok=True)


def test_a_table_with_a_log_elsewhere_is_refused():
    import fsspec

    memory = fsspec.filesystem("memory")
    with memory.open("lake/t/part-0.parquet", "wb") as file:
        pq.write_table(pa.table({"id": ["a"], "image": [picture()], "tags": [["cat"]]}), file)
    with memory.open("lake/t/_delta_log/0.json", "wb") as file:
        file.write(b"{}")
    with pytest.raises(BadSource, match="memory://lake/t is a Delta table"):
        find_shards(Source(format="parquet", uri="memory://lake"))


def test_a_folder_called_metadata_is_no_iceberg(tmp_path):
    parquet(tmp_path / "a.parquet", ["p0"])
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "notes.json").write_text("{}")
    assert len(find_shards(Source(format="parquet", uri=str(tmp_path)))) == 1


def arrow(path, ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = pa.table({"id": list(ids), "image": [picture()] * len(ids), "tags": [["cat"]] * len(ids)})
    with pa.ipc.new_stream(path, columns.schema) as file:
        file.write_table(columns)


def saved(folder, ids, **state):
    """As `save_to_disk` of Hugging Face's datasets writes it, in two files."""
    for n, name in enumerate(ids):
        arrow(folder / f"data-{n:05d}-of-{len(ids):05d}.arrow", [name])
    names = [{"filename": f"data-{n:05d}-of-{len(ids):05d}.arrow"} for n in range(len(ids))]
    (folder / "state.json").write_text(json.dumps({"_data_files": names, "_split": None} | state))
    (folder / "dataset_info.json").write_text("{}")


def ids_of(source):
    return sorted(row["id"] for row in rows_of(source))


def test_saved_datasets_are_read_by_their_state(tmp_path):
    saved(tmp_path / "d", ["a", "b"])
    arrow(tmp_path / "d" / "cache-0123456789abcdef.arrow", ["x"])
    arrow(tmp_path / "d" / "data-00000-of-00001.arrow", ["old"])  # of a state before
    assert guess_format(str(tmp_path / "d")) == "arrow"
    for uri in (tmp_path / "d", tmp_path / "d" / "*.arrow"):
        assert ids_of(Source(format="arrow", uri=str(uri))) == ["a", "b"]
    (tmp_path / "d" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(BadSource, match=r"state.json names data-00001-of-00002.arrow, which are missing"):
        find_shards(Source(format="arrow", uri=str(tmp_path / "d")))


def test_splits_of_saved_datasets_are_splits_and_others_are_not_read(tmp_path):
    for split in ("train", "test", "old"):
        saved(tmp_path / split, [split])
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    source = Source(format="arrow", uri=str(tmp_path))
    assert {row["id"]: row["split"] for row in rows_of(source)} == {"train": "train", "test": "test"}


def test_rows_that_an_index_picks_are_refused(tmp_path):
    saved(tmp_path, ["a"], _indices_data_files=[{"filename": "indices.arrow"}])
    arrow(tmp_path / "indices.arrow", ["0"])
    with pytest.raises(BadSource, match=r"state.json picks rows by an index file.*flatten_indices"):
        find_shards(Source(format="arrow", uri=str(tmp_path)))


def test_caches_of_datasets_are_no_shards(tmp_path):
    arrow(tmp_path / "cats-train.arrow", ["a"])
    for name in ("cache-0123456789abcdef.arrow", "cache-01ab_00000_of_00004.arrow", "indices.arrow"):
        arrow(tmp_path / name, ["x"])
    assert ids_of(Source(format="arrow", uri=str(tmp_path))) == ["a"]
    (tmp_path / "cats-train.arrow").unlink()
    with pytest.raises(BadSource, match="but caches"):
        find_shards(Source(format="arrow", uri=str(tmp_path)))


@pytest.mark.parametrize("glob", [False, True])
def test_companions_of_yfcc_are_no_sources(tmp_path, glob):
    line = yfcc_line({"id": "1", "user": "u", "taken_at": "", "tags": ["cat"]}, 23)
    (tmp_path / "yfcc100m_dataset").write_text(line)
    for name in ("yfcc100m_hash", "yfcc100m_autotags-v1.bz2", "YFCC100M_places", "yfcc100m_exif.gz", "yfcc100m_lines"):
        (tmp_path / name).write_text("1\tx\n")
    (tmp_path / "1.png").write_bytes(picture())
    uri = f"{tmp_path}/{'yfcc100m_*' if glob else ''}"
    unready = []
    source = Source(format="yfcc", uri=uri, images=str(tmp_path))
    (shard,) = find_shards(source, None, unready)
    assert (shard.path, unready) == (str(tmp_path / "yfcc100m_dataset"), [])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("photos.zip", "photos.zip is an archive, which is not read: unpack it"),
        ("posts.csv.gz", "posts.csv.gz is a compressed table, which is not read: unpack it"),
        ("posts.jsonl.zst", "posts.jsonl.zst is a compressed table"),
        ("posts.json", "posts.json is one JSON document, which is not read: write one object a line"),
        ("posts.tar.bz2", "posts.tar.bz2 is a compressed tar, which is not read: unpack it to a .tar"),
        ("posts.xlsx", "posts.xlsx is a spreadsheet, which is not read: save it as CSV"),
        ("posts.sqlite", "posts.sqlite is a database"),
        ("posts.tfrecord", "posts.tfrecord is a record file"),
    ],
)
def test_files_of_formats_that_are_not_read_are_named(tmp_path, name, why):
    (tmp_path / name).write_bytes(b"x" * 100)
    for uri in (tmp_path / name, tmp_path):
        with pytest.raises(BadSource, match=r".") as caught:
            guess_format(str(uri))
        assert why in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(BadSource, match=r"which is not read|wanted one of"):
        find_shards(Source(format="folder", uri=str(tmp_path / name)))


# Types of columns


def blob(kind):
    """Two pictures as Lance keeps large values apart: in a column, in a field of a struct, or in its newer type."""
    from lance import blob_array, blob_field

    pictures, mark = [picture(0), picture(1)], {"lance-encoding:blob": "true"}
    if kind == "type":
        return blob_array(pictures), blob_field("image")
    if kind == "column":
        return pa.array(pictures, pa.large_binary()), pa.field("image", pa.large_binary(), metadata=mark)
    held = pa.struct([pa.field("bytes", pa.large_binary(), metadata=mark), pa.field("path", pa.string())])
    return pa.array([{"bytes": data, "path": "x"} for data in pictures], held), pa.field("image", held)


@pytest.mark.parametrize("kind", ["column", "struct", "type"])
def test_blobs_of_lance_are_pictures(tmp_path, kind):
    import lance

    array, field = blob(kind)
    schema = pa.schema([("id", pa.string()), field, ("tags", pa.list_(pa.string()))])
    rows = pa.table([pa.array(["a", "b"]), array, pa.array([["cat"], ["dog"]])], schema=schema)
    lance.write_dataset(rows, str(tmp_path / "x.lance"), data_storage_version="2.2" if kind == "type" else "stable")
    source = Source(format="lance", uri=str(tmp_path / "x.lance"))
    assert [(row["image"], row["tags"]) for row in rows_of(source)] == [(picture(0), ["cat"]), (picture(1), ["dog"])]
    assert "Problems: none in 2 images decoded" in described(source)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "lance"])
def test_columns_of_extension_types_are_read(tmp_path, kind):
    from uuid import UUID

    import lance

    names = [str(UUID(int=n)) for n in (1, 2, 3)]
    ids = pa.array([UUID(name).bytes for name in names[:2]] + [None], pa.binary(16))
    texts = pa.array(['["cat", "new york"]', None, '["dog"]'])
    columns = {
        "id": pa.ExtensionArray.from_storage(pa.uuid(), ids),
        "tags": pa.ExtensionArray.from_storage(pa.json_(), texts),
        "user": pa.ExtensionArray.from_storage(pa.opaque(pa.string(), "name", "vendor"), pa.array(["u", "v", "w"])),
        "image": [picture()] * 3,
    }
    if kind == "lance":
        columns["user"] = ["u", "v", "w"]  # lance does not store this type
    rows = pa.table(columns)
    path = tmp_path / f"x.{kind}"
    if kind == "parquet":
        pq.write_table(rows, path)
    elif kind == "arrow":
        with pa.ipc.new_file(path, rows.schema) as file:
            file.write_table(rows)
    else:
        lance.write_dataset(rows, str(path))
    found = rows_of(Source(format=kind, uri=str(path)))
    assert [row["id"] for row in found] == [*names[:2], None]
    assert [row["tags"] for row in found] == [["cat", "new york"], None, ["dog"]]
    assert [row["user"] for row in found] == ["u", "v", "w"]
