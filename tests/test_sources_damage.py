"""Files that are empty, cut short, damaged, or half there: rows or one line, and nothing is taken for whole."""

import json
import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from helpers.formats import WRITERS, random_posts
from helpers.reading import ANYTHING, said
from moe_core.data.sources.scan import ContentHashes
from moe_core.data.sources.shards import find_shards, read_shard
from moe_core.errors import BadSource
from moe_core.recipes import demo
from moe_core.settings import Source
from moe_core.study_file import dump_study


@pytest.fixture(scope="module")
def posts():
    return random_posts()


@pytest.mark.parametrize(("kind", "suffix"), [("parquet", "parquet"), ("arrow", "arrow"), ("webdataset", "tar")])
def test_files_that_are_empty_or_not_what_they_are_called(tmp_path, kind, suffix):
    path = tmp_path / f"x.{suffix}"
    source = Source(format=kind, uri=str(path))
    assert f"no {'tar of samples' if suffix == 'tar' else kind.capitalize() + ' file'} at" in said(source)
    path.write_bytes(b"")
    assert "is empty (0 bytes)" in said(source)
    path.write_bytes(b"nonsense" * 200)
    assert "is not a readable" in said(source) or "is damaged" in said(source)


@pytest.mark.parametrize("name", ["parquet", "arrow_file", "arrow_stream", "webdataset", "webdataset_gz"])
def test_files_that_are_cut_short_anywhere(name, posts, tmp_path):
    source = WRITERS[name](posts, tmp_path)
    path = Path(find_shards(source)[0].path)
    data = path.read_bytes()
    for kept in (len(data) - 1, len(data) * 2 // 3, 513, 20):
        if name == "webdataset" and kept == len(data) - 1:
            continue  # zeros after the end mark are padding
        path.write_bytes(data[:kept])
        assert f"{path} is" in said(source)


def test_a_tar_cut_between_members_is_not_taken_for_a_whole_one(posts, tmp_path):
    source = WRITERS["webdataset"](posts[:4], tmp_path)
    path = tmp_path / "posts.tar"
    with tarfile.open(path) as tar:
        ends = [member.offset for member in tar.getmembers()]
    data = path.read_bytes()
    for kept in (ends[3], ends[3] + 100):
        path.write_bytes(data[:kept])
        assert "cut short after 3 members" in said(source)


def test_tars_joined_by_cat_are_an_error(posts, tmp_path):
    source = WRITERS["webdataset"](posts[:4], tmp_path)
    path = tmp_path / "posts.tar"
    path.write_bytes(path.read_bytes() * 2)
    assert "there is more after the end-of-archive mark" in said(source)


def test_an_arrow_stream_cut_between_batches_is_not_taken_for_a_whole_one(posts, tmp_path):
    source = WRITERS["arrow_stream"](posts[:50], tmp_path)
    path = tmp_path / "posts.arrow"
    (shard,) = find_shards(source)
    os.truncate(path, path.stat().st_size - 8)  # without the mark of the end
    assert "is cut short, or still being copied: it has no end-of-stream mark" in said(source)
    with pytest.raises(BadSource, match="damaged after row 50: no end-of-stream mark"):
        list(read_shard(source, shard))


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "lance"])
def test_damage_anywhere_gives_rows_or_one_line(name, tmp_path):
    source = WRITERS[name](random_posts(20), tmp_path)
    path = Path(find_shards(source)[0].path)
    good, draw = path.read_bytes(), random.Random(name)
    for _ in range(25):
        data = bytearray(good)
        for _ in range(draw.choice((1, 1, 5))):
            at = draw.randrange(len(data))
            piece = draw.choice((b"\t", b"\n", b'"', b"\0", b"\xff", b"{", b"../", b"", bytes([draw.randrange(256)])))
            data[at : at + draw.choice((0, 1, 1, 40))] = piece
        path.write_bytes(data)
        wrong = []
        try:
            for shard in find_shards(source):
                for batch in read_shard(source, shard):
                    batch.validate(full=True)
        except ValueError as error:
            wrong.append(error)
        assert not wrong or (type(wrong[0]) is BadSource and "\n" not in str(wrong[0]))


