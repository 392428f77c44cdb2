"""Ingests a shard as written into posts and rejects: every row read ends in exactly one of the two.

Three things happen at once: one thread reads the source and checks ids and tags a batch at a time, by column; others
decode chunks of its rows; lance writes. What is in flight is bounded, so memory does not grow with the shard.
"""

import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from moe_core.data import images
from moe_core.data.duplicates import SIGNATURE_BYTES, signature
from moe_core.data.splits import GIVEN
from moe_core.data.tags import canonical_lists
from moe_core.data.takedowns import MAX_ID
from moe_core.errors import BadSource
from moe_core.settings import Data
from moe_core.store.layout import Layout
from moe_core.tables import copied, replace_rows

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
    ]
)
REJECTS = pa.schema(
    [
        ("shard", pa.string()),
        ("position", pa.int64()),
        ("source", pa.string()),  # file or URI of the shard
        ("id", pa.string()),
        ("user", pa.string()),  # so that a takedown of a user finds it
        ("written", pa.list_(pa.string())),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
REASONS = {
    "taken_down": "taken down with `hardmoe forget`; nothing else is kept of it",
    "no_id": "no id, or one of spaces only",
    "bad_id": "an id with control characters, or of more than 512 characters",
    "too_many_tags": "more than 1,000 tags, or more than 100,000 bytes in them",
    "no_tags": "no tag written, or nothing left of those written",
    "bad_split": "a split that is none of train, validation (val, valid), test and router",
    **images.REASONS,
    "duplicate_id": "an accepted post before it in the shard has the same id",
    "internal_error": "a mistake of ours on this row alone: please report it with its detail",
}
MAX_DETAIL = 200  # characters
MAX_TAGS, MAX_TAG_BYTES = 1000, 100_000  # of one post
TAGS_OF_REJECTED, TAG_OF_REJECTED = 20, 100  # tags, and characters of each, kept of a post with too many
FIRST, LAST = pl.datetime(1826, 1, 1), pl.datetime(2100, 1, 1)  # outside of these years a camera's clock was wrong
EXAMPLES = 3  # rejects of each reason that are named
REPORT_ROWS = 1000  # a report may cost a write to the disk
CHUNK_ROWS, CHUNK_BYTES = 128, 8 << 20  # of image files, decoded by one thread in one go


@dataclass(frozen=True)
class Example:
    """A rejected row."""

    position: int
    id: str
    detail: str


@dataclass
class Count:
    """Counts of one shard: read = accepted + the sum of the reasons."""

    read: int = 0
    accepted: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Example]] = field(default_factory=dict)

    @property
    def rejected(self) -> int:
        return sum(self.reasons.values())


@dataclass(frozen=True)
class Ingested:
    """Where a shard's rows lie now."""

    count: Count
    posts_version: int
    rejects_version: int


def ingest(
    root: Path,
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
    """Replaces the shard's rows in posts.lance and rejects.lance under `root`, in versions that `lance_tags` name.

    `threads` decode. Posts for which `taken_down(id, user)` is true leave a rejected row with nothing else of them.
    Raises TooManyRejected, with nothing replaced in posts.lance, when more than `data.max_reject_rate` are rejected;
    the newest version of rejects.lance has them. Raises RuntimeError when a row was lost. `report` is given the number
    of posts read so far. The result is the same for any number of threads.
    """
    count, layout = Count(), Layout(root)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=root) as spilled, images.quiet:
        rejects = _Rejects(spilled, shard, source, count)
        accepted = _accept(shard, _chunks(batches, data, taken_down), count, rejects, report, data, threads)
        try:
            posts_version = replace_rows(
                layout.posts_table, POSTS, shard, _checked(accepted, shard, data, count), lance_tags
            )
        except TooManyRejected as error:
            version = replace_rows(layout.rejects_table, REJECTS, shard, rejects.batches())
            raise TooManyRejected(f"{error}; all of them are in version {version} of {layout.rejects_table}") from None
        rejects_version = replace_rows(layout.rejects_table, REJECTS, shard, rejects.batches(), lance_tags)
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
        named = [
            f"row {example.position}: {reason}"
            for reason, _ in count.reasons.most_common(EXAMPLES)
            for example in count.examples[reason][:1]
        ]
        raise TooManyRejected(
            f"shard {shard}: {count.rejected} of {count.read} posts rejected ({why}; for example "
            f"{'; '.join(named)}), more than data.max_reject_rate = {data.max_reject_rate}: "
            "check the source, or raise the setting"
        )


@dataclass(frozen=True)
class Chunk:
    """Some rows of a shard: their text, checked, and their image files."""

    text: pl.DataFrame  # position, id, written, tags, user, taken_at, given, reason (null: none so far), detail
    files: pa.Array  # binary
    read: int  # rows up to its end


@dataclass(frozen=True)
class Converted:
    """For each row of a chunk the stored image and what its file was, or why there is none."""

    image: list[bytes | None]
    width: list[int]
    height: list[int]
    format: list[str]
    signature: list[bytes]
    reason: list[str | None]
    detail: list[str]


