"""Ingests a shard as written into posts and rejects: every row read ends in exactly one of the two.

Three things happen at once: one thread reads the source and checks ids and tags a batch at a time, by column; others
decode chunks of its rows; lance writes. What is in flight is bounded, so memory does not grow with the shard.
"""

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from moe_core.data import images
from moe_core.data.checks import Chunk, chunks_of
from moe_core.data.duplicates import SIGNATURE_BYTES, signature
from moe_core.data.rejects import EXAMPLES, MAX_DETAIL, REJECTS, Count, Rejects, batches_of
from moe_core.errors import BadSource
from moe_core.settings import Data
from moe_core.tables.location import Tables
from moe_core.tables.shards import replace_rows

POSTS = pa.schema(
    [
        ("shard", pa.string()),
        ("position", pa.int64()),  # row in the shard
        ("id", pa.string()),
        ("image", pa.binary()),  # what images.encode made of the middle square
        ("written", pa.list_(pa.string())),
        ("tags", pa.list_(pa.string())),  # canonical, each once
        ("user", pa.string()),
        ("taken_at", pa.timestamp("us")),
        ("width", pa.int32()),  # of the file
        ("height", pa.int32()),
        ("format", pa.string()),
        ("signature", pa.binary(SIGNATURE_BYTES)),
        ("given", pa.string()),  # split that the source gives, by our name for it
        ("original", pa.string()),  # where the source has the image; null in posts from before it was kept
    ]
)
DECODED = {
    "image": pl.Binary,
    "width": pl.Int32,
    "height": pl.Int32,
    "format": pl.String,
    "reason": pl.String,
    "detail": pl.String,
}
REPORT_ROWS = 1000  # a report may cost a write to the disk


@dataclass(frozen=True)
class Ingested:
    """Where a shard's rows lie now."""

    count: Count
    posts_version: int
    rejects_version: int


def ingest(
    tables: Tables,
    shard: str,
    batches: Iterable[pa.RecordBatch],
    data: Data,
    report: Callable[[int], None],
    *,
    source: str = "",
    threads: int = 1,
    lance_tags: Sequence[str] = (),
    taken_down: Callable[[str | None, str | None], bool] | None = None,
) -> Ingested:
    """Replaces the shard's rows in posts.lance and rejects.lance, in versions that `lance_tags` name.

    `threads` decode. Posts for which `taken_down(id, user)` is true leave a rejected row with nothing else of them.
    Raises TooManyRejected, with nothing replaced in posts.lance, when more than `data.max_reject_rate` are rejected;
    the newest version of rejects.lance has them. Raises RuntimeError when a row was lost. `report` is given the number
    of posts read so far. The result is the same for any number of threads.
    """
    count, folder = Count(), tables.rejects.folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as spilled:
        rejects = Rejects(spilled, shard, source, count)
        accepted = _accept(shard, chunks_of(batches, data, taken_down), count, rejects, report, data, threads)
        try:
            posts_version = replace_rows(tables.posts, POSTS, shard, _checked(accepted, shard, data, count), lance_tags)
        except TooManyRejected as error:
            version = replace_rows(tables.rejects, REJECTS, shard, rejects.batches())
            raise TooManyRejected(f"{error}; all of them are in version {version} of {tables.rejects}") from None
        rejects_version = replace_rows(tables.rejects, REJECTS, shard, rejects.batches(), lance_tags)
    return Ingested(count, posts_version, rejects_version)


class TooManyRejected(BadSource):
    """More of a shard is rejected than data.max_reject_rate allows."""


def _checked(accepted: Iterator[pa.RecordBatch], shard: str, data: Data, count: Count) -> Iterator[pa.RecordBatch]:
    """Passes batches on; what is wrong with the whole shard is raised before its rows are committed."""
    given = 0
    for batch in accepted:
        given += len(batch)
        yield batch
    if given != count.accepted or count.accepted + count.rejected != count.read:
        raise RuntimeError(
            f"shard {shard}: {count.read} read, {given} + {count.rejected} kept: a row was lost; nothing was replaced"
        )
    if count.rejected - count.reasons["taken_down"] > data.max_reject_rate * count.read:
        why = ", ".join(f"{reason} {n}" for reason, n in count.reasons.most_common())
        named = [f"row {count.examples[reason][0]}: {reason}" for reason, _ in count.reasons.most_common(EXAMPLES)]
        raise TooManyRejected(
            f"shard {shard}: {count.rejected} of {count.read} posts rejected ({why}; for example "
            f"{'; '.join(named)}), more than data.max_reject_rate = {data.max_reject_rate}: "
            "check the source, or raise the setting"
        )


