"""The schema of what every reader gives, and batches of it as written, bounded in rows and bytes.

A row that the reader cannot use is given all the same, with a `reason`: the ingest counts it and rejects it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from moe_core.data.captions import hashtags_in

TAGS = pa.list_(pa.string())
RAW = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.binary()),
        ("tags", TAGS),
        ("user", pa.string()),
        ("taken_at", pa.timestamp("us")),
        ("split", pa.string()),
        ("reason", pa.string()),  # why the row cannot be used; null where it can
        ("detail", pa.string()),
        ("original", pa.string()),  # URL, path within the source, or place in a file
    ]
)
BATCH = 1000
BATCH_BYTES = 64 << 20

Row = dict[str, Any]  # the columns of RAW that are not null, and perhaps `caption`


class Unusable(Exception):
    """A row that cannot be used, by a reason that can be counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@contextmanager
def reasons_noted(row: Row) -> Iterator[None]:
    """Notes in a row why it cannot be used."""
    try:
        yield
    except Unusable as why:
        row |= {"reason": why.reason, "detail": why.detail}


def in_batches(rows: Iterable[Row]) -> Iterator[pa.RecordBatch]:
    """Rows in batches of at most BATCH rows, and of BATCH_BYTES and one image. '#words' of a caption join the tags."""
    kept: list[Row] = []
    size = 0
    for row in rows:
        kept.append(row)
        size += sum(len(value) for value in row.values() if isinstance(value, bytes | str))
        size += sum(50 + len(tag or "") for tag in row.get("tags") or ())
        if len(kept) >= BATCH or size >= BATCH_BYTES:
            yield _batch(kept)
            kept, size = [], 0
    if kept:
        yield _batch(kept)


def _batch(rows: list[Row]) -> pa.RecordBatch:
    try:
        captions = [row.pop("caption", None) for row in rows]
        if any(captions):
            for row, hashtags in zip(rows, hashtags_in(captions), strict=True):
                row["tags"] = [*(row.get("tags") or ()), *hashtags]
        return pa.RecordBatch.from_pylist(rows, schema=RAW)
    except UnicodeEncodeError:  # half a surrogate pair, as JSON's \ud800 makes it
        return pa.RecordBatch.from_pylist([_as_unicode(row) for row in rows], schema=RAW)


def _as_unicode(row: Row) -> Row:
    try:
        pa.RecordBatch.from_pylist([row], schema=RAW)
        return row
    except UnicodeEncodeError:
        name = str(row.get("id") or "").encode("ascii", "backslashreplace").decode()
        return {"id": name, "reason": "bad_row", "detail": "text that is not Unicode"}
