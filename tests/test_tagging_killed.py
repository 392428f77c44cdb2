"""`hardmoe predict --out` of some thousand pictures: stopped, refused to a second process, killed, and run again."""

import os
import signal

import polars as pl
import pytest
from click.testing import CliRunner
from PIL import Image

from helpers.builders import until_it_stops
from helpers.bundles import images
from pipelines.cli.main import main

PICTURES = 4500  # one part of 4,096, and some more


@pytest.fixture
def holiday(tmp_path):
    folder = tmp_path / "holiday"
    folder.mkdir()
    for number, pixels in enumerate(images(PICTURES)):
        Image.fromarray(pixels).save(folder / f"{number:05d}.bmp")
    return folder


@pytest.mark.slow
def test_every_picture_is_there_once_after_a_sigkill_in_the_middle(started, bundle_folder, holiday, tmp_path):
    out, parts = tmp_path / "tags.parquet", tmp_path / ".tags.parquet.parts"
    command = ("predict", "--bundle", bundle_folder, holiday, "--out", out, "--sidecar", "txt")
    first = started(*command, HARDMOE_FAULT="stop predict.part")
    until_it_stops(first)
    second = CliRunner().invoke(main, [*map(str, command)])
    assert f"another process writes {out}: wait until it has ended, or choose another --out" in second.stderr
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait(timeout=60) == -signal.SIGKILL
    assert not out.exists()
    assert [path.name for path in sorted(parts.glob("*.parquet"))] == ["00000000.parquet"]
    again = started(*command)
    output, error = again.communicate(timeout=120)
    assert again.returncode == 0, error
    assert "Resumed: 4,096 pictures are done" in error
    assert f"{PICTURES:,} answered, 0 failed, 0 skipped" in output
    rows = pl.read_parquet(out)
    assert rows["image"].to_list() == [str(holiday / f"{number:05d}.bmp") for number in range(PICTURES)]
    assert set(rows["status"]) == {"answered"}
    assert len(list(holiday.glob("*.txt"))) == PICTURES
    assert not parts.exists()
