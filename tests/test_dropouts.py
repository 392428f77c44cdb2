"""A source that drops out or changes while it is read fails its shard: nothing is stored, and the next run reads it."""

import builtins
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import lance
import pytest

from helpers import hostile
from helpers.formats import WRITERS, drawn_posts
from moe_core.data.ingest import ingest
from moe_core.data.sources import ContentHashes, find_shards, raw, read_shard
from moe_core.data.sources.images import ImageFolder
from moe_core.data.sources.raw import Unusable
from moe_core.recipes import demo
from moe_core.settings import Data, Source, dump_study

ALIKE = ("parquet_uri", "parquet_odd_types", "parquet_captions", "parquet_hugging_face_paths")
FORMATS = [name for name in WRITERS if name not in ALIKE]
JOINED = ["folder_csv", "folder_jsonl", "parquet_hugging_face_paths", "yfcc_23", "yfcc_25_bz2"]
DATA = Data(image_size=16, max_reject_rate=1)
PICTURE = hostile.file_of(hostile.picture())


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(raw, "BATCH_BYTES", 3000)
    for module in ("arrow", "parquet", "lance_table"):
        monkeypatch.setattr(f"moe_core.data.sources.{module}.BATCH_BYTES", 3000)


def posts(user):
    """All of them good; a run of rejects is what a lost folder would add."""
    return [post | {"user": user, "image": PICTURE, "tags": ["cat"]} for post in drawn_posts(60)]


def ingested(source, root, meanwhile=None):
    """What lies in posts.lance afterwards. `meanwhile(n)` is called when batch n was read, and no more."""
    hashes = ContentHashes()
    (shard,) = find_shards(source, hashes)

    def batches():
        for number, batch in enumerate(read_shard(source, shard, root / ".sources", hashes)):
            yield batch
            if meanwhile:
                meanwhile(number)

    ingest(root, shard.key, batches(), DATA, lambda _: None)
    return stored(root)


def stored(root):
    return lance.dataset(str(root / "posts.lance")).to_table(columns=["id", "user"]).to_pylist()


def copy_over(new, old):
    """As `cp` writes: into the same file; then its times are set back."""
    about = os.stat(old)
    with open(old, "r+b") as file:
        file.write(Path(new).read_bytes())
        file.truncate()
    os.utime(old, ns=(about.st_atime_ns, about.st_mtime_ns))


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_overwritten_while_it_is_read_is_not_stored_under_the_old_digest(name, tmp_path, small_batches):
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

    with pytest.raises(ValueError, match=r"changed while they were read: run the same command again|damaged"):
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

    with pytest.raises(ValueError, match="changed while they were read: run the same command again"):
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

    with pytest.raises(ValueError, match=r"changed while they were read|cut short|damaged|not a readable"):
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

    with pytest.raises(ValueError, match="changed while they were read"):
        ingested(source, tmp_path / "study", alter)
    assert stored(tmp_path / "study") == []
    assert len(ingested(source, tmp_path / "study")) == 60 - (change == "removed")


def test_tars_that_change_while_images_are_taken_from_them_fail_the_shard(tmp_path, small_batches):
    (tmp_path / "in").mkdir()
    source = WRITERS["yfcc_tars"](posts("u1"), tmp_path / "in")
    data = bytearray((tmp_path / "in" / "a.tar").read_bytes())
    data[600] ^= 1
    (tmp_path / "other").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.tar was changed while it was read"):
        ingested(
            source, tmp_path / "study", lambda n: n == 1 and copy_over(tmp_path / "other", tmp_path / "in" / "a.tar")
        )
    assert stored(tmp_path / "study") == []

    def cut(number):
        if number == 1:
            for tar in ("a.tar", "b.tar"):
                os.truncate(tmp_path / "in" / tar, 512)

    with pytest.raises(ValueError, match="was cut short while it was read"):
        ingested(source, tmp_path / "study", cut)


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

    with pytest.raises(ValueError, match=r"run the same command again|no folder at|no CSV at"):
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
    with pytest.raises(ValueError, match="run the same command again"):
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

    with pytest.raises(ValueError, match="in was changed while it was read: run the same command again"):
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
    with pytest.raises(ValueError, match="changed while they were read"):
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
from moe_core.data.sources import find_shards
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
    with pytest.raises(ValueError, match="cannot be read: Structure needs cleaning; check the disk"):
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
    with pytest.raises(ValueError, match=r"/in cannot be read: No such file or directory; check the disk, the share"):
        images.read("a.png")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT, errno.EPERM])
def test_a_file_that_is_there_and_cannot_be_opened_fails_the_shard(number, folder, monkeypatch):
    def opened(path, *arguments, **more):
        if str(path) == str(folder / "a.png"):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *arguments, **more)

    real = builtins.open
    monkeypatch.setattr(builtins, "open", opened)
    with pytest.raises(ValueError, match=rf"a\.png cannot be read: {os.strerror(number)}; check the disk"):
        ImageFolder(folder).read("a.png")


