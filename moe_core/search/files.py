"""Files of a search_index artifact: the rows of posts, and where the vectors' files are."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

POSTS_FILE = "posts.arrow"
VECTORS, ORDER, ENDS, CENTROIDS = "vectors.f32", "order.npy", "ends.npy", "centroids.npy"
SEARCHED = pa.schema(
    [
        ("shard", pa.string()),
        ("position", pa.int64()),  # row in the shard
        ("id", pa.string()),
        ("expert", pa.int32()),  # its number in the mixture
        ("split", pa.string()),
        ("user", pa.string()),
        ("taken_at", pa.timestamp("us")),
        ("tags", pa.list_(pa.string())),  # canonical
        ("original", pa.string()),  # path or URL where the source has the image
    ]
)


def open_posts(path: Path) -> pa.Table:
    """The rows, mapped: only what is looked at is in memory, and stays readable where the file is removed."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def ids_of(path: Path) -> Iterator[str]:
    """Ids of all the posts."""
    for chunk in open_posts(path)["id"].chunks:
        yield from chunk.to_pylist()


class VectorFiles:
    """Where the files of the vectors lie, by a function of their names."""

    def __init__(self, file: Callable[[str], Any]) -> None:
        self.vectors, self.order = Path(file(VECTORS)), Path(file(ORDER))
        self.ends, self.centroids = Path(file(ENDS)), Path(file(CENTROIDS))
