"""Small JSON files that name what is current: read whole, replaced in one move, and damage told from absence."""

import json

import pytest

from moe_core.errors import CorruptArtifact
from moe_core.store import pointer


def test_a_pointer_that_was_never_written_is_none(tmp_path):
    assert pointer.read(tmp_path / "trunk" / "current.json") is None


def test_a_pointer_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "trunk" / "current.json"
    assert pointer.write(path, {"trunk": "v1", "shards": ["a", "b"]})
    assert pointer.read(path) == {"trunk": "v1", "shards": ["a", "b"]}
    assert [file.name for file in path.parent.iterdir()] == ["current.json"]


def test_an_equal_value_writes_nothing(tmp_path):
    path = tmp_path / "current.json"
    pointer.write(path, {"trunk": "v1"})
    before = path.stat()
    assert not pointer.write(path, {"trunk": "v1"})
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert pointer.write(path, {"trunk": "v2"})
    assert pointer.read(path) == {"trunk": "v2"}


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "null", '{"trunk": "v1"}', "[" * 100_000, "\udce9"], ids=lambda text: text[:9]
)
def test_a_damaged_pointer_names_its_file_and_is_replaced_by_the_next_write(tmp_path, text):
    path = tmp_path / "current.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CorruptArtifact, match="is damaged") as raised:
        pointer.read(path)
    assert raised.value.path == path
    assert pointer.write(path, {"trunk": "v1"})
    assert pointer.read(path) == {"trunk": "v1"}


def test_an_edited_value_is_damage(tmp_path):
    path = tmp_path / "current.json"
    pointer.write(path, {"trunk": "v1"})
    path.write_text(path.read_text().replace("v1", "v2"))
    with pytest.raises(CorruptArtifact, match="its checksum does not match"):
        pointer.read(path)


def test_other_fields_than_those_wanted_are_damage(tmp_path):
    path = tmp_path / "current.json"
    pointer.write(path, {"trunk": "v1"})
    with pytest.raises(CorruptArtifact, match="it has trunk; wanted trunk, shards"):
        pointer.read(path, ("trunk", "shards"))
    assert pointer.read(path, ("trunk",)) == {"trunk": "v1"}


def test_the_checksum_does_not_depend_on_the_order_of_the_fields(tmp_path):
    path = tmp_path / "current.json"
    pointer.write(path, {"a": 1, "b": 2})
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items()))))
    assert pointer.read(path) == {"a": 1, "b": 2}


def test_a_request_is_removed_once_or_twice(tmp_path):
    path = tmp_path / "request.json"
    pointer.write(path, {"trunk": "v1"})
    pointer.remove(path)
    pointer.remove(path)
    assert pointer.read(path) is None