def _accept(
    shard: str,
    chunks: Iterator[Chunk],
    count: Count,
    rejects: "_Rejects",
    report: Callable[[int], None],
    data: Data,
    threads: int,
) -> Iterator[pa.RecordBatch]:
    """Accepted posts in their order; rejected ones go to `rejects`, and all are counted."""
    seen, reported = _Seen(), 0
    waiting: deque[tuple[Chunk, Future[Converted]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        for chunk in _ahead(chunks):
            count.read = chunk.read
            waiting.append((chunk, pool.submit(_convert, chunk, data)))
            if len(waiting) > 2 * threads:
                yield from _sorted_out(shard, *waiting.popleft(), seen, count, rejects)
            if chunk.read >= reported + REPORT_ROWS:
                reported = chunk.read
                report(reported)
        while waiting:
            yield from _sorted_out(shard, *waiting.popleft(), seen, count, rejects)
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


def _chunks(
    batches: Iterable[pa.RecordBatch], data: Data, taken_down: Callable[[str | None, str | None], bool] | None
) -> Iterator[Chunk]:
    """Rows with their text checked, in slices that one thread decodes."""
    read = 0
    for batch in batches:
        text, files = _text(batch, read, data), batch["image"]
        if taken_down is not None:
            text = _without(text, taken_down)
        starts = np.cumsum(pc.fill_null(pc.binary_length(files), 0).to_numpy(zero_copy_only=False))
        first = 0
        while first < len(batch):
            already = starts[first - 1] if first else 0
            fits = int(np.searchsorted(starts, already + CHUNK_BYTES, side="right"))
            last = max(first + 1, min(fits, first + CHUNK_ROWS, len(batch)))
            yield Chunk(text[first:last], files.slice(first, last - first), read + last)
            first = last
        read += len(batch)


def _text(batch: pa.RecordBatch, before: int, data: Data) -> pl.DataFrame:
    """Checks rows without their images. The first reason that holds is given."""
    names = [
        name for name in ("id", "tags", "user", "taken_at", "split", "reason", "detail") if name in batch.schema.names
    ]
    rows = pl.DataFrame(pl.from_arrow(pa.table(batch.select(names))))
    absent = [pl.lit(None, pl.String).alias(name) for name in ("reason", "detail") if name not in names]
    rows = rows.with_row_index("position", before).with_columns(pl.col("position").cast(pl.Int64), *absent)
    written = pl.col("tags").list.drop_nulls()
    bytes_in_tags = written.list.eval(pl.element().str.len_bytes()).list.sum()
    rows = rows.with_columns(
        written.alias("written"),
        ((written.list.len() > MAX_TAGS) | (bytes_in_tags > MAX_TAG_BYTES)).fill_null(False).alias("many"),
    )
    short = pl.col("written").list.head(TAGS_OF_REJECTED).list.eval(pl.element().str.head(TAG_OF_REJECTED))
    rows = rows.with_columns(
        pl.when("many").then(short).otherwise("written").alias("written"),
        pl.format("{} tags, {} bytes", pl.col("written").list.len(), bytes_in_tags).alias("many_detail"),
    )
    given = pl.col("split").str.strip_chars().str.to_lowercase().fill_null("")
    usable = rows.select(pl.when(~pl.col("many")).then("written").alias("tags")).to_series()
    rows = rows.with_columns(
        canonical_lists(usable, data.accents).alias("tags"),
        given.replace_strict(GIVEN, default=None, return_dtype=pl.String).alias("given"),
        given.alias("given_text"),
        pl.when(pl.col("taken_at").is_between(FIRST, LAST, closed="left")).then("taken_at").alias("taken_at"),
    )
    no_tags = pl.col("tags").list.len() == 0
    none_written = pl.col("written").list.len().fill_null(0) == 0
    characters = pl.col("id").str.len_chars()
    checks = (
        (pl.col("reason").fill_null("") != "", pl.col("reason"), pl.col("detail")),
        (pl.col("id").str.strip_chars().fill_null("") == "", pl.lit("no_id"), pl.lit("")),
        (characters > MAX_ID, pl.lit("bad_id"), pl.format("{} characters", characters)),
        (pl.col("id").str.contains(r"\p{Cc}"), pl.lit("bad_id"), pl.lit("control characters")),
        (pl.col("many"), pl.lit("too_many_tags"), pl.col("many_detail")),
        (no_tags & none_written, pl.lit("no_tags"), pl.lit("none written")),
        (no_tags, pl.lit("no_tags"), pl.lit("none left of those written")),
        (pl.col("given").is_null() & (pl.col("given_text") != ""), pl.lit("bad_split"), pl.col("split").str.head(50)),
    )
    return rows.select(
        "position",
        pl.col("id").str.head(MAX_ID),
        "written",
        "tags",
        "user",
        "taken_at",
        "given",
        pl.coalesce(pl.when(holds).then(reason) for holds, reason, _ in checks).alias("reason"),
        pl.coalesce(pl.when(holds).then(detail.fill_null("")) for holds, _, detail in checks)
        .str.head(MAX_DETAIL)
        .alias("detail"),
    )


def _without(text: pl.DataFrame, taken_down: Callable[[str | None, str | None], bool]) -> pl.DataFrame:
    """Leaves nothing but a reason of the rows that were taken down."""
    gone = pl.Series([taken_down(*row) for row in text.select("id", "user").iter_rows()], dtype=pl.Boolean)
    emptied = [pl.when(~gone).then(pl.col(name)).alias(name) for name in text.columns if name != "position"]
    reason = pl.when(gone).then(pl.lit("taken_down")).otherwise("reason").alias("reason")
    return text.with_columns(emptied).with_columns(reason)


def _convert(chunk: Chunk, data: Data) -> Converted:
    """Decodes the rows that have no reason yet. A bug of ours on one file costs that row, and is counted."""
    converted = Converted([], [], [], [], [], [], [])
    pixels, black = [], bytes(3 * data.image_size**2)
    for number, before in enumerate(chunk.text["reason"]):
        stored, picture, reason, detail = None, _NOTHING, None, ""
        if before is None:
            try:
                file = chunk.files[number].as_py() or b""
                picture = images.decode(file, data.image_size, data.min_side, data.reject_uniform)
                stored = images.encode(picture.pixels, data.image_size, data.store)
            except images.Rejected as why:
                reason, detail = why.reason, why.detail
            except MemoryError:
                raise
            except Exception as error:
                reason, detail = "internal_error", f"{type(error).__name__}: {error}"[:MAX_DETAIL]
        converted.image.append(stored)
        converted.width.append(picture.width)
        converted.height.append(picture.height)
        converted.format.append(picture.format)
        pixels.append(picture.pixels or black)
        converted.reason.append(reason)
        converted.detail.append(detail)
    signature_BW = signature(np.frombuffer(b"".join(pixels), np.uint8).reshape(-1, data.image_size, data.image_size, 3))
    converted.signature.extend(row.tobytes() for row in signature_BW)
    return converted


_NOTHING = images.Picture(b"", 0, 0, "")


def _sorted_out(
    shard: str, chunk: Chunk, future: "Future[Converted]", seen: "_Seen", count: Count, rejects: "_Rejects"
) -> Iterator[pa.RecordBatch]:
    """The accepted posts of a chunk, counted; the others are passed to `rejects`."""
    converted = future.result()
    rows = chunk.text.with_columns(
        pl.coalesce("reason", pl.Series(converted.reason, dtype=pl.String)).alias("reason"),
        pl.coalesce("detail", pl.Series(converted.detail, dtype=pl.String)).alias("detail"),
    )
    good_N = rows["reason"].is_null().to_numpy()
    good_N[good_N] = seen.add(rows["id"].filter(good_N))
    rows = rows.with_columns(
        pl.when(pl.Series(good_N) | pl.col("reason").is_not_null()).then("reason").otherwise(pl.lit("duplicate_id"))
    )
    if not good_N.all():
        rejects.add(rows.filter(~good_N))
    if not good_N.any():
        return
    kept = rows.filter(good_N)
    for split, number in kept["given"].fill_null("none").value_counts().iter_rows():
        count.splits[split] += number
    mask = pa.array(good_N)
    columns = {name: _arrow(kept[name]) for name in ("position", "id", "written", "tags", "user", "taken_at", "given")}
    columns |= {"shard": pa.repeat(shard, len(kept))}
    for name in ("image", "width", "height", "format", "signature"):
        columns[name] = pa.array(getattr(converted, name), POSTS.field(name).type).filter(mask)
    count.accepted += len(kept)
    yield pa.RecordBatch.from_arrays([columns[f.name].cast(f.type) for f in POSTS], schema=POSTS)


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


class _Rejects:
    """Rejected rows on their way to the table: in a file without a name, which goes with the process."""

    def __init__(self, file: IO[bytes], shard: str, source: str, count: Count) -> None:
        self.file, self.shard, self.source, self.count = file, shard, source, count
        self.writer = pa.ipc.new_stream(file, REJECTS)

    def add(self, rows: pl.DataFrame) -> None:
        columns = {name: _arrow(rows[name]) for name in ("position", "id", "user", "written", "reason", "detail")}
        columns |= {"shard": pa.repeat(self.shard, len(rows)), "source": pa.repeat(self.source, len(rows))}
        arrays = [columns[f.name].cast(f.type) for f in REJECTS]
        self.writer.write_batch(copied(pa.RecordBatch.from_arrays(arrays, schema=REJECTS)))
        for reason, position, name, detail in rows.select("reason", "position", "id", "detail").iter_rows():
            self.count.reasons[reason] += 1
            named = self.count.examples.setdefault(reason, [])
            if len(named) < EXAMPLES:
                named.append(Example(position, _shown(name or f"row {position}"), _shown(detail)))

    def batches(self) -> Iterator[pa.RecordBatch]:
        self.writer.close()
        self.file.seek(0)
        yield from pa.ipc.open_stream(self.file)


def _shown(text: str) -> str:
    """Text for a terminal or a page: short, without control characters. The table keeps it as it was."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:80])


def _arrow(column: pl.Series) -> pa.Array:
    """With the plain types that lance stores."""
    return column.to_arrow(compat_level=pl.CompatLevel.oldest())