def _accept(
    shard: str,
    chunks: Iterator[Chunk],
    count: Count,
    rejects: Rejects,
    report: Callable[[int], None],
    data: Data,
    threads: int,
) -> Iterator[pa.RecordBatch]:
    """Accepted posts in their order; rejected ones go to `rejects`, and all are counted."""
    seen, reported = _Seen(), 0
    waiting: deque[Future[pl.DataFrame]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        for chunk in _ahead(chunks):
            count.read = chunk.read
            waiting.append(pool.submit(convert, chunk, data))
            if len(waiting) > 2 * threads:
                yield from _sorted_out(shard, waiting.popleft().result(), seen, count, rejects)
            if chunk.read >= reported + REPORT_ROWS:
                reported = chunk.read
                report(reported)
        while waiting:
            yield from _sorted_out(shard, waiting.popleft().result(), seen, count, rejects)
        report(count.read)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ahead(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Chunks, each read while the chunk before it is used.

    One thread reads them all: lance asks for batches from several threads, each of which would keep memory.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        future = pool.submit(next, chunks, None)
        while (chunk := future.result()) is not None:
            future = pool.submit(next, chunks, None)
            yield chunk


def convert(chunk: Chunk, data: Data) -> pl.DataFrame:
    """The rows with what is stored of their images, decoded where there is no reason yet.

    A bug of ours on one file costs that row, and is counted.
    """
    rows, pixels, black = list[dict[str, Any]](), [], bytes(3 * data.image_size**2)
    for number, before in enumerate(chunk.text["reason"]):
        row, seen = dict[str, Any](), black
        if before is None:
            try:  # in this one frame: an error may keep its frames, and their files, until the next collection
                file = chunk.files[number].as_py() or b""
                picture = images.decode(file, data.image_size, data.min_side, data.reject_uniform)
                stored = images.encode(picture.pixels, data.image_size, data.store)
                row = {"image": stored, "width": picture.width, "height": picture.height, "format": picture.format}
                seen = picture.pixels
            except images.Rejected as why:
                row = {"reason": why.reason, "detail": why.detail}
            except MemoryError:
                raise
            except Exception as error:
                row = {"reason": "internal_error", "detail": f"{type(error).__name__}: {error}"[:MAX_DETAIL]}
        rows.append(row)
        pixels.append(seen)
    signature_BW = signature(np.frombuffer(b"".join(pixels), np.uint8).reshape(-1, data.image_size, data.image_size, 3))
    decoded = pl.DataFrame(rows, schema=DECODED)
    return chunk.text.with_columns(
        *decoded.select("image", "width", "height", "format"),
        pl.Series("signature", [one_W.tobytes() for one_W in signature_BW], pl.Binary),
        pl.coalesce("reason", decoded["reason"]),
        pl.coalesce("detail", decoded["detail"], pl.lit("")),
    )


def _sorted_out(
    shard: str, rows: pl.DataFrame, seen: "_Seen", count: Count, rejects: Rejects
) -> Iterator[pa.RecordBatch]:
    """The accepted posts of a chunk, counted; the others are passed to `rejects`."""
    good_N = rows["reason"].is_null().to_numpy()
    good_N[good_N] = seen.add(rows["id"].filter(good_N))
    rows = rows.with_columns(
        pl.when(pl.Series(good_N) | pl.col("reason").is_not_null()).then("reason").otherwise(pl.lit("duplicate_id"))
    )
    rejects.add(rows.filter(~good_N))
    kept = rows.filter(good_N)
    count.splits.update(kept["given"].fill_null("none"))
    count.accepted += len(kept)
    yield from batches_of(kept.with_columns(pl.lit(shard).alias("shard")), POSTS)


class _Seen:
    """Ids that were accepted, as 64-bit hashes: 8 bytes a post, in sorted runs that are merged as they grow alike."""

    def __init__(self) -> None:
        self.runs: list[np.ndarray] = []

    def add(self, ids: pl.Series) -> np.ndarray:
        """(N,) bool: which are new, the first of equal ones."""
        hash_N = ids.hash(seed=0).to_numpy()
        run, first = np.unique(hash_N, return_index=True)
        new_N = np.zeros(len(hash_N), bool)
        new_N[first] = True
        for known in self.runs:
            place_N = np.minimum(np.searchsorted(known, hash_N), len(known) - 1)
            new_N &= known[place_N] != hash_N
        run = np.sort(hash_N[new_N])
        while self.runs and len(self.runs[-1]) <= 2 * len(run):
            run = np.sort(np.concatenate([self.runs.pop(), run]))
        if len(run):
            self.runs.append(run)
        return new_N
