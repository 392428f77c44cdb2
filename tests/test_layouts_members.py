"""Posts that are spread over the members of a tar, and pictures by their suffixes."""

import pytest

from helpers.formats import yfcc_line
from helpers.layouts import BLUE, RED, ingested, picture, rows_of, table, tar
from moe_core.data.sources.shards import find_shards, read_shard
from moe_core.settings import Source


def samples(tmp_path, members):
    """Id, picture, tags and reason of each row."""
    tar(tmp_path / "x.tar", members)
    source = Source(format="webdataset", uri=str(tmp_path / "x.tar"))
    return [(row["id"], row["image"], row["tags"], row["reason"]) for row in rows_of(source)]


def test_a_text_is_of_the_picture_that_has_its_whole_name(tmp_path):
    members = [("clip_1.0.jpg", RED), ("clip_1.5.json", {"tags": ["blue"]}), ("clip_1.5.jpg", BLUE)]
    assert samples(tmp_path, members) == [("clip_1.0", RED, None, None), ("clip_1.5", BLUE, ["blue"], None)]
    posts, reasons, counts = ingested(Source(format="webdataset", uri=str(tmp_path)), tmp_path / "store")
    assert (posts["clip_1.5"]["tags"], reasons, counts) == (["blue"], {"clip_1.0": "no_tags"}, (2, 1, 1))
    found = samples(tmp_path, [("clip_1.0.jpg", RED), ("clip_1.5.json", {"tags": ["blue"]})])
    assert [(name, reason) for name, _, _, reason in found] == [("clip_1.0", None), ("clip_1.5", "no_image_file")]


@pytest.mark.parametrize("names", [["22.05", "22.10", "23.05"], ["a.b.c", "a.b.d", "a.e"], ["d/x.v2", "d/x", "e/x"]])
@pytest.mark.parametrize("ways", [("jpg", "json"), ("json", "jpg"), ("JPG", "json")])
def test_keys_with_dots_are_told_apart(tmp_path, names, ways):
    members = [
        (f"{name}.{way}", RED if way.lower() == "jpg" else {"tags": [f"t{n}"]})
        for n, name in enumerate(names)
        for way in ways
    ]
    assert samples(tmp_path, members) == [(name, RED, [f"t{n}"], None) for n, name in enumerate(names)]


def test_keys_with_dots_are_told_apart_where_a_prefix_has_thousands(tmp_path):
    members = [m for n in range(500) for m in ((f"set.{n}.jpg", RED), (f"set.{n}.txt", f"t{n}".encode()))]
    assert samples(tmp_path, members) == [(f"set.{n}", RED, [f"t{n}"], None) for n in range(500)]
    pictures = samples(tmp_path, [(f"set.{n}.jpg", RED) for n in range(500)])
    assert [name for name, *_ in pictures] == [f"set.{n}" for n in range(500)]


@pytest.mark.parametrize(
    "names",
    [
        ["0.depth.png", "0.jpg"],
        ["0.png", "0.jpg"],
        ["0.seg.jpg", "0.webp"],
        ["0.mask.jpg", "0.photo.png"],
        ["0.depth_map.jpg", "0.seg-mask.jpg", "0.rgb.png"],
        ["0.condition.jpg", "0.jpg"],
        ["0.thumbnail.jpg", "0.original.jpg"],
        ["0.png", "0.avif"],
        ["0.heic", "0.png"],
    ],
)
@pytest.mark.parametrize("turn", [1, -1])
def test_what_lies_beside_a_picture_is_not_taken_for_it(tmp_path, names, turn):
    members = [*((name, RED if name == names[-1] else BLUE) for name in names[::turn]), ("0.json", {"tags": ["x"]})]
    assert samples(tmp_path, members) == [("0", RED, ["x"], None)]
    assert samples(tmp_path, members[::-1]) == [("0", RED, ["x"], None)]


def test_texts_beside_a_picture_are_its_own(tmp_path):
    members = [("0.photo.jpg", RED), ("0.meta.json", {"tags": ["x"]}), ("1.jpg", BLUE), ("1.jpg.json", {"tags": ["y"]})]
    members += [("2.jpg", RED), ("2.depth.png", BLUE), ("2.depth.json", {"tags": ["no"]}), ("2.json", {"tags": ["z"]})]
    found = samples(tmp_path, members)
    assert found == [("0", RED, ["x"], None), ("1", BLUE, ["y"], None), ("2", RED, ["z"], None)]


