"""Posts from the store into memory, in an order that does not depend on how Lance laid them out."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from moe_core.data.images import pixels_of
from moe_core.data.vocabulary import Vocabulary
from moe_core.tables import read_rows
from moe_core.training.batches import Posts


@dataclass(frozen=True)
class Place:
    """Where a shard's posts lie: a version of posts.lance."""

    shard: str
    version: int


def read_columns(root: Path, places: Sequence[Place], columns: list[str]) -> pl.DataFrame:
    """Columns of all the posts, shard by shard in the order of `places`, each in the order of its source."""
    return pl.concat([_polars(read_rows(root / "posts.lance", p.version, p.shard, columns)) for p in places])


def load_posts(
    root: Path, places: Sequence[Place], vocabulary: Vocabulary, size: int, wanted: np.ndarray | None = None
) -> Posts:
    """The posts, or those where `wanted` (one bool a post, in the order of `read_columns`) holds, decoded."""
    images, tags = [], []
    first = 0
    for place in places:
        rows = read_rows(root / "posts.lance", place.version, place.shard, ["image", "tags"])
        if wanted is not None:
            mask = wanted[first : first + len(rows)]
            first += len(rows)
            rows = rows.filter(pa.array(mask))
        images.append(_pixels(rows["image"], size))
        tags.append(_polars(rows.select(["tags"]))["tags"])
    if wanted is not None and first != len(wanted):
        raise ValueError(
            f"wanted {len(wanted)} posts, {root}/posts.lance holds {first}: were posts ingested meanwhile?"
        )
    ids_T, starts_N1 = vocabulary.compressed_rows(pl.concat(tags))
    images_NHWC = torch.from_numpy(np.concatenate(images))
    return Posts(images_NHWC.permute(0, 3, 1, 2), torch.from_numpy(ids_T.copy()), torch.from_numpy(starts_N1))


def tagged(tags: pl.Series, vocabulary: Vocabulary) -> np.ndarray:
    """(N,) bool: which posts carry a hashtag of the vocabulary."""
    _, starts_N1 = vocabulary.compressed_rows(tags)
    return np.diff(starts_N1) > 0


def _pixels(column: pa.ChunkedArray, size: int) -> np.ndarray:
    """(N, size, size, 3) uint8. Raw pixels are copied a chunk at a time, files decoded by the threads torch may use."""
    out = np.empty((len(column), size, size, 3), np.uint8)
    row = 0
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for chunk in column.chunks:
            first, last = chunk.offset, chunk.offset + len(chunk)
            offsets = np.frombuffer(chunk.buffers()[1], np.int32)[first : last + 1]
            if (np.diff(offsets) == 3 * size * size).all():
                flat = np.frombuffer(chunk.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
                out[row : row + len(chunk)] = flat.reshape(-1, size, size, 3)
            else:
                list(pool.map(_put, out[row : row + len(chunk)], chunk))
            row += len(chunk)
    return out


def _put(place: np.ndarray, stored: pa.BinaryScalar) -> None:
    place[:] = pixels_of(stored.as_py(), len(place))


def _polars(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
