"""A file or an image that is overwritten while it is read fails its shard: no post lies under another's hash."""

import os
import shutil
from pathlib import Path

import lance
import pytest

from helpers import hostile
from helpers.formats import WRITERS
from helpers.unsteady import JOINED, ingested, posts, stored
from moe_core.data.sources import raw
from moe_core.data.sources.shards import find_shards, read_shard
from moe_core.errors import BadSource

ALIKE = ("parquet_uri", "parquet_odd_types", "parquet_captions", "parquet_hugging_face_paths")
FORMATS = [name for name in WRITERS if name not in ALIKE]


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(raw, "BATCH_BYTES", 3000)
    for module in ("arrow", "parquet", "lance_table"):
        monkeypatch.setattr(f"moe_core.data.sources.{module}.BATCH_BYTES", 3000)


def copy_over(new, old):
    """As `cp` writes: into the same file; then its times are set back."""
    about = os.stat(old)
    with open(old, "r+b") as file:
        file.write(Path(new).read_bytes())
        file.truncate()
    os.utime(old, ns=(about.st_atime_ns, about.st_mtime_ns))


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_overwritten_while_it_is_read_is_not_stored_under_the_old_content_hash(name, tmp_path, small_batches):
    for which in ("old", "new"):
        (tmp_path / which).mkdir()
    source = WRITERS[name](posts("u1"), tmp_path / "old")
    (shard,) = find_shards(source)
    (other,) = find_shards(WRITERS[name](posts("u2"), tmp_path / "new"))

    def overwrite(number):
        if number == 1 and name == "lance":
            lance.write_dataset(lance.dataset(other.path).to_table(), shard.path, mode="overwrite")
        elif number == 1:
            copy_over(other.path, shard.path)

    with pytest.raises(BadSource, match=r"changed while they were read: run the same command again|damaged"):
        ingested(source, tmp_path / "study", overwrite)
    assert stored(tmp_path / "study") == []
    found = ingested(source, tmp_path / "study")
    assert len(found) == 60
    assert {row["user"] for row in found} == {"u2"}


@pytest.mark.parametrize("name", ["webdataset", "arrow_stream"])
def test_a_file_that_is_another_for_a_while_fails_the_shard(name, tmp_path, small_batches):
    for which in ("old", "new"):
        (tmp_path / which).mkdir()
    source = WRITERS[name](posts("u1"), tmp_path / "old")
    (shard,) = find_shards(source)
    (other,) = find_shards(WRITERS[name](posts("u2"), tmp_path / "new"))
    data = {1: Path(other.path).read_bytes(), 3: Path(shard.path).read_bytes()}

    def overwrite(number):
        if number in data:
            with open(shard.path, "r+b") as file:
                file.write(data[number])
                file.truncate()

    with pytest.raises(BadSource, match="changed while they were read: run the same command again"):
        ingested(source, tmp_path / "study", overwrite)
    assert stored(tmp_path / "study") == []
    assert {row["user"] for row in ingested(source, tmp_path / "study")} == {"u1"}


@pytest.mark.parametrize("name", ["parquet", "folder_csv", "webdataset", "yfcc_tars"])
def test_a_file_overwritten_behind_its_last_row_is_seen_too(name, tmp_path, small_batches):
    source = WRITERS[name](posts("u1"), tmp_path)
    (shard,) = find_shards(source)
    last = sum(1 for _ in read_shard(source, shard)) - 1
    data = Path(shard.path).read_bytes()

    def touch(number):
        if number == last:  # same size, same time: only its bytes tell
            (tmp_path / "other").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            copy_over(tmp_path / "other", shard.path)

    with pytest.raises(BadSource, match=r"changed while they were read|cut short|damaged|not a readable"):
        ingested(source, tmp_path / "study", touch)
    assert stored(tmp_path / "study") == []


@pytest.mark.parametrize("name", JOINED)
@pytest.mark.parametrize("change", ["overwritten", "removed", "added"])
def test_images_that_change_while_they_are_read_fail_the_shard(name, change, tmp_path, small_batches):
    (tmp_path / "in").mkdir()
    source = WRITERS[name](posts("u1"), tmp_path / "in")
    pictures = sorted(path for path in (tmp_path / "in").rglob("*") if path.suffix in (".png", ".jpg"))

    def alter(number):
        if number == 1 and change == "overwritten":
            pictures[0].write_bytes(hostile.file_of(hostile.picture("L")))
        elif number == 1 and change == "removed":
            pictures[-1].unlink()
        elif number == 1:
            shutil.copy(pictures[0], pictures[0].with_name("added.png"))

    with pytest.raises(BadSource, match="changed while they were read"):
        ingested(source, tmp_path / "study", alter)
    assert stored(tmp_path / "study") == []
    assert len(ingested(source, tmp_path / "study")) == 60 - (change == "removed")


def test_tars_that_change_while_images_are_taken_from_them_fail_the_shard(tmp_path, small_batches):
    (tmp_path / "in").mkdir()
    source = WRITERS["yfcc_tars"](posts("u1"), tmp_path / "in")
    data = bytearray((tmp_path / "in" / "a.tar").read_bytes())
    data[600] ^= 1
    (tmp_path / "other").write_bytes(data)
    with pytest.raises(BadSource, match=r"a\.tar was changed while it was read"):
        ingested(
            source, tmp_path / "study", lambda n: n == 1 and copy_over(tmp_path / "other", tmp_path / "in" / "a.tar")
        )
    assert stored(tmp_path / "study") == []

    def cut(number):
        if number == 1:
            for tar in ("a.tar", "b.tar"):
                os.truncate(tmp_path / "in" / tar, 512)

    with pytest.raises(BadSource, match="was cut short while it was read"):
        ingested(source, tmp_path / "study", cut)