def test_too_many_open_files_fail_the_shard(folder):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    images = ImageFolder(folder)
    assert images.read("a.png") == PICTURE
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(ValueError, match=r"a\.png cannot be read: Too many open files"):
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
    with pytest.raises(ValueError, match=r"/in cannot be read: Stale file handle; check the disk"):
        find_shards(source)


# The command

HOOK = """
import os
from moe_core.data import ingest

right = ingest._text

def after_the_first_batch(batch, before, data):
    found = right(batch, before, data)
    number = before // 1000
    try:
        os.close(os.open(f"{os.environ['MEANWHILE']}.{number}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return found
    exec(open(f"{os.environ['MEANWHILE']}").read(), {"number": number})
    return found

ingest._text = after_the_first_batch
"""


def commands(tmp_path, source, script):
    """A way to run `hardmoe`, whose first read of the source is interrupted by the script once a batch."""
    study = demo().model_copy(update={"source": source, "data": Data(image_size=8)})
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.toml").write_text(dump_study(study), "utf-8")
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    (tmp_path / "script").write_text(script)
    environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}
    environment |= {"PYTHONPATH": f"{tmp_path / 'hook'}", "MEANWHILE": str(tmp_path / "script")}

    def hardmoe(*arguments):
        command = [sys.executable, "-m", "pipelines.cli.main", *arguments, "--study", tmp_path / "study" / "study.toml"]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    return hardmoe


def many(user):
    one = posts(user)[0]
    return [one | {"id": f"p{n}", "image": SMALL} for n in range(2500)]


SMALL = hostile.file_of(hostile.picture(width=8, height=8))


@pytest.mark.slow
def test_run_fails_and_resumes_when_a_file_is_overwritten_by_cp(tmp_path):
    for which in ("in", "new"):
        (tmp_path / which).mkdir()
    source = WRITERS["parquet"](many("u1"), tmp_path / "in")
    new = WRITERS["parquet"](many("u2"), tmp_path / "new")
    script = f"""
import os, subprocess
if number == 1:
    about = os.stat({source.uri!r})
    subprocess.run(["cp", {new.uri!r}, {source.uri!r}], check=True)
    os.utime({source.uri!r}, ns=(about.st_atime_ns, about.st_mtime_ns))
"""
    hardmoe = commands(tmp_path, source, script)
    done = hardmoe("run", "--until", "posts")
    if done.returncode:  # else the command noticed the new file by itself, and read it
        assert f"{source.uri} or its images changed while they were read: run the same command again" in done.stderr
        assert stored(tmp_path / "study") == []
        done = hardmoe("run", "--until", "posts")
    assert (done.returncode, [row["user"] for row in stored(tmp_path / "study")]) == (0, ["u2"] * 2500)


@pytest.mark.slow
def test_run_fails_and_resumes_when_the_folder_goes_away_and_comes_back(tmp_path):
    (tmp_path / "in" / "pictures").mkdir(parents=True)
    for n in range(2500):
        (tmp_path / "in" / "pictures" / f"{n}.png").write_bytes(SMALL)
    rows = "".join(json.dumps({"file_name": f"pictures/{n}.png", "tags": ["cat"]}) + "\n" for n in range(2500))
    (tmp_path / "in" / "posts.jsonl").write_text(rows)
    source = Source(format="folder", uri=str(tmp_path / "in"))
    here, away = str(tmp_path / "in" / "pictures"), str(tmp_path / "away")
    script = f"""
import os
if number == 0:
    os.rename({here!r}, {away!r})
if number == 1:
    os.rename({away!r}, {here!r})
"""
    hardmoe = commands(tmp_path, source, script)
    done = hardmoe("run", "--until", "posts")
    assert done.returncode == 1, done.stdout
    assert "was absent when its row was read, and is there now: check the disk" in done.stderr
    assert stored(tmp_path / "study") == []
    assert json.loads(hardmoe("status", "--json").stdout)["posts"]["read"] == 0
    done = hardmoe("run", "--until", "posts")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(stored(tmp_path / "study")) == 2500


@pytest.mark.slow
def test_run_says_that_a_mapped_file_was_cut_short_and_resumes(tmp_path):
    (tmp_path / "in").mkdir()
    source = WRITERS["arrow_stream"](many("u1"), tmp_path / "in")
    data = Path(source.uri).read_bytes()
    hardmoe = commands(tmp_path, source, f"import os\nif number == 0:\n    os.truncate({source.uri!r}, 4096)\n")
    done = hardmoe("run", "--until", "posts")
    assert done.returncode == 1, done.stdout
    assert "killed by signal 7 (a file was cut short while it was mapped into memory" in done.stderr
    assert "posts:posts" in done.stderr
    Path(source.uri).write_bytes(data)
    done = hardmoe("run", "--until", "posts")
    assert (done.returncode, len(stored(tmp_path / "study"))) == (0, 2500), done.stderr
