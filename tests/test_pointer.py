"""Small JSON documents that name what is current: read whole, replaced in one move, and damage told from absence."""

import json
from pathlib import PurePath

import pytest

from moe_core.errors import CorruptArtifact
from moe_core.store import pointer
from moe_core.store.blobs import Folder
from moe_core.store.documents import BucketDocuments, FolderDocuments

NAME = PurePath("trunk/current.json")


@pytest.fixture(params=["files", "records"])
def documents(request, tmp_path):
    return FolderDocuments(tmp_path) if request.param == "files" else BucketDocuments(Folder(tmp_path))


def overwrite(documents, change):
    data = change(documents.read(NAME))
    documents.update(NAME, lambda _: data)


def test_a_pointer_that_was_never_written_is_none(documents):
    assert pointer.read(documents, NAME) is None


def test_a_pointer_comes_back_as_it_was_written(documents):
    assert pointer.write(documents, NAME, {"trunk": "v1", "shards": ["a", "b"]})
    assert pointer.read(documents, NAME) == {"trunk": "v1", "shards": ["a", "b"]}


def test_a_pointer_in_a_folder_is_one_file(tmp_path):
    pointer.write(FolderDocuments(tmp_path), NAME, {"trunk": "v1"})
    assert [file.name for file in (tmp_path / "trunk").iterdir()] == ["current.json"]


def test_an_equal_value_writes_nothing(documents):
    pointer.write(documents, NAME, {"trunk": "v1"})
    before = documents.stamps([NAME])
    assert not pointer.write(documents, NAME, {"trunk": "v1"})
    assert documents.stamps([NAME]) == before
    assert pointer.write(documents, NAME, {"trunk": "v2"})
    assert documents.stamps([NAME]) != before
    assert pointer.read(documents, NAME) == {"trunk": "v2"}


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "null", '{"trunk": "v1"}', "[" * 100_000, "\udce9"], ids=lambda text: text[:9]
)
def test_a_damaged_pointer_names_its_place_and_is_replaced_by_the_next_write(documents, text):
    overwrite(documents, lambda _: text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CorruptArtifact, match="is damaged") as raised:
        pointer.read(documents, NAME)
    assert raised.value.path == documents.where(NAME)
    assert pointer.write(documents, NAME, {"trunk": "v1"})
    assert pointer.read(documents, NAME) == {"trunk": "v1"}


def test_an_edited_value_is_damage(documents):
    pointer.write(documents, NAME, {"trunk": "v1"})
    overwrite(documents, lambda data: data.replace(b"v1", b"v2"))
    with pytest.raises(CorruptArtifact, match="its checksum does not match"):
        pointer.read(documents, NAME)


def test_other_fields_than_those_wanted_are_damage(documents):
    pointer.write(documents, NAME, {"trunk": "v1"})
    with pytest.raises(CorruptArtifact, match="it has trunk; wanted trunk, shards"):
        pointer.read(documents, NAME, ("trunk", "shards"))
    assert pointer.read(documents, NAME, ("trunk",)) == {"trunk": "v1"}


def test_the_checksum_does_not_depend_on_the_order_of_the_fields(documents):
    pointer.write(documents, NAME, {"a": 1, "b": 2})
    overwrite(documents, lambda data: json.dumps(dict(reversed(json.loads(data).items()))).encode())
    assert pointer.read(documents, NAME) == {"a": 1, "b": 2}


def test_a_request_is_removed_once_or_twice(documents):
    pointer.write(documents, NAME, {"trunk": "v1"})
    pointer.remove(documents, NAME)
    pointer.remove(documents, NAME)
    assert pointer.read(documents, NAME) is None
    assert pointer.write(documents, NAME, {"trunk": "v1"})
