"""`hardmoe predict --out`: tables and tars as input, a row for every picture, sidecars, and what resumes."""

import csv
import io
import json
import os
import tarfile
from xml.etree import ElementTree

import lance
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from helpers.bundles import bundle_at, images, random_parts
from moe_core import failpoints
from moe_core.evaluation.thresholds import ThresholdCounts
from moe_core.serving.bundle import Bundle
from moe_core.serving.files import in_order
from moe_core.serving.routed import predict as answers_of
from moe_core.tagging import output
from pipelines.cli.main import main

PICTURES = 12
DC, RDF = "{http://purl.org/dc/elements/1.1/}", "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Without thresholds; e003 is not published."""
    root = tmp_path_factory.mktemp("tagging")
    return bundle_at(root / "bundle", random_parts(root, 0))


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def files():
    return {f"{number:02d}": png(pixels) for number, pixels in enumerate(images(PICTURES))}


@pytest.fixture
def holiday(tmp_path, files):
    folder = tmp_path / "holiday"
    (folder / "deep").mkdir(parents=True)
    for name, data in files.items():
        (folder / ("deep" if name > "08" else ".") / f"{name}.png").write_bytes(data)
    return folder


def hardmoe(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def asked(bundle, *arguments):
    done = hardmoe("predict", "--bundle", bundle, *arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.fixture(scope="module")
def first_hashtags(bundle):
    opened = Bundle(bundle)
    p_NV, _ = answers_of(opened, images(PICTURES))
    return [opened.hashtags[tag] for tag in p_NV.argmax(1).tolist()]


def test_every_picture_and_every_name_that_is_left_out_has_a_row(bundle, holiday, tmp_path, first_hashtags):
    (holiday / "bad.jpg").write_bytes(b"no")
    (holiday / "notes.md").write_text("no")
    out = tmp_path / "tags.parquet"
    done = asked(bundle, holiday, holiday / "gone.png", "--out", out, "--top", 2)
    assert done.exit_code == 1  # of what failed
    assert done.stdout.splitlines()[-1].endswith(f"{PICTURES} answered, 2 failed, 1 skipped")
    rows = pl.read_parquet(out)
    assert rows["image"].n_unique() == len(rows) == PICTURES + 3
    good = rows.filter(pl.col("status") == "answered").sort(pl.col("image").str.extract(r"(\d+)\.png"))
    assert good["tags"].list.first().to_list() == first_hashtags
    assert good["tags"].list.len().to_list() == good["p"].list.len().to_list() == [2] * PICTURES
    assert good["reason"].null_count() == good["table"].null_count() == PICTURES
    assert good["expert_published"].to_list() == [expert != "e003" for expert in good["expert"]]
    other = {row["image"].rpartition("/")[2]: row for row in rows.iter_rows(named=True) if row["status"] != "answered"}
    assert other["notes.md"]["reason"] == "no image by its name"
    assert other["bad.jpg"]["reason"].startswith("not_an_image")
    assert (other["gone.png"]["status"], other["gone.png"]["tags"]) == ("failed", None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["holiday", "tags.parquet"]


def test_csv_and_json_lines_say_what_parquet_says(bundle, holiday, tmp_path):
    for suffix in ("parquet", "csv", "jsonl"):
        assert asked(bundle, holiday, "--out", tmp_path / f"tags.{suffix}").exit_code == 0
    rows = pq.read_table(tmp_path / "tags.parquet").to_pylist()
    with open(tmp_path / "tags.csv", newline="") as file:
        table = list(csv.DictReader(file))
    documents = [json.loads(line) for line in (tmp_path / "tags.jsonl").read_text().splitlines()]
    printed = json.loads(asked(bundle, holiday, "--json").stdout)
    assert documents == printed
    for row, line, document in zip(rows, table, documents, strict=True):
        assert row["image"] == line["image"] == document["image"]
        assert row["tags"] == line["tags"].split(" ") == [tag["tag"] for tag in document["tags"]]
        assert [float(p) for p in line["p"].split(" ")] == pytest.approx(row["p"], rel=1e-4)


def as_parquet(path, files):
    pq.write_table(pa.table({"id": list(files), "jpg": list(files.values())}), path, row_group_size=5)


def as_arrow(path, files):
    table = pa.table({"id": list(files), "image": list(files.values())})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


def as_lance(path, files):
    lance.write_dataset(pa.table({"id": list(files), "image": list(files.values())}), path)


def as_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            about = tarfile.TarInfo(f"{name}.png")
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))


def as_csv(path, files):
    for name, data in files.items():
        (path.parent / f"{name}.png").write_bytes(data)
    path.write_text("id,file\n" + "".join(f"{name},{name}.png\n" for name in files))


WRITERS = {"parquet": as_parquet, "arrow": as_arrow, "lance": as_lance, "tar": as_tar, "csv": as_csv}


@pytest.mark.parametrize("kind", WRITERS)
def test_tables_and_tars_without_tags_are_answered_by_their_ids(kind, bundle, files, tmp_path, first_hashtags):
    (tmp_path / "in").mkdir()
    table = tmp_path / "in" / f"photos.{kind}"
    WRITERS[kind](table, files | {"99": b"no picture"})
    done = asked(bundle, table, "--out", tmp_path / "out.parquet")
    assert (done.exit_code, "99: not_an_image" in done.stderr) == (1, True), done.output
    rows = pl.read_parquet(tmp_path / "out.parquet")
    assert rows["image"].to_list() == [*files, "99"]
    assert set(rows["table"]) == {str(table)}
    assert rows["tags"].list.first().to_list() == [*first_hashtags, None]


def test_a_folder_of_tables_and_files_beside_a_table_are_answered_in_the_order_of_the_arguments(
    bundle, files, holiday, tmp_path
):
    (tmp_path / "tables").mkdir()
    for number in range(3):
        as_parquet(tmp_path / "tables" / f"{number}.parquet", dict(list(files.items())[:4]))
    done = asked(bundle, holiday / "00.png", tmp_path / "tables", holiday / "01.png", "--out", tmp_path / "o.parquet")
    assert done.exit_code == 0, done.output
    tables = pl.read_parquet(tmp_path / "o.parquet")["table"].to_list()
    of_tables = [f"{number}.parquet" for number in range(3) for _ in range(4)]
    assert [table and table[-9:] for table in tables] == [None, *of_tables, None]


def test_a_table_without_ids_says_how_to_number_its_rows(bundle, files, tmp_path):
    pq.write_table(pa.table({"image": list(files.values())}), tmp_path / "in.parquet")
    done = asked(bundle, tmp_path / "in.parquet", "--out", tmp_path / "o.parquet")
    assert (done.exit_code, "#row" in done.stderr) == (1, True)
    assert not (tmp_path / ".o.parquet.parts").exists(), "nothing was begun"
    assert asked(bundle, tmp_path / "in.parquet", "--id-column", "#row", "--out", tmp_path / "o.parquet").exit_code == 0
    assert pl.read_parquet(tmp_path / "o.parquet")["image"].to_list()[:2] == ["in/0", "in/1"]


@pytest.fixture
def fails(monkeypatch):
    """A write of the command in this process fails at a failpoint."""
    monkeypatch.setattr(output, "PART_ROWS", 1)

    def fails(*words):
        monkeypatch.setattr(failpoints, "armed", failpoints.parse(" ".join(["eio", *words])) if words else None)

    return fails


@pytest.mark.parametrize("kind", ["parquet", "tar", "lance", "files"])
@pytest.mark.parametrize("words", [("predict.part", "2"), ("predict.joined",), ("predict.renamed",)], ids="-".join)
def test_the_same_command_resumes_behind_the_last_part(
    kind, words, bundle, files, holiday, tmp_path, fails, monkeypatch
):
    monkeypatch.setattr("moe_core.serving.files.BATCH", 5)
    table = holiday
    if kind != "files":
        WRITERS[kind](table := tmp_path / f"photos.{kind}", files)
    command = (table, "--out", tmp_path / "tags.parquet")
    fails(*words)
    assert asked(bundle, *command).exit_code == 1
    fails()
    done = asked(bundle, *command)
    assert done.exit_code == 0, done.output
    assert f"Resumed: {10 if words[0] == 'predict.part' else PICTURES} pictures are done" in done.stderr
    resumed = pq.read_table(tmp_path / "tags.parquet").to_pylist()
    (tmp_path / "tags.parquet").unlink()
    assert asked(bundle, *command).exit_code == 0
    whole = pq.read_table(tmp_path / "tags.parquet").to_pylist()
    assert [(row["image"], row["tags"]) for row in resumed] == [(row["image"], row["tags"]) for row in whole]
    assert len(whole) == PICTURES
    assert not (tmp_path / ".tags.parquet.parts").exists()


@pytest.fixture
def stopped(bundle, holiday, tmp_path, fails):
    """A command that was stopped, and its output."""
    fails("predict.part")
    command = (holiday, "--out", tmp_path / "tags.csv")
    assert asked(bundle, *command).exit_code == 1
    fails()
    return command


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("--top", "3"), "--top was 5, is 3"),
        (("--min-p", "0.1"), "--min-p was 0.0, is 0.1"),
        (("--sidecar", "txt"), '--sidecar was [], is ["txt"]'),
    ],
)
def test_another_command_does_not_continue_it_and_says_what_to_do(bundle, stopped, more, why):
    done = asked(bundle, *stopped, *more)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert why in done.stderr
    assert "repeat that one to finish it, or begin again with --force" in done.stderr
    assert asked(bundle, *stopped, *more, "--force").exit_code == 0


