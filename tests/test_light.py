"""A bundle answers the same where only torch, numpy, Pillow and safetensors are installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.bundles import images
from moe_core.data import images as decoding
from moe_core.data.images import encode, read_pixels
from moe_core.errors import CorruptArtifact

PROGRAM = Path(__file__).parent / "helpers/light.py"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files of several formats, one that is broken, and one that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, pixels in enumerate(images(12)):
        kind = ("png", "jpg", "webp")[number % 3]
        Image.fromarray(pixels).resize((50, 40)).save(folder / f"{number:02}.{kind}")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (folder / "notes.txt").write_text("none")
    return folder


def run(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "HARDMOE_STUDY"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(PROGRAM.parents[2]), str(PROGRAM.parents[1])])}
    command = [sys.executable, "-W", "error", str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_answers_and_embeddings_are_the_same_bits_without_the_pipeline(whole_bundle, pictures):
    both = [run(*option, whole_bundle, pictures) for option in (["--only-four"], [])]
    assert [done.returncode for done in both] == [0, 0], both
    light, full = (json.loads(done.stdout) for done in both)
    assert light.pop("loaded") == []
    full.pop("loaded")
    assert light == full
    assert light["shapes"] == [[12, 8, 8, 3], [12, 5], [12, 6]]
    assert len(light["errors"]) == 1
    assert sum(bool(tags) for tags in light["tags"]) == 12


def test_the_command_predicts_without_the_pipeline(whole_bundle, pictures):
    done = run("--command", "predict", "--bundle", whole_bundle, pictures / "00.png", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)[0]["tags"]) == 5


def test_the_server_and_studies_in_folders_need_no_pipeline():
    done = run("--served")
    assert (done.returncode, done.stderr) == (0, "")


def test_help_is_there_without_the_pipeline():
    done = run("--command", "--help")
    assert done.returncode == 0
    assert "predict" in done.stdout


@pytest.mark.parametrize("arguments", [["run"], ["predict", "--study", "."], ["status", "--help"]])
def test_what_needs_the_pipeline_says_so_in_one_line(arguments):
    done = run("--command", *arguments, *(["x.png"] if "predict" in arguments else []))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert "which is not installed: pip install 'hardmoe[cpu]'" in done.stderr


@pytest.mark.parametrize("kind", ["raw", "jpeg", "png", "webp"])
@pytest.mark.parametrize("colors", ["RGB", "BGR"])
def test_stored_pictures_have_the_same_pixels_without_simplejpeg(monkeypatch, kind, colors):
    pixels = images(1, seed=5)[0].repeat(9, 0).repeat(9, 1)
    size = len(pixels)
    stored = encode(pixels.tobytes(), size, kind)
    found = np.zeros((2, size, size, 3), np.uint8)
    read_pixels(stored, found[0], colors)
    monkeypatch.setattr(decoding, "simplejpeg", None)
    read_pixels(stored, found[1], colors)
    assert found[1].any()
    assert np.array_equal(found[0], found[1])


def test_a_stored_picture_of_another_size_is_refused_without_simplejpeg(monkeypatch):
    monkeypatch.setattr(decoding, "simplejpeg", None)
    stored = encode(images(1)[0].tobytes(), 8, "jpeg")
    with pytest.raises(CorruptArtifact, match="a stored picture is 8x8, wanted 16x16"):
        read_pixels(stored, np.zeros((16, 16, 3), np.uint8))
