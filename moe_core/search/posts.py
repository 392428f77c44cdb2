"""What search knows of each post beside its vector: one row a post, in the order of the shards and of their rows."""

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moe_core.data.splits import SPLITS
from moe_core.errors import CorruptArtifact
from moe_core.search.files import SEARCHED
from moe_core.store.artifact import Artifact
from moe_core.store.protocols import ArtifactStore
from moe_core.tables.lance_tags import lance_tag_of
from moe_core.tables.location import tables_of
from moe_core.tables.reading import scan_rows
from moe_core.tables.vectors import column_in
from moe_core.tables.versions import at

OF_POSTS = ("position", "id", "user", "taken_at", "tags", "original")
ROWS = 65_536  # read at once


def read_posts(store: ArtifactStore, embeddings: Sequence[Artifact], splits: Artifact) -> Iterator[pa.RecordBatch]:
    """Rows of SEARCHED of all the posts that were embedded, some at a time.

    Raises CorruptArtifact where the embeddings of a shard are not those of its posts.
    """
    by_shard, names = _splits_by_shard(splits), pa.array(SPLITS)
    table = tables_of(store).posts
    for artifact in embeddings:
        shard, tag = str(artifact.key), lance_tag_of(str(artifact.key), artifact.inputs["posts"])
        known = at(table, tag)[0].schema.names
        parts = [*column_in(artifact.folder("embeddings.lance"), "expert")]
        experts = pa.concat_arrays([pa.array([], pa.int32()), *parts])
        split_N, first = by_shard.get(shard, np.empty(0, np.int8)), 0
        for batch in scan_rows(table, tag, shard, [name for name in OF_POSTS if name in known], ROWS):
            rows = slice(first, first + len(batch))
            columns = {name: batch[name] for name in batch.schema.names}
            columns |= {"shard": pa.repeat(shard, len(batch)), "expert": experts[rows]}
            columns["split"] = names.take(pa.array(split_N[rows]))
            if any(len(column) != len(batch) for column in columns.values()):
                break
            yield pa.record_batch(
                [
                    columns[field.name] if field.name in columns else pa.nulls(len(batch), field.type)
                    for field in SEARCHED
                ],
                schema=SEARCHED,
            )
            first = rows.stop
        if first != len(experts):
            raise CorruptArtifact(f"{artifact.uri} has {len(experts)} posts, its shard has others: run `hardmoe run`")


def _splits_by_shard(splits: Artifact) -> dict[str, np.ndarray]:
    """(N,) int8: numbers in SPLITS of the posts of each shard."""
    number = {name: number for number, name in enumerate(SPLITS)}
    parts: dict[str, list[np.ndarray]] = {}
    with pq.ParquetFile(splits.file("splits.parquet")) as file:
        for batch in file.iter_batches(ROWS, columns=["shard", "split"]):
            for (shard,), rows in pl.DataFrame(batch).group_by("shard", maintain_order=True):
                numbers = rows["split"].replace_strict(number, return_dtype=pl.Int8)
                parts.setdefault(str(shard), []).append(numbers.to_numpy())
    return {shard: np.concatenate(arrays) for shard, arrays in parts.items()}


def rows_of_ids(table: pa.Table, ids: Sequence[str]) -> dict[str, np.ndarray]:
    """Rows of each id; none where it is not known."""
    found: dict[str, list[int]] = {one: [] for one in ids}
    wanted, first = pa.array(list(found), pa.string()), 0
    for chunk in table["id"].chunks:
        for row in np.flatnonzero(pc.is_in(chunk, wanted).to_numpy(zero_copy_only=False)).tolist():
            found[chunk[row].as_py()].append(first + row)
        first += len(chunk)
    return {one: np.array(rows, np.int64) for one, rows in found.items()}
