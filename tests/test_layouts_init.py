"""What `hardmoe init` says about a source's layout."""

import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq

from helpers.layouts import LABELS, described, picture, table
from moe_core.data.sources.preview import preview
from moe_core.data.sources.shards import find_shards
from moe_core.settings import Source


def test_init_shows_five_posts_with_their_tags_and_warns_of_separators_within_one(tmp_path):
    tags = [["lake;boat", "cat"], ["a|b"], ["#x#y"], ["plain"], ["new york"], ["C#"]]
    columns = {"id": [*"abcdef"], "image": [picture(n) for n in range(6)], "tags": tags}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    lines = described(Source(format="parquet", uri=str(tmp_path)))
    shown = [line for line in lines if line.startswith("Tags as read")]
    assert shown[0] == 'Tags as read, for example of a: "lake;boat" "cat"'
    assert len(shown) == 5
    (warning,) = [line for line in lines if line.startswith("Warning: ")]
    assert warning.startswith('Warning: 3 of 6 posts have tags that hold separators, such as "lake;boat"')


def test_init_says_that_rows_are_joined_and_that_ids_or_pictures_come_again(tmp_path):
    source = table(tmp_path / "labels", [("file", "label"), *LABELS])
    lines, seen = preview(source, find_shards(source))
    assert seen.posts == 4
    assert "Rows that agree on id and image are one post with all their tags: 6 rows are 4 posts" in lines
    assert not [line for line in lines if line.startswith("Warning")]
    rows = [("id", "file", "label"), ("a", "0.png", "x"), ("a", "1.png", "y"), ("b", "0.png", "z")]
    warnings = [line for line in described(table(tmp_path / "ids", rows)) if line.startswith("Warning")]
    assert warnings[0].startswith("Warning: 1 of 3 posts have the id of an earlier post (duplicate_id), such as a:")
    assert warnings[1].startswith(
        "Warning: 1 of 3 posts have the image file of a post with another id, such as a and b."
    )


# What init says


def test_init_says_which_columns_it_takes_and_ignores(tmp_path):
    columns = {"Photo_ID": ["a"], "image": [picture()], "tags": [["cat"]], "url": ["x"], "width": [16]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    lines = described(Source(format="parquet", uri=str(tmp_path)))
    assert "Columns: id from Photo_ID, image from image, tags from tags, original from url; ignored: width" in lines
    lines = described(table(tmp_path / "csv", [("file", "tags", "note"), ("0.png", "cat", "hello")]))
    assert "Columns: image from file, tags from tags; ignored: note" in lines


def hardmoe(*arguments):
    environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}
    command = [sys.executable, "-m", "pipelines.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_init_refuses_a_source_without_one_picture_that_can_be_used(tmp_path):
    columns = {"id": [*"abc"], "image": [b"", b"<html>", None], "tags": [["cat"]] * 3}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    done = hardmoe("init", tmp_path / "study", "--source", tmp_path / "x.parquet")
    assert done.returncode == 1
    assert "none of the 3 posts sampled has a usable picture (empty 2, not_an_image 1;" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "study").exists()
    few = columns | {"image": [b"", b"", picture()]}
    pq.write_table(pa.table(few), tmp_path / "x.parquet")
    assert "Problems: 2 of 3 images (empty 2)" in "".join(described(Source(format="parquet", uri=str(tmp_path))))


def test_commands_that_init_prints_have_their_paths_quoted(tmp_path):
    source = table(tmp_path / "in", [("file", "tags"), ("0.png", "cat")])
    done = hardmoe("init", tmp_path / "my cats' study", "--source", source.uri)
    assert done.returncode == 0, done.stderr
    quoted = "'" + str(tmp_path / "my cats' study" / "study.toml").replace("'", "'\"'\"'") + "'"
    assert f"Next: hardmoe run --study {quoted}" in done.stdout
