"""Members of tars, videos and missing images, paths that lead elsewhere."""

import json
import tarfile
from collections import Counter
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.formats import WRITERS, hash_of, random_posts, tar_of, yfcc_line
from helpers.reading import png, reasons, rows_of
from moe_core.settings import Source


@pytest.fixture(scope="module")
def posts():
    return random_posts()


def entry(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_tricks_in_a_tar(tmp_path):
    text = json.dumps({"tags": ["cat"]}).encode()
    members = [
        (entry("dir", tarfile.DIRTYPE), b""),
        ("dir/a.png", png()),
        ("dir/a.json", text),
        ("../up.png", png()),
        ("../up.json", text),
        ("/etc/abs.png", png()),
        ("x/../../y.png", png()),
        (entry("link.png", tarfile.SYMTYPE, "/etc/passwd"), b""),
        ("link.json", text),
        (entry("hard.png", tarfile.LNKTYPE, "dir/a.png"), b""),
        (entry("dev.png", tarfile.CHRTYPE), b""),
        (entry("fifo.png", tarfile.FIFOTYPE), b""),
        ("twice.png", png()),
        ("twice.json", text),
        ("twice.png", png()),
        ("twice.json", text),
        ("alone.json", text),
        ("broken.png", png()),
        ("broken.json", b"{"),
        ("latin.png", png()),
        ("latin.txt", b"caf\xe9"),
        ("._a.png", b"macOS"),
        (".DS_Store", b"x"),
        (".png", png()),
        ("README", b"x"),
        ("cls.1.PNG", png()),
        ("cls.cls", b"7\n"),
        ("both.jpg", png()),
        ("both.png", png()),
        ("both.json", json.dumps({"tags": "cat dog", "user": 5, "taken_at": 1.7e9}).encode()),
    ]
    inside = tmp_path / "inside"
    inside.mkdir()
    tar_of(inside / "x.tar", members)
    before = set(tmp_path.rglob("*"))
    found = rows_of(Source(format="webdataset", uri=str(inside)))
    assert set(tmp_path.rglob("*")) == before, "nothing beside the tar"
    assert [(row["id"], row["reason"]) for row in found] == [
        ("dir/a", None),
        ("../up", "outside_folder"),
        ("/etc/abs", "outside_folder"),
        ("x/../../y", "outside_folder"),
        ("link", "bad_row"),
        ("hard", "bad_row"),
        ("dev", "bad_row"),
        ("fifo", "bad_row"),
        ("twice", None),
        ("twice", None),
        ("alone", "no_image_file"),
        ("broken", "bad_row"),
        ("latin", "bad_row"),
        (".png", None),
        ("cls", None),
        ("both", None),
    ]
    by = {row["id"]: row for row in found}
    assert by["cls"]["tags"] == ["7"]
    assert (by["both"]["tags"], by["both"]["user"]) == (["cat", "dog"], "5")
    assert by["both"]["taken_at"] == datetime(2023, 11, 14, 22, 13, 20)


def test_videos_and_missing_images_of_yfcc(posts, tmp_path):
    few = [post | {"id": str(n)} for n, post in enumerate(posts[10:16])]
    lines = [yfcc_line(post, 25, marker="1" if n == 1 else "0") for n, post in enumerate(few)]
    lines[2] = "1\t2\t3\n"
    lines[3] = lines[3].replace(hash_of(few[3]), "../../../../etc/x")
    lines[4] = lines[4].replace(",".join(few[4]["tags"]), "x").replace("A+title", "%ZZ%FF")
    lines.append(yfcc_line(few[0] | {"id": "../0"}, 25))
    lines.append("\n")
    (tmp_path / "yfcc100m_dataset-0").write_text("".join(lines))
    for number in (0, 3, 4):
        (tmp_path / f"{number}.jpg").write_bytes(png())
    found = reasons(Source(format="yfcc", uri=str(tmp_path), images=str(tmp_path)))
    assert found == {"0": None, "1": "bad_row", "3": None, "4": None, "5": "no_image_file", "../0": "bad_row"} | {
        "1": found["1"]
    }
    rows = rows_of(Source(format="yfcc", uri=str(tmp_path), images=str(tmp_path)))
    assert Counter(row["reason"] for row in rows) == Counter({None: 3, "video": 1, "bad_row": 2, "no_image_file": 1})


def test_tags_of_yfcc_are_parted_before_they_are_decoded(posts, tmp_path):
    post = posts[10] | {"tags": ["New York", "a,b", "c+d", "50%"], "id": "7"}
    (tmp_path / "yfcc").write_text(yfcc_line(post, 23))
    (tmp_path / "7.png").write_bytes(png())
    (row,) = rows_of(Source(format="yfcc", uri=str(tmp_path / "yfcc"), images=str(tmp_path)))
    assert row["tags"] == ["New York", "a,b", "c+d", "50%", "geo:lat=1", "camera:iso=2"]
    assert row["taken_at"] == post["taken_at"]


def test_tars_are_indexed_once(posts, tmp_path, monkeypatch):
    source = WRITERS["yfcc_tars"](posts[:10], tmp_path)
    before = rows_of(source, tmp_path / "cache")
    monkeypatch.setattr("moe_core.data.sources.tars.places", lambda _: pytest.fail("read again"))
    assert rows_of(source, tmp_path / "cache") == before
    assert {row["reason"] for row in before} == {None}


def test_paths_of_hugging_face_stay_in_the_folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    images = [{"bytes": None, "path": p} for p in (str(tmp_path / "secret.png"), "../secret.png", "gone.png", None)]
    images.append({"bytes": png(), "path": "/elsewhere/x.png"})
    images.append(None)
    table = pa.table({"id": [*"abcdef"], "image": images, "tags": [["cat"]] * 6})
    pq.write_table(table, tmp_path / "in" / "x.parquet")
    found = reasons(Source(format="parquet", uri=str(tmp_path / "in")))
    wanted = ["outside_folder", "outside_folder", "no_image_file", "no_image_file", None, "no_image_file"]
    assert list(found.values()) == wanted
