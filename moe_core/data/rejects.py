"""Why rows are rejected, and the rejected rows of a shard, counted."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

import polars as pl
import pyarrow as pa

from moe_core.data import images
from moe_core.tables.memory import copied

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
EXAMPLES = 3  # rejects of each reason that are named


@dataclass
class Count:
    """Counts of one shard: read = accepted + the sum of the reasons."""

    read: int = 0
    accepted: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[int]] = field(default_factory=dict)  # positions of some rows of each reason

    @property
    def rejected(self) -> int:
        return sum(self.reasons.values())


class Rejects:
    """Rejected rows on their way to the table: in a file without a name, which goes with the process."""

    def __init__(self, file: IO[bytes], shard: str, source: str, count: Count) -> None:
        self.file, self.shard, self.source, self.count = file, shard, source, count
        self.writer = pa.ipc.new_stream(file, REJECTS)

    def add(self, rows: pl.DataFrame) -> None:
        named = rows.with_columns(pl.lit(self.shard).alias("shard"), pl.lit(self.source).alias("source"))
        for batch in batches_of(named, REJECTS):
            self.writer.write_batch(copied(batch))
        for reason, position in rows.select("reason", "position").iter_rows():
            self.count.reasons[reason] += 1
            examples = self.count.examples.setdefault(reason, [])
            if len(examples) < EXAMPLES:
                examples.append(position)

    def batches(self) -> Iterator[pa.RecordBatch]:
        self.writer.close()
        self.file.seek(0)
        yield from pa.ipc.open_stream(self.file)


def batches_of(rows: pl.DataFrame, schema: pa.Schema) -> list[pa.RecordBatch]:
    """The columns of the schema, with the plain types that lance stores."""
    return rows.select(schema.names).to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema).to_batches()