def test_pictures_that_came_or_went_meanwhile_and_another_mixture_are_another_command(
    bundle, stopped, holiday, tmp_path
):
    (holiday / "new.png").write_bytes(b"")
    assert "input was" in asked(bundle, *stopped).stderr
    (holiday / "new.png").unlink()
    other = bundle_at(tmp_path / "other", random_parts(tmp_path, 0, count=2))
    assert "mixture was" in asked(other, *stopped).stderr
    assert asked(bundle, *stopped).exit_code == 0


def test_a_file_that_is_there_is_replaced_only_with_force(bundle, holiday, tmp_path):
    out = tmp_path / "tags.csv"
    out.write_text("mine")
    done = asked(bundle, holiday, "--out", out)
    assert "tags.csv is there already: choose another --out, or replace it with --force" in done.stderr
    assert out.read_text() == "mine"
    assert asked(bundle, holiday, "--out", out, "--force").exit_code == 0
    assert out.read_text().startswith("image,table,status")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--out", "tags.xlsx"), "wanted a name that ends in .parquet, .csv, .jsonl"),
        (("--out", "nowhere/tags.csv"), "its folder does not exist"),
        (("--out", "tags.csv", "--json"), "--json prints the answers, --out writes them: give one"),
        (("--precision", "0.9"), "mixture bundle has no thresholds"),
        (("--precision", "0.9", "--topk", "2"), "goes with the published answer, not with --topk 2"),
        (("--calibrated",), "mixture bundle has no calibration temperature"),
        (("--precision", "90"), "--precision 90.0: wanted a number from 0 to 1"),
        (("--min-p", "-1"), "--min-p -1.0: wanted a number from 0 to 1"),
    ],
)
def test_what_cannot_be_done_is_one_line(bundle, holiday, tmp_path, monkeypatch, options, why):
    monkeypatch.chdir(tmp_path)
    done = asked(bundle, holiday, *options)
    assert (done.exit_code, done.stderr.count("\n"), done.stdout) == (1, 1, "")
    assert why in done.stderr