def test_the_image_column_names_the_member(tmp_path):
    tar(tmp_path / "x.tar", [("0.jpg", RED), ("0.depth.png", BLUE), ("0.json", {"tags": ["x"]})])
    source = Source(format="webdataset", uri=str(tmp_path), image_column="depth.png")
    assert [row["image"] for row in rows_of(source)] == [BLUE]
    source = source.model_copy(update={"image_column": "PNG"})
    assert [row["image"] for row in rows_of(source)] == [BLUE]


SUFFIXES = ["jpg", "JPEG", "jfif", "jpe", "avif", "webp", "png", "gif", "bmp", "tif", "tiff", "heic", "heif", "jxl"]
WANTED = {"tif": "not_an_image", "tiff": "not_an_image", "heic": "not_an_image", "heif": "not_an_image"}
WANTED |= {"jxl": "not_an_image"}


def file_of(suffix, seed):
    kinds = {"jpg": "JPEG", "jfif": "JPEG", "jpe": "JPEG", "tif": "TIFF"}
    if suffix in ("heic", "heif"):
        return b"\0\0\0\x18ftypheic" + b"\0" * 100
    return b"\xff\x0a" + b"\0" * 100 if suffix == "jxl" else picture(seed, kinds.get(suffix, suffix.upper()))


@pytest.mark.parametrize("kind", ["webdataset", "folder", "yfcc", "yfcc tars"])
def test_every_picture_is_a_row_whatever_its_suffix(tmp_path, kind):
    folder = tmp_path / "in"
    folder.mkdir()
    files = {f"{n}.{suffix}": file_of(suffix, n) for n, suffix in enumerate(SUFFIXES)}
    if kind == "webdataset":
        members = [m for name, data in files.items() for m in ((name, data), (name.split(".")[0] + ".txt", b"cat"))]
        tar(folder / "x.tar", members)
        source = Source(format=kind, uri=str(folder))
    else:
        for name, data in files.items():
            (folder / name.lower()).write_bytes(data)
        if kind == "folder":
            table(folder, [("id", "file", "tags"), *((n, name.lower(), "cat") for n, name in enumerate(files))])
            source = Source(format="folder", uri=str(folder))
        else:
            lines = [yfcc_line({"id": str(n), "user": "u", "taken_at": "2020", "tags": ["cat"]}, 23) for n in range(14)]
            (folder / "yfcc100m_dataset").write_text("".join(lines))
            images = folder
            if kind == "yfcc tars":
                images = tar(tmp_path / "x.tar", list(files.items()))
            source = Source(format="yfcc", uri=str(folder), images=str(images))
    posts, reasons, counts = ingested(source, tmp_path / "store")
    wanted = {str(n): WANTED[suffix] for n, suffix in enumerate(SUFFIXES) if suffix in WANTED}
    assert reasons == wanted
    assert sorted(posts, key=int) == [str(n) for n, suffix in enumerate(SUFFIXES) if suffix not in WANTED]
    assert counts == (14, 9, 5)
    assert "looks like HEIC, which is not read: convert it to JPEG" in str(details(tmp_path / "store"))


def details(root):
    import lance

    return lance.dataset(str(root / "rejects.lance")).to_table(["id", "detail"]).to_pylist()


def test_an_index_of_tars_made_before_a_suffix_was_known_is_made_again(tmp_path):
    import sqlite3

    tar(tmp_path / "x.tar", [("1.avif", picture(1, "AVIF"))])
    (tmp_path / "yfcc100m_dataset").write_text(yfcc_line({"id": "1", "user": "u", "taken_at": "", "tags": ["cat"]}, 23))
    source = Source(format="yfcc", uri=str(tmp_path / "yfcc100m_dataset"), images=str(tmp_path / "*.tar"))
    cache = tmp_path / "cache"

    def reasons():
        return [
            row["reason"] for s in find_shards(source) for b in read_shard(source, s, cache) for row in b.to_pylist()
        ]

    assert reasons() == [None]
    with sqlite3.connect(cache / "tars.sqlite") as index:
        index.execute("DELETE FROM members")
    index.close()
    assert reasons() == ["no_image_file"]  # the index is believed
    with sqlite3.connect(cache / "tars.sqlite") as index:
        index.execute("PRAGMA user_version = 0")
    index.close()
    assert reasons() == [None]
