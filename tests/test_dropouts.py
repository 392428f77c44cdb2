"""A source that goes away while it is read fails its shard: nothing is stored, and the next run reads it."""

import builtins
import errno
import os
import resource
import shutil
import subprocess
import sys
import tempfile

import pytest

from helpers.formats import WRITERS
from helpers.unsteady import JOINED, PICTURE, ingested, posts, stored
from moe_core.data.sources import raw
from moe_core.data.sources.images import ImageFolder
from moe_core.data.sources.raw import Unusable
from moe_core.data.sources.shards import find_shards
from moe_core.errors import BadSource
from moe_core.settings import Source


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(raw, "BATCH_BYTES", 3000)
    for module in ("arrow", "parquet", "lance_table"):
        monkeypatch.setattr(f"moe_core.data.sources.{module}.BATCH_BYTES", 3000)


@pytest.mark.parametrize("name", JOINED)
@pytest.mark.parametrize("back", [True, False])
@pytest.mark.parametrize("way", ["renamed", "emptied"])
def test_a_folder_of_images_that_goes_away_loses_no_post(name, back, way, tmp_path, small_batches):
    """Renamed away as a whole, or with an empty folder in its place, as a mount that is gone leaves it."""
    (tmp_path / "in").mkdir()
    source = WRITERS[name](posts("u1"), tmp_path / "in")
    inside = tmp_path / "in" / ("data" if name == "yfcc_25_bz2" else "pictures")

    def meanwhile(number):
        if number == 1:
            inside.rename(tmp_path / "away")
            if way == "emptied":
                inside.mkdir()
        if number == 3 and back:
            if way == "emptied":
                inside.rmdir()
            (tmp_path / "away").rename(inside)

    with pytest.raises(BadSource, match=r"run the same command again|no folder at|no CSV at"):
        ingested(source, tmp_path / "study", meanwhile)
    assert stored(tmp_path / "study") == []
    if (tmp_path / "away").exists():
        shutil.rmtree(inside, ignore_errors=True)
        (tmp_path / "away").rename(inside)
    assert len(ingested(source, tmp_path / "study")) == 60


@pytest.fixture
def mounted(tmp_path):
    """A folder that is a mount of another, and ways to take it away and bring it back."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "in" / "pictures").mkdir(parents=True)

    def attach():
        command = ["mount", "--bind", tmp_path / "disk", tmp_path / "in" / "pictures"]
        return subprocess.run(command, capture_output=True, text=True)

    def detach():
        subprocess.run(["umount", "-l", tmp_path / "in" / "pictures"], check=True)

    done = attach()
    if done.returncode:
        pytest.skip(f"nothing may be mounted here: {done.stderr.strip()}")
    yield tmp_path / "in", attach, detach
    subprocess.run(["umount", "-l", tmp_path / "in" / "pictures"], capture_output=True)


@pytest.mark.parametrize("back", [3, None])
def test_a_mount_that_goes_away_loses_no_post(back, mounted, tmp_path, small_batches):
    folder, attach, detach = mounted
    WRITERS["yfcc_23"](posts("u1"), tmp_path / "out")
    shutil.copytree(tmp_path / "out" / "pictures", folder / "pictures", dirs_exist_ok=True)
    shutil.copy(tmp_path / "out" / "yfcc100m_dataset", folder / "yfcc100m_dataset")
    source = Source(format="yfcc", uri=str(folder / "yfcc100m_dataset"), images=str(folder / "pictures"))
    steps = {1: detach, back: attach}
    with pytest.raises(BadSource, match="run the same command again"):
        ingested(source, tmp_path / "study", lambda number: steps.get(number, lambda: None)())
    assert stored(tmp_path / "study") == []
    if back is None:
        attach()
    assert len(ingested(source, tmp_path / "study")) == 60


@pytest.fixture
def tables(tmp_path):
    """Two folders of sixty pictures and a table, alike to the times of the files."""
    for version in ("v1", "v2"):
        for n in range(60):
            path = tmp_path / version / f"d{n // 10}" / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(PICTURE)
            os.utime(path, (1e9, 1e9))
        rows = "".join(f"d{n // 10}/{n}.png,cat\n" for n in range(60))
        (tmp_path / version / "posts.csv").write_text("file_name,tags\n" + rows)
    return tmp_path


def point(link, target):
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def test_a_folder_of_classes_that_is_empty_for_a_while_loses_no_post(tmp_path, monkeypatch):
    """As a mount that goes away and comes back, whose pictures nobody asked for meanwhile."""
    for name in "abcd":
        (tmp_path / "in" / name).mkdir(parents=True)
        for n in range(30):
            (tmp_path / "in" / name / f"{n}.png").write_bytes(PICTURE)
    monkeypatch.setattr(raw, "BATCH", 20)
    here, away = tmp_path / "in" / "c", tmp_path / "away"
    source = Source(format="imagefolder", uri=str(tmp_path / "in"))

    def meanwhile(number):
        if number == 0:
            here.rename(away)
            here.mkdir()
        if number == 3:
            here.rmdir()
            away.rename(here)

    with pytest.raises(BadSource, match="in was changed while it was read: run the same command again"):
        ingested(source, tmp_path / "study", meanwhile)
    assert stored(tmp_path / "study") == []
    assert len(ingested(source, tmp_path / "study")) == 120


def test_a_link_to_the_source_that_leads_elsewhere_for_a_while_loses_no_post(tables, monkeypatch):
    monkeypatch.setattr(raw, "BATCH", 20)
    link = tables / "in"
    point(link, "v1")
    steps = {0: "v2", 1: "v1"}
    source = Source(format="folder", uri=str(link))
    found = ingested(source, tables / "study", lambda number: number in steps and point(link, steps[number]))
    assert len(found) == 60


def test_a_link_to_a_folder_of_images_that_leads_elsewhere_is_a_change(tables, monkeypatch):
    monkeypatch.setattr(raw, "BATCH", 20)
    point(tables / "pictures", "v1")
    (tables / "posts.csv").write_text(
        "file_name,tags\n" + "".join(f"pictures/d{n // 10}/{n}.png,cat\n" for n in range(60))
    )
    source = Source(format="folder", uri=str(tables / "posts.csv"))
    (shard,) = find_shards(source)
    with pytest.raises(BadSource, match="changed while they were read"):
        ingested(source, tables / "study", lambda number: number == 0 and point(tables / "pictures", "v2"))
    assert stored(tables / "study") == []
    assert find_shards(source)[0].content_hash != shard.content_hash


@pytest.mark.parametrize("wild", [False, True])
def test_a_file_that_cannot_be_looked_at_does_not_leave_the_study(wild, tmp_path):
    """For other reasons than that it is gone: errors of file systems and networks among them."""
    (tmp_path / "in").mkdir()
    source = WRITERS["parquet"](posts("u1"), tmp_path / "in")
    shutil.copy(source.uri, tmp_path / "in" / "b.parquet")
    (tmp_path / "in" / "c.parquet").symlink_to("nowhere")
    (tmp_path / "in" / "d.parquet").symlink_to("d.parquet")
    source = source.model_copy(update={"uri": str(tmp_path / "in" / "*.parquet") if wild else str(tmp_path / "in")})
    assert len(find_shards(source)) == 2
    (tmp_path / "in" / "b.parquet").unlink()
    (tmp_path / "closed").mkdir(mode=0)
    (tmp_path / "in" / "b.parquet").symlink_to(tmp_path / "closed" / "b.parquet")
    code = """