def test_a_table_s_pictures_have_no_place_for_a_sidecar(bundle, files, tmp_path):
    as_parquet(tmp_path / "in.parquet", files)
    assert (
        "a table's pictures are none: take --out" in asked(bundle, tmp_path / "in.parquet", "--sidecar", "txt").stderr
    )


def test_sidecars_lie_beside_the_pictures_and_others_are_kept(bundle, holiday, first_hashtags):
    (holiday / "00.txt").write_text("my own words")
    done = asked(bundle, holiday, "--sidecar", "txt", "--sidecar", "xmp", "--top", 1)
    assert done.exit_code == 1
    assert f"Kept 1 sidecars that were there and say something else: {holiday}/00.txt; --force" in done.stderr
    assert (holiday / "00.txt").read_text() == "my own words"
    assert (holiday / "01.txt").read_text() == f"{first_hashtags[1]}\n"
    xmp = (holiday / "deep" / "10.png.xmp").read_text("utf-8")
    bag = ElementTree.fromstring(xmp).find(f".//{DC}subject/{RDF}Bag")
    assert [item.text for item in bag] == [first_hashtags[10]]
    assert asked(bundle, holiday, "--sidecar", "xmp", "--top", 1).exit_code == 0, "the same again"
    assert asked(bundle, holiday, "--sidecar", "txt", "--top", 1, "--force").exit_code == 0
    assert (holiday / "00.txt").read_text() == f"{first_hashtags[0]}\n"
    assert not list(holiday.rglob(".*.part"))


