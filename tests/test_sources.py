"""Every format gives the same posts, under a content hash of what is read from its files."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.formats import WRITERS, random_posts, table_of
from helpers.reading import ANYTHING, png, rows_of, said
from moe_core.data.ingest import ingest
from moe_core.data.sources import parquet, raw
from moe_core.data.sources.guessing import guess_format
from moe_core.data.sources.preview import preview
from moe_core.data.sources.raw import RAW, in_batches
from moe_core.data.sources.scan import ContentHashes
from moe_core.data.sources.shards import find_shards, read_shard
from moe_core.settings import Source
from moe_core.tables.location import tables_in
from moe_core.tables.reading import read_rows
from moe_core.text import shown

KEPT = ["id", "image", "tags", "user", "taken_at", "given"]


@pytest.fixture(scope="module")
def posts():
    return random_posts()


def ingested(source, root):
    """Accepted posts and reasons of the rejected ones, by id."""
    accepted, rejected = {}, {}
    for shard in find_shards(source):
        done = ingest(tables_in(root), shard.key, read_shard(source, shard, root / "cache"), ANYTHING, lambda _: None)
        for row in read_rows(tables_in(root).posts, done.posts_version, shard.key, KEPT).to_pylist():
            accepted[row["id"]] = row
        rejects = read_rows(tables_in(root).rejects, done.rejects_version, shard.key, ["id", "reason"])
        rejected |= {row["id"]: row["reason"] for row in rejects.to_pylist()}
    return accepted, rejected


def one_line(lines, start):
    (line,) = [line for line in lines if line.startswith(start)]
    return line


@pytest.fixture(scope="module")
def reference(posts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    return ingested(WRITERS["parquet"](posts, folder), folder / "store")


def test_the_reference_has_posts_of_every_kind(posts, reference):
    accepted, rejected = reference
    assert len(accepted) + len(rejected) == len(posts)
    assert {"empty", "truncated", "not_an_image", "no_tags"} <= set(rejected.values())


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_posts(name, posts, reference, tmp_path):
    (tmp_path / "in").mkdir()
    source = WRITERS[name](posts, tmp_path / "in")
    accepted, rejected = ingested(source, tmp_path / "store")
    assert rejected == reference[1]
    if name.startswith("yfcc"):  # which has no split
        accepted, wanted = ({k: v | {"given": None} for k, v in some.items()} for some in (accepted, reference[0]))
    else:
        wanted = reference[0]
    assert accepted == wanted


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_is_recognized_and_described(name, posts, tmp_path):
    source = WRITERS[name](posts, tmp_path)
    if name != "folder_jsonl":  # a table that lies deeper is said
        assert guess_format(source.uri) == source.format
    lines, _ = preview(source, find_shards(source))
    assert lines[0].startswith(f"Found 1 shard of format {source.format} at {source.uri}")
    # a table of text has its lines counted, not its rows
    assert lines[1] == "Rows: 120" or name in ("folder_csv", "folder_tsv", "folder_jsonl")
    said = "\n".join(lines)
    assert "\nOf a sample of 120 posts: " in said
    assert " distinct users" in said
    assert "not_an_image 2, empty 1, truncated 1" in one_line(lines, "Problems: ")
    assert "\nEstimate for the ingest" in said
    assert ("\nColumns: " in said) == (source.format != "yfcc")


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_small_batches_of_one_schema(name, posts, tmp_path, monkeypatch):
    monkeypatch.setattr(raw, "BATCH_BYTES", 3000)
    for module in ("arrow", "parquet", "lance_table"):
        monkeypatch.setattr(f"moe_core.data.sources.{module}.BATCH_BYTES", 3000)
    source = WRITERS[name](posts, tmp_path)
    (shard,) = find_shards(source)
    batches = list(read_shard(source, shard))
    assert all(batch.schema.equals(RAW) for batch in batches)
    assert sum(map(len, batches)) == len(posts)
    assert max(sum(len(data or b"") for data in batch["image"].to_pylist()) for batch in batches) < 3000 + 2000
    assert len(batches) > 20


# Shards


def test_keys_of_old_files_stay_when_new_ones_come(posts, tmp_path):
    def keys():
        return {s.path: s.key for s in find_shards(Source(format="parquet", uri=str(tmp_path)))}

    def put(name):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(table_of(posts[:1]), tmp_path / name)

    for name in ("x.parquet", "sub/x.parquet", "a b.parquet"):
        put(name)
    before = keys()
    for name in ("a/x.parquet", "a-b.parquet", "A.parquet", "x.pq", "_hidden.parquet", ".hidden.parquet"):
        put(name)
    after = keys()
    assert before.items() <= after.items()
    assert len(set(after.values())) == len(after) == 7
    assert before[str(tmp_path / "x.parquet")] == "x"


def test_a_content_hash_is_of_content_and_of_what_is_read_from_it(posts, tmp_path):
    source = WRITERS["folder_csv"](posts[:3], tmp_path)
    (before,) = find_shards(source)
    assert find_shards(source) == [before]
    (named,) = find_shards(source.model_copy(update={"user_column": "note"}))
    assert named.content_hash != before.content_hash
    (tmp_path / "pictures" / "new.png").write_bytes(png())
    (after,) = find_shards(source)
    assert after.content_hash != before.content_hash


def test_known_files_are_not_read_again(posts, tmp_path, monkeypatch):
    source = WRITERS["parquet"](posts[:3], tmp_path)
    hashes = ContentHashes(tmp_path / "hashes.json")
    before = find_shards(source, hashes)
    assert not (tmp_path / "hashes.json").exists(), "a scan wrote"
    hashes.save()
    opened = []
    look = parquet.schema_of
    monkeypatch.setattr(parquet, "schema_of", lambda file, source: opened.append(file.path) or look(file, source))
    monkeypatch.setattr("moe_core.data.sources.scan.hash_of_content", lambda *_: pytest.fail("hashed again"))
    assert find_shards(source, ContentHashes(tmp_path / "hashes.json")) == before
    assert len(opened) == 1  # the first, to see whether its images lie beside it


def test_files_elsewhere_are_read_through_fsspec(posts):
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in ("bucket/a/x.parquet", "bucket/y.parquet"):
        with memory.open(name, "wb") as file:
            pq.write_table(table_of(posts[:3]), file)
    with memory.open("bucket/t.tar", "wb") as file:
        tar_of_bytes = io.BytesIO()
        with tarfile.open(fileobj=tar_of_bytes, mode="w") as tar:
            info = tarfile.TarInfo("a.png")
            info.size = len(png())
            tar.addfile(info, io.BytesIO(png()))
        file.write(tar_of_bytes.getvalue())
    source = Source(format="parquet", uri="memory://bucket")
    assert [s.path for s in find_shards(source)] == ["memory://bucket/a/x.parquet", "memory://bucket/y.parquet"]
    assert len(rows_of(source)) == 6
    assert len(rows_of(source.model_copy(update={"uri": "memory://bucket/*.parquet"}))) == 3
    assert guess_format("memory://bucket/*.parquet") == "parquet"
    assert guess_format("memory://bucket/a") == "parquet"
    assert len(rows_of(Source(format="webdataset", uri="memory://bucket/t.tar"))) == 1


def test_a_scheme_that_nobody_knows():
    assert "no file system for it" in said(Source(format="parquet", uri="gibberish://x/y.parquet"))
    assert "reads local files only" in said(Source(format="folder", uri="s3://x/y"))


def test_batches_are_cut_by_bytes(monkeypatch):
    monkeypatch.setattr(raw, "BATCH_BYTES", 100)
    rows = [{"id": str(n), "image": b"x" * size} for n, size in enumerate((98, 1, 500, 10))]  # an id has a byte
    assert [len(batch) for batch in in_batches(rows)] == [2, 1, 1]


def test_what_users_wrote_is_shown_without_control_characters(tmp_path):
    assert shown("a\x1b[31mb\n\u202ec") == "a\\x1b[31mb\\n\\u202ec"
    assert len(shown("x" * 1000)) == 60
    names = ["\x1b]0;pwned\x07", "b"]
    pq.write_table(pa.table({"id": names, "image": [b"", png()], "tags": [["cat"]] * 2}), tmp_path / "x.parquet")
    source = Source(format="parquet", uri=str(tmp_path))
    lines, _ = preview(source, find_shards(source))
    assert "for example \\x1b]0;pwned\\x07: empty" in one_line(lines, "Problems: ")
    assert "".join(lines).isprintable()


@pytest.mark.parametrize("name", ["emoji", "tinyimagenet"])
def test_real_data_are_read(name):
    path = Path(__file__).parents[2] / "shared" / "data" / f"{name}.parquet"
    if not path.exists():
        pytest.skip(f"no data at {path}")
    source = Source(format=guess_format(str(path)), uri=str(path))
    lines, _ = preview(source, find_shards(source))
    assert "Problems: none in 200 images decoded" in lines
    assert lines[-1] == "Split: the source's own"


# The command


def hardmoe(*arguments):
    environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}
    command = [sys.executable, "-m", "pipelines.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_init_says_what_it_found_and_run_ingests_it(posts, tmp_path):
    (tmp_path / "in").mkdir()
    source = WRITERS["yfcc_tars"](posts, tmp_path / "in")
    done = hardmoe("init", tmp_path / "cats", "--source", source.uri, "--images", source.images)
    assert done.returncode == 0, done.stderr
    assert "Found 1 shard of format yfcc" in done.stdout
    study = tmp_path / "cats" / "study.toml"
    ran = hardmoe("run", "--study", study, "--until", "posts")
    assert "1 made, 0 fresh, 0 failed" in ran.stdout, ran.stdout + ran.stderr
    assert (tmp_path / "cats" / ".sources" / "tars.sqlite").exists()
    said = json.loads(hardmoe("status", "--study", study, "--json").stdout)["posts"]
    assert said["read"] == len(posts) == said["accepted"] + said["rejected"]


def test_init_writes_nothing_when_the_source_is_wrong(posts, tmp_path):
    (tmp_path / "x\x1b.parquet").write_bytes(b"no")
    done = hardmoe("init", tmp_path / "cats", "--source", tmp_path / "x\x1b.parquet")
    assert done.returncode == 1
    assert "x\\x1b.parquet is not a readable Parquet file" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "cats").exists()


@pytest.mark.parametrize("image", [{"path": "a.png"}, {"bytes": None, "path": "a.png"}])
def test_images_that_a_struct_names_count_in_its_content_hash(tmp_path, image):
    (tmp_path / "a.png").write_bytes(png())
    pq.write_table(pa.table({"image": [image], "tags": [["cat"]]}), tmp_path / "x.parquet")
    source = Source(format="parquet", uri=str(tmp_path))
    assert rows_of(source)[0]["image"] == png()
    before = find_shards(source)[0].content_hash
    (tmp_path / "a.png").write_bytes(png() + b"more")
    assert find_shards(source)[0].content_hash != before


def test_a_row_deleted_from_a_lance_table_changes_its_content_hash(tmp_path):
    import lance

    table = pa.table({"id": ["a", "b"], "image": [png(), png()], "tags": [["cat"], ["cat"]]})
    data = lance.write_dataset(table, str(tmp_path / "x.lance"))
    source = Source(format="lance", uri=str(tmp_path / "x.lance"))
    before = find_shards(source)[0].content_hash
    data.delete("id = 'b'")
    assert find_shards(source)[0].content_hash != before
    assert [row["id"] for row in rows_of(source)] == ["a"]


def test_an_image_with_an_underscore_before_its_name_counts(tmp_path):
    (tmp_path / "_DSC1.jpg").write_bytes(png())
    (tmp_path / "table.csv").write_text("file,tags\n_DSC1.jpg,cat\n")
    source = Source(format="folder", uri=str(tmp_path))
    before = find_shards(source)[0].content_hash
    (tmp_path / "_DSC1.jpg").write_bytes(png() + b"more")
    assert find_shards(source)[0].content_hash != before


def test_an_image_that_a_parquet_file_names_counts(tmp_path):
    pq.write_table(pa.table({"id": ["a"], "image": ["a.png"], "tags": [["cat"]]}), tmp_path / "x.parquet")
    source = Source(format="parquet", uri=str(tmp_path / "x.parquet"))
    before = find_shards(source)[0].content_hash
    assert [row["reason"] for row in rows_of(source)] == ["no_image_file"]
    (tmp_path / "a.png").write_bytes(png())
    assert find_shards(source)[0].content_hash != before
    assert [row["reason"] for row in rows_of(source)] == [None]