def test_a_damaged_page_names_the_row(posts, tmp_path):
    source = WRITERS["parquet"](posts, tmp_path)
    path = tmp_path / "posts.parquet"
    find_shards(source)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 20000] = b"\xff" * len(data[len(data) // 2 : len(data) // 2 + 20000])
    footer = path.read_bytes()[-2000:]
    path.write_bytes(bytes(data[:-2000]) + footer)
    assert str(path) in said(source)


# Half a file


@pytest.mark.parametrize("name", ["parquet", "arrow_file", "arrow_stream", "webdataset", "webdataset_gz"])
def test_half_a_new_file_is_named_and_left_out_until_it_is_whole(name, posts, tmp_path):
    whole = WRITERS[name](posts[:20], tmp_path)
    source = whole.model_copy(update={"uri": str(tmp_path)})
    path = Path(find_shards(whole)[0].path)
    data, hashes = path.read_bytes(), ContentHashes()
    (before,) = find_shards(source, hashes)
    other = path.with_name(f"another{''.join(path.suffixes)}")
    other.write_bytes(data[: len(data) // 2])
    unready = []
    assert find_shards(source, hashes, unready) == [before]
    assert [file.path for file in unready] == [str(other)]
    assert f"{other} is" in unready[0].why
    with pytest.raises(BadSource, match=f"{other} is"):
        find_shards(source, hashes)
    other.write_bytes(data)
    unready = []
    assert len(find_shards(source, hashes, unready)) == 2
    assert unready == []
    path.write_bytes(data[: len(data) // 2])  # a file whose posts the study has: they do not leave it for that
    with pytest.raises(BadSource, match=f"{path} is"):
        find_shards(source, hashes, unready)


def test_half_a_new_lance_table_is_named_and_left_out(posts, tmp_path):
    WRITERS["lance"](posts[:20], tmp_path)
    half = tmp_path / "half.lance" / "_versions"
    half.mkdir(parents=True)
    (half / "1.manifest").write_bytes(b"no")
    unready = []
    found = find_shards(Source(format="lance", uri=str(tmp_path)), None, unready)
    assert ([shard.key for shard in found], [file.path for file in unready]) == (["posts"], [str(half.parent)])


def test_a_source_of_nothing_but_half_files_is_an_error(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadSource, match=r"a.parquet is not a readable Parquet file"):
        find_shards(Source(format="parquet", uri=str(tmp_path)), None, [])


def test_a_run_goes_on_without_half_a_new_file_and_ends_with_an_error_that_names_it(posts, tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    WRITERS["parquet"](posts, folder)
    half = folder / "half.parquet"
    data = (folder / "posts.parquet").read_bytes()
    half.write_bytes(data[:1000])
    study = demo().model_copy(update={"source": Source(format="parquet", uri=str(folder)), "data": ANYTHING})
    file = tmp_path / "study.toml"
    file.write_text(dump_study(study), "utf-8")

    def run(*arguments):
        command = [sys.executable, "-m", "pipelines.cli.main", *arguments, "--study", str(file)]
        environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    done = run("run", "--until", "posts")
    assert done.returncode == 1
    assert "1 made, 0 fresh, 1 failed" in done.stdout
    warning, error = (line for line in done.stderr.splitlines() if "half.parquet" in line)
    assert warning.startswith(f"Left out until it can be read: {half} is not a readable Parquet file")
    assert error.startswith(f"Error: source {half}: {half} is not a readable Parquet file")
    assert json.loads(run("status", "--json").stdout)["unready"].keys() == {str(half)}
    half.write_bytes(data)
    done = run("run", "--until", "posts")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 made, 1 fresh, 0 failed" in done.stdout
