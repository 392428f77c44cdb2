"""Sources read and ingested: their rows, and the reasons of rejects."""

import io

import pytest
from PIL import Image

from moe_core.data.sources.shards import find_shards, read_shard
from moe_core.settings import Data

ANYTHING = Data(image_size=16, max_reject_rate=1)


def png(color="red"):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(file, "PNG")
    return file.getvalue()


def rows_of(source, cache=None):
    return [row for s in find_shards(source) for batch in read_shard(source, s, cache) for row in batch.to_pylist()]


def reasons(source, cache=None):
    return {row["id"]: row["reason"] for row in rows_of(source, cache)}


# Errors, each in one line


def said(source):
    with pytest.raises(ValueError, match=r".") as caught:
        rows_of(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)
