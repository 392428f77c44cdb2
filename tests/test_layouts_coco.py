"""COCO: annotations and captions joined with pictures, in any order and of any size."""

import json

import pytest

from helpers.layouts import described, pictures, posts_of, rows_of
from moe_core.data.sources.guessing import guess_format
from moe_core.data.sources.shards import find_shards
from moe_core.errors import BadSource
from moe_core.settings import Source

# COCO


def coco(path, names, annotations, first=1, **more):
    """`annotations`: (number of the picture, category or caption)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    categories = [{"id": 17, "name": "cat", "supercategory": "animal"}, {"id": 58, "name": "hot dog"}]
    said = {"info": {"year": 2017}, "licenses": [{"id": 1, "name": "images"}]}
    said["images"] = [{"id": first + n, "file_name": name, "width": 16} for n, name in enumerate(names)]
    said["annotations"] = [
        {"id": n, "image_id": first + number, **({"category_id": what} if isinstance(what, int) else {"caption": what})}
        for n, (number, what) in enumerate(annotations)
    ]
    path.write_text(json.dumps(said | {"categories": categories} | more))
    return path


def test_instances_and_captions_of_a_split_are_joined(tmp_path):
    for split, n in (("train2017", 0), ("val2017", 1)):
        pictures(tmp_path / split, "0.jpg")
        where = tmp_path / "annotations"
        coco(where / f"instances_{split}.json", ["0.jpg"], [(0, 17), (0, 58), (0, 17)][n:], first=7)
        coco(
            where / f"captions_{split}.json", ["0.jpg"], [(0, "The CAT is on a mat."), (0, "Two cats, a café")], first=7
        )
        coco(where / f"person_keypoints_{split}.json", ["0.jpg"], [(0, 17)], first=7)
    tags = {"train2017/0.jpg": ["cat", "hot dog", "cat", "mat", "cats", "café"]}
    tags["val2017/0.jpg"] = ["hot dog", "cat", "cat", "mat", "cats", "café"]
    for uri in (tmp_path, tmp_path / "annotations"):
        kind, found = posts_of(uri)
        assert kind == "coco"
        assert {name: said for name, (said, _, _) in found.items()} == tags
        assert [said[1:] for said in found.values()] == [("train", None), ("validation", None)]
    source = Source(format="coco", uri=str(tmp_path / "annotations" / "captions_*.json"))
    assert [row["tags"] for row in rows_of(source)] == [["cat", "mat", "cats", "café"]] * 2
    single = Source(format="coco", uri=str(tmp_path / "annotations" / "instances_val2017.json"))
    assert [(row["id"], row["tags"]) for row in rows_of(single)] == [("val2017/0.jpg", ["hot dog", "cat"])]
    lines = described(Source(format="coco", uri=str(tmp_path)))
    assert "Columns: id from file_name, image from file_name, tags from categories and words of captions" in lines
    assert lines[-1] == "Split: by the names of files (train 1, validation 1); test posts: by hash"


def test_coco_beside_its_pictures_in_folders_of_splits(tmp_path):
    for split in ("train", "valid", "test"):
        coco(tmp_path / split / "_annotations.coco.json", ["0.jpg", "gone.jpg", "../x.jpg"], [(0, 17), (1, 58)])
        pictures(tmp_path / split, "0.jpg")
    kind, found = posts_of(tmp_path)
    assert kind == "coco"
    assert found["valid/0.jpg"] == (["cat"], "validation", None)
    assert found["test/gone.jpg"] == (["hot dog"], "test", "no_image_file")
    assert found["train/../x.jpg"][2] == "outside_folder"
    assert len(found) == 9


def test_coco_with_its_pictures_elsewhere_and_its_own_ids(tmp_path):
    file = coco(tmp_path / "labels.json", ["a/0.jpg"], [(0, 17)], first=40)
    pictures(tmp_path / "far", "a/0.jpg")
    source = Source(format=guess_format(str(file)), uri=str(file), images=str(tmp_path / "far"))
    assert [(row["id"], row["tags"], row["reason"]) for row in rows_of(source)] == [("a/0.jpg", ["cat"], None)]
    (shard,) = find_shards(source)
    pictures(tmp_path / "far", "a/1.jpg")
    assert find_shards(source)[0].content_hash != shard.content_hash
    numbered = source.model_copy(update={"id_column": "id"})
    assert [row["id"] for row in rows_of(numbered)] == ["40"]


def test_coco_in_any_order_and_of_any_size_is_read_piece_by_piece(tmp_path, monkeypatch):
    from moe_core.data.sources import coco as reader

    names = [f"{n}.jpg" for n in range(200)]
    file = coco(tmp_path / "x.json", names, [(n, 17 if n % 2 else "a long bridge") for n in range(200)])
    said = json.loads(file.read_text())
    (tmp_path / "y.json").write_text(json.dumps(dict(reversed(said.items())), indent=3, ensure_ascii=True))
    wanted = list(reader.elements(file))
    assert wanted[1] == ("images", {"id": 1, "file_name": "0.jpg", "width": 16})
    for block in (1, 7, 300):
        monkeypatch.setattr(reader, "BLOCK", block)
        assert list(reader.elements(file)) == wanted
        assert sorted(map(str, reader.elements(tmp_path / "y.json"))) == sorted(map(str, wanted))
        assert (
            reader.count(Source(format="coco", uri=str(file)), find_shards(Source(format="coco", uri=str(file))))[0]
            == 200
        )
    found = [rows_of(Source(format="coco", uri=str(tmp_path / name))) for name in ("x.json", "y.json")]
    assert [row["tags"] for row in found[0]] == [row["tags"] for row in found[1]]
    assert found[0][0]["tags"] == ["long", "bridge"]


@pytest.mark.parametrize("kept", [10, 500, -1])
def test_coco_that_is_cut_short_is_named(tmp_path, kept):
    file = coco(tmp_path / "x.json", ["0.jpg"] * 20, [(n, 17) for n in range(20)])
    data = file.read_text()
    file.write_text(data[:kept])
    with pytest.raises(BadSource, match=r"x.json is cut short|no COCO JSON"):
        rows_of(Source(format="coco", uri=str(file)))


def test_damage_in_coco_gives_rows_or_one_line(tmp_path):
    import random

    file = coco(tmp_path / "x.json", [f"{n}.jpg" for n in range(9)], [(n, 17) for n in range(9)])
    good, draw = file.read_bytes(), random.Random(5)
    for _ in range(100):
        data = bytearray(good)
        at = draw.randrange(len(data))
        data[at : at + draw.choice((0, 1, 30))] = draw.choice(
            (b"\xff", b"{", b"]", b"\\ud800", b"[" * 5000, b"null", b"0")
        )
        file.write_bytes(data)
        wrong = None
        try:
            rows_of(Source(format="coco", uri=str(file)))
        except ValueError as error:
            wrong = error
        assert wrong is None or (type(wrong) is BadSource and "\n" not in str(wrong))
