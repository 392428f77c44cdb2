"""Tables and tars as input: by the readers of sources, whose settings are guessed as `hardmoe init` guesses them.

Their files are told apart by name, size and time, and are not hashed: that would read each twice.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moe_core.data.sources.columns import NO_TAGS
from moe_core.data.sources.files import File
from moe_core.data.sources.guessing import guess_format
from moe_core.data.sources.reader import reader_of
from moe_core.data.sources.scan import ContentHashes, Shard
from moe_core.data.sources.shards import find_shards, read_shard
from moe_core.settings import Source
from moe_core.store.hashing import content_hash
from moe_core.tagging.inputs import Record

COUNTED = ("parquet", "lance")  # formats that know their rows without reading them


class Stamps(ContentHashes):
    """Names, sizes and times in place of hashes of contents."""

    def of(self, file: File) -> str:
        return content_hash([file.name, file.size, file.changed])


@dataclass(frozen=True)
class Table:
    """One shard of a source."""

    source: Source
    shard: Shard
    count: int | None

    @property
    def made_of(self) -> Any:
        return [self.shard.path, self.shard.content_hash]

    def records(self, number: int, after: int) -> Iterator[Record]:
        """Rows before are read, and not decoded."""
        row = 0
        for batch in read_shard(self.source, self.shard, hashes=Stamps()):
            ids, images, reasons, details = (batch[name] for name in ("id", "image", "reason", "detail"))
            for place in range(max(0, after - row), len(batch)):
                at = row + place + 1
                image = images[place].as_buffer()
                reason, detail = reasons[place].as_py(), details[place].as_py()
                problem = f"{reason}: {detail}" if reason and detail else reason or ""
                name = ids[place].as_py() or f"row {at}"
                yield Record(name, self.shard.path, number, at, "", image and memoryview(image), problem)
            row += len(batch)


def open_tables(uri: str, kind: str | None, columns: Mapping[str, str]) -> Sequence[Table]:
    """The shards of what lies there; `columns` are settings of [source] such as id_column, empty where not given.

    Raises BadSource for what cannot be read.
    """
    kind = kind or guess_format(uri)
    source = Source.model_validate({"format": kind, "uri": uri, "tags_column": NO_TAGS, **columns})
    shards = find_shards(source, Stamps())
    counts = [reader_of(kind).count(source, [shard])[0] if kind in COUNTED else None for shard in shards]
    return [Table(source, shard, count) for shard, count in zip(shards, counts, strict=True)]