import os, sys
import pyarrow.fs, pyarrow.parquet
from moe_core.data.sources import parquet
from moe_core.data.sources.shards import find_shards
from moe_core.settings import Source
os.geteuid() or os.seteuid(65534)
find_shards(Source(format="parquet", uri=sys.argv[1]))
"""
    for path in (tmp_path / "in", *(tmp_path / "in").parents):
        if path.owner() == tmp_path.owner() and path.is_relative_to(tempfile.gettempdir()):
            path.chmod(path.stat().st_mode | 0o555)
    done = subprocess.run([sys.executable, "-c", code, source.uri], capture_output=True, text=True)
    assert "cannot be read: Permission denied; check the disk, the share or the permissions" in done.stderr


@pytest.mark.parametrize("format", ["imagefolder", "coco", "lance", "webdataset"])
def test_a_source_that_does_not_answer_is_one_line(format, tmp_path, monkeypatch):
    def scandir(path):
        raise OSError(errno.EUCLEAN, os.strerror(errno.EUCLEAN), path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(BadSource, match="cannot be read: Structure needs cleaning; check the disk"):
        find_shards(Source(format=format, uri=str(tmp_path)))


# One file


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(PICTURE)
    return tmp_path / "in"


def test_only_what_is_really_absent_is_a_reject(folder, tmp_path):
    (folder / "ring.png").symlink_to("ring.png")
    (folder / "nowhere.png").symlink_to("../nowhere.png")
    images = ImageFolder(folder)
    names = ["b.png", "deep/b.png", "a.png/b.png", "ring.png", "nowhere.png", "x" * 300, "nul\0.png", "", " "]
    for name in names:
        with pytest.raises(Unusable, match=r"^no_image_file"):
            images.read(name)
    folder.rename(tmp_path / "away")
    with pytest.raises(BadSource, match=r"/in cannot be read: No such file or directory; check the disk, the share"):
        images.read("a.png")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT, errno.EPERM])
def test_a_file_that_is_there_and_cannot_be_opened_fails_the_shard(number, folder, monkeypatch):
    def opened(path, *arguments, **more):
        if str(path) == str(folder / "a.png"):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *arguments, **more)

    real = builtins.open
    monkeypatch.setattr(builtins, "open", opened)
    with pytest.raises(BadSource, match=rf"a\.png cannot be read: {os.strerror(number)}; check the disk"):
        ImageFolder(folder).read("a.png")


def test_too_many_open_files_fail_the_shard(folder):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    images = ImageFolder(folder)
    assert images.read("a.png") == PICTURE
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(BadSource, match=r"a\.png cannot be read: Too many open files"):
            images.read("a.png")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_file_without_permission_fails_the_shard(folder, tmp_path):
    (folder / "a.png").chmod(0)
    code = (
        "import os, sys; from moe_core.data.sources.images import ImageFolder as F; os.geteuid() or os.seteuid(65534)"
    )
    for path in (folder, *folder.parents):  # where pytest keeps its files is closed to others
        if path.owner() == folder.owner() and path.is_relative_to(tempfile.gettempdir()):
            path.chmod(path.stat().st_mode | 0o111)
    command = [sys.executable, "-c", f"{code}; F(sys.argv[1]).read('a.png')", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "a.png cannot be read: Permission denied; check the disk, the share or the permissions" in done.stderr


def test_a_folder_that_does_not_answer_is_not_taken_for_an_empty_one(folder, monkeypatch):
    def scandir(path):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)

    (folder / "posts.csv").write_text("file_name,tags\na.png,cat\n")
    source = Source(format="folder", uri=str(folder))
    find_shards(source)
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(BadSource, match=r"/in cannot be read: Stale file handle; check the disk"):
        find_shards(source)