@pytest.fixture(scope="module")
def with_thresholds(tmp_path_factory, bundle):
    """The same networks, with a threshold for the first hashtag alone, in the middle of its answers."""
    opened, root = Bundle(bundle), tmp_path_factory.mktemp("thresholds")
    p_NV, _ = answers_of(opened, images(PICTURES))
    middle = float(p_NV[:, 0].median())
    p_MV = p_NV.new_tensor([[middle, *[0.0] * 4]] * 20)
    counts = ThresholdCounts(5)
    counts.add(p_MV, p_NV.new_zeros(20).long(), p_NV.new_tensor(range(21)).long())
    measured = {"curves": counts.curves(), "calibration_temperature": 2.0}
    return bundle_at(root / "bundle", random_parts(root, 0), **measured), p_NV, measured["curves"].thresholds(0.9)[0]


def test_a_precision_gives_only_hashtags_above_their_thresholds(with_thresholds, holiday):
    folder, p_NV, threshold = with_thresholds
    printed = json.loads(asked(folder, holiday, "--precision", 0.9, "--json").stdout)
    given = [[tag["tag"] for tag in row["tags"]] for row in sorted(printed, key=lambda row: row["image"][-6:])]
    assert given == [["a"] if p >= threshold else [] for p in p_NV[:, 0].numpy()]
    assert 0 < sum(map(len, given)) < PICTURES
    none = json.loads(asked(folder, holiday, "--precision", 0.999, "--json").stdout)
    assert all(row["tags"] == [] for row in none)


def test_calibrated_p_are_scaled_and_keep_their_order(with_thresholds, holiday):
    folder, p_NV, _ = with_thresholds
    plain = json.loads(asked(folder, holiday / "00.png", "--json").stdout)[0]["tags"]
    scaled = json.loads(asked(folder, holiday / "00.png", "--json", "--calibrated").stdout)[0]["tags"]
    root_V = p_NV[0].sqrt()
    assert [tag["tag"] for tag in scaled] == [tag["tag"] for tag in plain]
    assert scaled[0]["p"] == pytest.approx(float(root_V.max() / root_V.sum()), abs=1e-4)
    least = np.mean([tag["p"] for tag in plain])
    some = json.loads(asked(folder, holiday / "00.png", "--json", "--min-p", least).stdout)[0]["tags"]
    assert some == [tag for tag in plain if tag["p"] >= least]


def test_names_are_sorted_in_parts_where_they_are_many():
    names = [(f"{number * 7919 % 100:02d}\udce9\n", "") for number in range(100)]
    assert list(in_order(iter(names), most=9)) == sorted(names)
    assert list(in_order(iter(()))) == []


def test_a_name_that_is_no_utf8_is_escaped(bundle, holiday, tmp_path):
    os.rename(holiday / "00.png", os.fsencode(holiday) + b"/\xe9.png")
    assert asked(bundle, holiday, "--out", tmp_path / "o.parquet").exit_code == 0
    assert any(image.endswith("\\udce9.png") for image in pl.read_parquet(tmp_path / "o.parquet")["image"])
