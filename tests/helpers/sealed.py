"""Bundles that are changed and then sealed, as if they had been written so."""

import json

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from moe_core.serving.bundle import Bundle
from moe_core.store.hashing import content_hash, file_hash


def manifest_of(folder):
    said = json.loads((folder / "manifest.json").read_text())
    del said["checksum"]
    return said


def seal(folder, said):
    sealed = said | {"checksum": content_hash(said)} if isinstance(said, dict) else said
    (folder / "manifest.json").write_text(json.dumps(sealed, indent=1))


def changed(folder, *path, to=None, drop=False):
    """The manifest with the value at a path replaced or dropped, sealed as if it had been written so."""
    said = manifest_of(folder)
    place = said
    for name in path[:-1]:
        place = place[name]
    if drop:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    seal(folder, said)


def refused(folder):
    """What opening it is answered with."""
    with pytest.raises(ValueError, match=r".") as error:
        Bundle(folder)
    assert not isinstance(error.value, UnicodeError)
    text = str(error.value)
    assert "\n" not in text
    assert "pydantic" not in text
    assert len(text) < 1000
    return text


def entry_of(said, name):
    return said["experts"][name] if name in said["experts"] else said[name]


def rewritten(folder, name, change):
    """A part with other tensors under the same words about it, and its right SHA-256 in the manifest."""
    said = manifest_of(folder)
    path = folder / entry_of(said, name)["file"]
    with safe_open(path, framework="pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        about = file.metadata()
    change(state)
    save_file(state, path, metadata=about)
    entry_of(said, name)["sha256"] = file_hash(path)
    seal(folder, said)
